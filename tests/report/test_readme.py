"""The README's results come from the records, and from nothing else."""

import pathlib
import re

import pytest

from dfa_jax import errors
from dfa_jax.report import catalogue, publish, readme
from dfa_jax.train import records as files
from tests.report import made_up

ROOT = pathlib.Path(readme.__file__).resolve().parents[2]


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A results folder with the made-up recipe's records, and no other recipe."""
    monkeypatch.setattr(catalogue, "names", lambda: ["made_up"])
    monkeypatch.setattr(catalogue, "load", lambda name: made_up.RECIPE)
    for record in made_up.records():
        files.append(tmp_path / "made_up" / publish.RECORDS, record)
    return tmp_path


def test_fill_replaces_what_stands_between_the_markers_and_nothing_else(results, tmp_path):
    """Oracle: contract. A README is written by hand around its results; filling twice is filling
    once, or every run would add a copy."""
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.fill(path, results)
    once = path.read_text()
    readme.fill(path, results)
    assert path.read_text() == once
    assert once.startswith(f"before\n{readme.BEGIN}\n")
    assert once.endswith(f"\n{readme.END}\nafter\n")
    assert "old" not in once
    assert once.count("`made_up`") == 1
    # Of the one number, 2.0 within 0.1 (our mean is 2.07), with where it is from.
    assert (
        "1 of 1 published numbers reproduced (provenance of the numbers: memory, unverified)."
        in once
    )
    assert "18 runs, 3 seeds" in once


def test_without_markers_the_file_is_left_alone(results, tmp_path):
    """Oracle: contract; the message names the file and what it lacks."""
    path = tmp_path / "README.md"
    path.write_text("no markers\n")
    with pytest.raises(errors.InputError, match=r"README.md has no lines '<!-- results:begin"):
        readme.fill(path, results)
    assert path.read_text() == "no markers\n"


def test_committed_readme_shows_the_committed_tables():
    """Oracle: the tables beside the records. What came out is said in the same words in both."""
    pattern = r"<br>`(\S+)` \| (\d+ of \d+ expectations met)"
    rows = re.findall(pattern, (ROOT / "README.md").read_text())
    assert len(rows) > 10
    for name, came in rows:
        assert came in (ROOT / "results" / name / "table.md").read_text(), name


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_committed_readme_shows_the_committed_records(monkeypatch):
    """Oracle: recomputation. A result that changes without the README is a false claim."""
    monkeypatch.chdir(ROOT)
    content = (ROOT / "README.md").read_text()
    shown = content.partition(readme.BEGIN)[2].partition(readme.END)[0].strip()
    assert shown == readme.section(pathlib.Path("results"))
