"""Every recipe file loads and says what it must; a recipe runs shrunk from first run to page."""

import re

import pytest

from dfa_jax.report import catalogue, publish, run, style, table
from dfa_jax.report.recipe import Recipe, label_of
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.shrink import shrink
from dfa_jax.rules import RULES
from dfa_jax.train import loop
from dfa_jax.train import records as files
from dfa_jax.train.config import rule_name, to_dict
from tests.recipes.shrunk import LOADED, LONG, check_start, of_kind, trace, whole


def test_there_are_recipes():
    """Oracle: the recipes that the documentation names."""
    found = {"quickstart", "direct_feedback_alignment/mnist_mlp", "direct_feedback_alignment/depth"}
    assert found <= set(LOADED)


@pytest.mark.parametrize("name", LOADED)
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


@pytest.mark.parametrize("name", of_kind(Recipe | RunStudy))
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


@pytest.fixture
def train_once(trained, monkeypatch):
    """`fit`, for configurations whose kinds of model, rule, estimator and loss are new.

    The others are traced, which is what their options could break.
    """
    fit = loop.fit

    def remembering(config, **options):
        estimator = getattr(config.rule, "estimator", None)
        kind = (type(config.model), type(config.rule), type(estimator), config.loss)
        if kind not in trained:
            trained[kind] = fit(config, **options)
        else:
            trace(config)
        return trained[kind]

    monkeypatch.setattr(loop, "fit", remembering)


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.usefixtures("train_once")
@pytest.mark.parametrize("name", whole(of_kind(Recipe)))
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


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LONG))
def test_long_recipe_starts(name, tmp_path):
    """Oracle: invariant; the first run is on record, and a page shows it. The whole comes at night."""
    check_start(name, tmp_path)
