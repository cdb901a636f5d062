"""Which findings hold, and which runs nothing follows from."""

import dataclasses
import re

import pytest
from matplotlib.figure import Figure

from dfa_jax.report import catalogue, finding, study_page
from dfa_jax.report.finding import Finding
from dfa_jax.report.run_study import RunStudy
from tests.report import made_up


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([1.0, 2.0, 3.0], False),  # 2 +- 2.48: the interval of three seeds is wide
        ([1.9, 2.0, 2.1], True),  # 2 +- 0.25
        ([-1.9, -2.0, -2.1], False),
        ([0.1], True),  # a single seed has no interval
        ([0.0], False),
    ],
)
def test_positive(values, holds):
    """Oracle: Student's t interval by hand, `t = 4.303` for three values."""
    assert finding.positive("difference", values, "own").holds is holds


DOUBT = "All rates were tried <in> the dark."


@pytest.fixture
def study():
    """One finding that holds and one that does not; its figures are kept."""
    drawn = []

    def draw(held, theme):
        del held, theme
        drawn.append(Figure())
        return drawn[-1]

    def findings(held):
        del held
        return [Finding(f"claim {k}", "above 0", "own", "1", holds=bool(k)) for k in range(2)]

    made = RunStudy("A study", "none", 1, made_up.RECIPE, draw, findings, rate_doubt=DOUBT)
    return made, drawn


def test_nothing_is_judged_where_rates_are_in_doubt(study):
    """Oracle: definition. Runs at a rate that was chosen badly show the rate, not the rule: a verdict of
    either kind would be a false claim, wherever the results are shown."""
    (study, drawn), held = study, made_up.records()
    found = study_page.findings(study, held)
    assert finding.summary(found) == "2 expectations not judged: rate not established."
    image = study_page.figure(study, held)
    assert drawn[0].get_supxlabel() == study_page.ON_DOUBT
    shown = study_page.markdown(study, found)
    assert DOUBT in shown
    page = study_page.html(study, held, found, {"light": image, "dark": image})
    assert "tried &lt;in&gt; the dark" in page
    for text in (shown, page):
        assert text.count("rate not established") >= 2
        assert not re.search(r'(\| |">)(not )?reproduced', text)


def test_without_a_doubt_both_verdicts_stand(study):
    """Oracle: definition; the mark is no default."""
    study, drawn = study
    study = dataclasses.replace(study, rate_doubt="")
    found = study_page.findings(study, made_up.records())
    assert [one.verdict for one in found] == ["not reproduced", "reproduced"]
    assert finding.summary(found) == "1 of 2 expectations met."
    study_page.figure(study, made_up.records())
    assert drawn[0].get_supxlabel() == ""


def test_committed_doubts_are_in_committed_tables():
    """Oracle: the recipes. A doubt that a table does not show is a false finding in public."""
    folder = catalogue.CONFIGS.parent / "results"
    tables = {path.parent.relative_to(folder).as_posix(): path for path in folder.rglob("table.md")}
    marked = {name for name, path in tables.items() if "Rate not established" in path.read_text()}
    doubted = {
        n for n in catalogue.names() if "rate_doubt=" in (catalogue.CONFIGS / f"{n}.py").read_text()
    }
    assert marked == doubted & set(tables)
    for name in marked:
        found = catalogue.load(name)
        assert isinstance(found, RunStudy)
        assert found.rate_doubt in tables[name].read_text()
