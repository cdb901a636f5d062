"""What the READMEs say came out is in the records, and nowhere else."""

import dataclasses
import pathlib
import re

import pytest

from dfa_jax import errors
from dfa_jax.report import catalogue, publish, readme
from dfa_jax.train import records as files
from tests.report import made_up

ROOT = pathlib.Path(readme.__file__).resolve().parents[2]
FRONT, ALL = ROOT / "README.md", ROOT / "results" / readme.ALL


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A results folder with the made-up recipe's records, and no other recipe."""
    monkeypatch.setattr(catalogue, "names", lambda: ["made_up"])
    monkeypatch.setattr(catalogue, "load", lambda name: made_up.RECIPE)
    for record in made_up.records():
        files.append(tmp_path / "made_up" / publish.RECORDS, record)
    return tmp_path


def marked(name, between="old"):
    return f"before\n<!-- {name}:begin -->\n{between}\n<!-- {name}:end -->\nafter\n"


def test_fill_replaces_what_stands_between_the_markers_and_nothing_else(results, tmp_path):
    """Oracle: contract. A README is written by hand around its results; filling twice is filling
    once, or every run would add a copy. Links hold where the file is."""
    paths = [tmp_path / "README.md", tmp_path / "below" / "README.md"]
    paths[1].parent.mkdir()
    for path, name in zip(paths, ("papers", "results"), strict=True):
        path.write_text(marked(name))
    readme.fill(paths, results)
    once = [path.read_text() for path in paths]
    readme.fill(paths, results)
    assert [path.read_text() for path in paths] == once
    for text, name in zip(once, ("papers", "results"), strict=True):
        section = readme.between(name).search(text)[1]
        assert text == marked(name, section)
        # Of the one number, 2.0 within 0.1 (our mean is 2.07), with where it is from.
        assert (
            "1 of 1 published numbers reproduced (provenance of the numbers: memory, unverified)."
            in section
        )
    assert "| Nobody & Co. (2020) | 1 of 1" in once[0]
    assert "[1 of 1 recipes](README.md#nobody--co-2020)" in once[0]
    assert "`made_up`" in once[1]
    assert "18 runs, 3 seeds" in once[1]
    assert "[table](../made_up/table.md)" in once[1]


def test_a_recipe_without_all_of_its_runs_is_named_and_not_judged(results, tmp_path, monkeypatch):
    """Oracle: contract; what was not run is said, in both places."""
    more = dataclasses.replace(made_up.RECIPE, seeds=(0, 1, 2, 3))
    monkeypatch.setattr(catalogue, "load", lambda name: more)
    path = tmp_path / "README.md"
    path.write_text(marked("papers") + marked("results"))
    readme.fill([path], results)
    assert "Not run here. | [0 of 1 recipes]" in path.read_text()
    assert "Not run here: `made_up` (A <made-up> recipe)." in path.read_text()
    assert "reproduced" not in path.read_text()


def test_without_markers_every_file_is_left_alone(results, tmp_path):
    """Oracle: contract; the message names the file and what it lacks."""
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text(marked("results"))
    bad.write_text("no markers\n")
    with pytest.raises(errors.InputError, match=r"bad.md has no line '<!-- results:begin"):
        readme.fill([good, bad], results)
    assert (good.read_text(), bad.read_text()) == (marked("results"), "no markers\n")


def test_committed_lines_show_the_committed_tables():
    """Oracle: the tables beside the records. What came out is said in the same words in both."""
    rows = re.findall(r"<br>`(\S+)` \| (\d+ [^|]*expectations [^|]*?) \|", ALL.read_text())
    assert len(rows) > 10
    for name, came in rows:
        assert came in (ROOT / "results" / name / "table.md").read_text(), name


COUNTS = r"(\d+) of (\d+) (expectations|published numbers|orders)"


def total(text):
    """Sums over a text: what was met, and of how many, by what it is."""
    sums = {}
    for met, of, what in re.findall(COUNTS, text):
        before = sums.get(what, (0, 0))
        sums[what] = (before[0] + int(met), before[1] + int(of))
    return sums


def test_a_line_a_paper_is_the_sum_of_its_recipes():
    """Oracle: addition, of the lines that the paper's link leads to. The front page is read most and
    checked least."""
    sections = re.split(r"^## ", ALL.read_text().partition("results:begin")[2], flags=re.M)[1:]
    whole = {section.splitlines()[0]: section for section in sections}
    front = readme.between("papers").search(FRONT.read_text())[1].splitlines()[2:]
    assert len(front) == len(whole) > 5
    for line, (heading, section) in zip(front, whole.items(), strict=True):
        assert heading in line
        assert total(line) == total(section)
        assert f"(results/README.md#{readme.Paper(heading, '', '').anchor})" in line
        run, others = section.count("<br>`"), section.partition("Not run here")[2].count("` (")
        assert f"[{run} of {run + others} recipes]" in line


@pytest.mark.nightly  # every day: against the committed tables, above
@pytest.mark.usefixtures("optimised")
def test_committed_lines_show_the_committed_records(tmp_path):
    """Oracle: recomputation. A result that changes without the READMEs is a false claim."""
    results = ROOT / "results"
    outcomes = [readme.outcome(name, results) for name in catalogue.names()]
    for path, name, here in ((ALL, "results", "."), (FRONT, "papers", "results")):
        shown = readme.between(name).search(path.read_text())[1]
        assert shown == readme.SECTIONS[name](outcomes, pathlib.Path(here)), name
