"""Every recipe file: it loads, says what it must, and runs shrunk from first run to page."""

import dataclasses
import html
import re

import jax
import jax.numpy as jnp
import pytest

from dfa_jax.report import catalogue, publish, run, study_page, style, table
from dfa_jax.report.recipe import Recipe, label_of
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.shrink import shrink
from dfa_jax.report.study import Study
from dfa_jax.rules import RULES
from dfa_jax.train import loop
from dfa_jax.train import records as files
from dfa_jax.train.config import rule_name, to_dict
from dfa_jax.train.program import make_program
from dfa_jax.types import Batch

NAMES = catalogue.names()
LOADED = {name: catalogue.load(name) for name in NAMES}
STUDIES = [name for name, found in LOADED.items() if isinstance(found, Study)]
RUN_STUDIES = [name for name, found in LOADED.items() if isinstance(found, RunStudy)]
PODS = [name for name in RUN_STUDIES if "/pod/" in name]
TRAININGS = [name for name, found in LOADED.items() if isinstance(found, Recipe)]


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


@pytest.mark.parametrize("name", TRAININGS + RUN_STUDIES)
def test_definitions(name):
    """Oracle: invariant; CONFIG is a variant, and labels tell rules (or networks) apart.

    A label that is a registered rule's name is of that rule; all have colours of their own. What is
    to be compared is said: in numbers, orders, a baseline, or findings of the file's own.
    """
    loaded = LOADED[name]
    found = loaded.runs if isinstance(loaded, RunStudy) else loaded
    assert catalogue.load_config(name) in found.variants.values()
    assert len({repr(to_dict(config)) for config in found.variants.values()}) == len(found.variants)
    labels = {label_of(variant): rule_name(c.rule) for variant, c in found.variants.items()}
    assert all(label == rule for label, rule in labels.items() if label in RULES)
    styles = [style.rule_style(label) for label in labels]
    assert len(set(styles)) == len(labels)
    judged = found.expected or found.orders or "backprop" in labels
    assert judged or isinstance(loaded, RunStudy)


@pytest.fixture(scope="module")
def trained():
    """Runs by kind: shrunk recipes have many in common, and one of each kind is trained."""
    return {}


@pytest.fixture
def train_once(trained, monkeypatch):
    """`fit`, for configurations whose kinds of model, rule, estimator and loss are new.

    The others are traced, which is what their options could break.
    """
    fit = loop.fit

    def remembering(config, *, progress):
        estimator = getattr(config.rule, "estimator", None)
        kind = (type(config.model), type(config.rule), type(estimator), config.loss)
        if kind not in trained:
            trained[kind] = fit(config, progress=progress)
        else:
            trace(config)
        return trained[kind]

    monkeypatch.setattr(loop, "fit", remembering)


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


def trace(config):
    """Two steps of the run in the abstract."""
    dataset = config.data.load()
    program = make_program(config, dataset, num_steps=2)
    arrays = (dataset.train.inputs, dataset.train.targets)  # of a stream, only shapes already
    data = Batch(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays))
    key = jax.eval_shape(lambda: jax.random.key(0))
    order = jax.ShapeDtypeStruct((2, config.batch_size), jnp.int32)
    state = jax.eval_shape(lambda k, b: loop.draw_state(k, None, b, program=program), key, data)
    jax.eval_shape(lambda s, b, o: loop.run_steps(s, b, o, 2, program=program), state, data, order)


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.usefixtures("train_once")
@pytest.mark.parametrize("name", TRAININGS)
def test_shrunk_recipe_runs_to_its_page(name, tmp_path):
    """Oracle: invariant; every variant and rule of the recipe is on record and on the page."""
    small = shrink(catalogue.load(name))
    folder = tmp_path / name
    run.run(small, folder / publish.RECORDS, say=str)
    printed = publish.publish(small, tmp_path)
    held = files.read_runs(folder / publish.RECORDS)
    assert [record.variant for record in held] == list(small.variants)
    assert [record.rule for record in held] == [rule_name(c.rule) for c in small.variants.values()]
    assert (folder / "table.md").read_text() == table.markdown(small, held)
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
@pytest.mark.usefixtures("train_alike_once")
@pytest.mark.parametrize("name", [n for n in STUDIES + RUN_STUDIES if n not in PODS])
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
