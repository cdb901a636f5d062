"""Every recipe file: it loads, says what it must, and runs shrunk from first run to page."""

import html
import re

import pytest

from dfa_jax.report import catalogue, plan, publish, run, study_page, table
from dfa_jax.report.shrink import shrink
from dfa_jax.report.study import Study
from dfa_jax.train import records as files
from dfa_jax.train.config import rule_name

NAMES = catalogue.names()
STUDIES = [name for name in NAMES if isinstance(catalogue.load(name), Study)]
TRAININGS = [name for name in NAMES if name not in STUDIES]


def test_there_are_recipes():
    """Oracle: the recipes that the documentation names."""
    found = {"quickstart", "direct_feedback_alignment/mnist_mlp", "direct_feedback_alignment/depth"}
    assert found <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_header(name):
    """Oracle: the convention; title, paper, exact command, time, expectation, in this order."""
    found = catalogue.load(name)
    title, *rest = found.header.splitlines()
    assert title.endswith((".", "?"))
    unwrapped = re.sub(r"\n +", " ", "\n".join(rest))
    lines = dict(re.findall(r"(?m)^(Paper|Command|Time|Expect): (.+)$", unwrapped))
    assert list(lines) == ["Paper", "Command", "Time", "Expect"]
    assert lines["Paper"].startswith(found.paper)
    assert lines["Command"] == f"python scripts/reproduce.py {name}"
    assert lines["Time"].startswith(f"{found.minutes:g} min on 2 cores")


@pytest.mark.parametrize("name", TRAININGS)
def test_definitions(name):
    """Oracle: invariant; CONFIG is a variant, EXPECTED is the recipe's, labels name rules."""
    module, found = catalogue.run_file(name), catalogue.load(name)
    assert catalogue.load_config(name) in found.variants.values()
    assert module["EXPECTED"] == found.expected
    for one in plan.plan(found):
        assert one.variant.rpartition("/")[2] == rule_name(one.config.rule)
    assert "backprop" in {label.rpartition("/")[2] for label in found.variants}


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_shrunk_recipe_runs_to_its_page(name, tmp_path):
    """Oracle: invariant; every variant and rule of the recipe is on record and on the page."""
    small = shrink(catalogue.load(name))
    folder = tmp_path / name
    run.run(small, folder / publish.RECORDS, say=str)
    printed = publish.publish(small, tmp_path)
    held = files.read_runs(folder / publish.RECORDS)
    assert [record.variant for record in held] == list(small.variants)
    assert [record.rule for record in held] == [v.rpartition("/")[2] for v in small.variants]
    rows = table.rows(small, held)
    assert (folder / "table.md").read_text() == table.markdown(small, rows)
    assert (folder / "table.md").read_text() in printed
    assert (folder / "figure.png").stat().st_size > 10_000
    page = (folder / "index.html").read_text()
    assert all(f"<td>{variant}</td>" in page for variant in small.variants)


@pytest.fixture(scope="module")
def study_results(tmp_path_factory):
    """One folder for all: studies that share their cases compute them once."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_shrunk_study_runs_to_its_page(name, study_results):
    """Oracle: invariant; every case is on record, every finding in the table and on the page."""
    small = catalogue.load_study(name).shrink()
    publish.run(small, study_results)
    held = publish.held_runs(small, study_results)
    assert [record.case for record in held] == list(small.cases)
    printed = publish.publish(small, study_results)
    found = study_page.findings(small, held)
    assert found
    page = (study_results / name / "index.html").read_text()
    for one in found:
        assert one.claim in printed
        assert html.escape(one.claim) in page
    assert (study_results / name / "figure.png").stat().st_size > 5_000
    publish.run(small, study_results)  # nothing is left to do
    assert publish.held_runs(small, study_results) == held
