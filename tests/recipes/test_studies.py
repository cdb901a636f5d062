"""Every study, of cases or of training runs, runs shrunk from first case to page."""

import dataclasses
import html

import pytest

from dfa_jax.report import publish, study_page
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.study import Study
from dfa_jax.train import loop
from dfa_jax.train.config import to_dict
from tests.recipes.shrunk import LOADED, of_kind, trace

PODS = [name for name in of_kind(RunStudy) if "/pod/" in name]


@pytest.fixture
def train_alike_once(trained, monkeypatch):
    """`fit`, for configurations that differ in more than a rate, a length or a seed.

    What is left of a ladder of sizes once it is shrunk is one run an arm; its records still say
    which size they are of.
    """
    fit = loop.fit

    def remembering(config, *, progress):
        optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0, warmup_fraction=0.0)
        kind = repr(to_dict(dataclasses.replace(config, optimizer=optimizer, seed=0)))
        if kind not in trained:
            trained[kind] = fit(config, progress=progress)
        return trained[kind]

    monkeypatch.setattr(loop, "fit", remembering)


@pytest.fixture(scope="module")
def study_results(tmp_path_factory):
    """One folder for all: studies that share their cases compute them once."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.usefixtures("train_alike_once")
@pytest.mark.parametrize("name", [n for n in of_kind(Study | RunStudy) if n not in PODS])
def test_shrunk_study_runs_to_its_page(name, study_results):
    """Oracle: invariant; every case, or run, is on record, every finding in the table and on the
    page."""
    loaded = LOADED[name]
    assert isinstance(loaded, Study | RunStudy)
    small = loaded.shrink()
    publish.run(small, study_results)
    held = publish.held_runs(small, study_results)
    labels = [small.label(record) for record in held]
    assert labels == small.needed
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


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.parametrize("name", PODS)
def test_shrunk_pod_recipe_compiles_and_steps(name):
    """Oracle: invariant; every run is traced, and one with all that a pod needs (scan, remat, half
    precision, a stream, a split width) is trained. How a ladder's records are drawn and judged is
    tested with the frontier's, whose functions these are."""
    loaded = LOADED[name]
    assert isinstance(loaded, RunStudy)
    variants = loaded.shrink().runs.variants
    for config in {repr(to_dict(config)): config for config in variants.values()}.values():
        trace(config)
    last = [config for label, config in variants.items() if label.endswith("/DFA")][-1]
    assert loop.fit(last, progress=False).record.curve
