"""Recipes of one's own data and loss: losses stand where there is no accuracy, searches are cut alike."""

import dataclasses

import numpy as np
import optax
import pytest

from dfa_jax.data import ArrayData
from dfa_jax.errors import InputError
from dfa_jax.models import MLP
from dfa_jax.optim import Optimizer
from dfa_jax.report import figure, page, provenance, run, series, table, tuning, verdict
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.rules import RULES
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import Evaluation
from tests.report import made_up

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12.0).reshape(12, 1)


def loss_fn(outputs, targets):
    return (outputs - targets) ** 2


def config(rule):
    return TrainConfig(
        data=ArrayData((X, Y), (X[:3] + 50, Y[:3])),
        model=MLP((4,), 1),
        rule=RULES[rule](),
        loss=loss_fn,
        optimizer=Optimizer(learning_rate=0.01),
        batch_size=4,
    )


RECIPE = Recipe(
    title="A regression",
    paper="none",
    minutes=1,
    variants={rule: config(rule) for rule in ("backprop", "shallow")},
    seeds=(0, 1, 2),
    tuning=Tuning(num_validation=4, num_epochs=1),
    name="regression",
)


def point(step, loss):
    return Evaluation(step, float(step), loss / 2, None, loss, None, {"test_mae": loss})


def held():
    """Backpropagation ends at 2, the shallow control at 3, each and 0.1 a seed above it."""
    ends, found = {"backprop": 2.0, "shallow": 3.0}, []
    for variant, end in ends.items():
        for seed in RECIPE.seeds:
            record = made_up.record(RECIPE, variant, seed, [1.0])
            curve = (point(1, 2 * end), point(2, end + 0.1 * seed + 0.01 * seed**2 * (end > 2)))
            found.append(dataclasses.replace(record, curve=curve))
    return found


def test_losses_stand_where_there_is_no_accuracy():
    """Oracle: the mean of three losses by hand. A regression's table must not show an error of -100 %,
    nor call a loss an error."""
    rows = table.rows(RECIPE, held())
    headings, *lines = table.grid(rows)
    assert "test loss" in headings
    assert not [name for name in headings if "error" in name]
    assert lines[0][headings.index("test loss")].startswith("2.10 ±")
    assert lines[0][headings.index("train loss")].startswith("1.05 ±")
    assert "of test loss against backprop: worse" in verdict.on_rules(rows)["shallow"]
    assert provenance.run_cells(held()[0])[2:5] == ("-", "-", "2.0000")
    assert "test loss 2.0000" in run.describe(held()[0])
    assert "error" not in table.markdown(RECIPE, held())
    drawn = figure.learning_curves(held(), "light")
    assert drawn.axes[0].get_ylabel() == "test loss"
    assert drawn.axes[0].get_yscale() == "linear"
    assert "test loss" in page.html(RECIPE, held(), {"light": b"", "dark": b""})


def test_a_table_of_both_says_so():
    """Documented contract: a recipe may classify in one variant and regress in another."""
    of_both = [*held(), *[made_up.record(RECIPE, "shallow", seed, [5.0]) for seed in RECIPE.seeds]]
    assert not series.has_errors(of_both)
    kept = [
        record for record in of_both if record.variant == "backprop" or record.final.test_accuracy
    ]
    headings = table.grid(table.rows(RECIPE, kept))[0]
    assert "test error, %, or loss" in headings


def test_a_search_on_arrays_is_judged_by_validation_loss():
    """Oracle: slices by hand. The search trains on the first eight examples, tests on the last four,
    and takes the lower loss; the test set is never seen."""
    trial = tuning.trial(RECIPE, "backprop@+1")
    np.testing.assert_array_equal(trial.data.train.inputs, X[:8])
    np.testing.assert_array_equal(trial.data.test.inputs, X[8:])
    assert trial.learning_rate == pytest.approx(0.03)
    record = dataclasses.replace(held()[0], variant="backprop@+1")
    assert tuning.errors(RECIPE, [record])["backprop"] == {1: 2.0}
    assert run.judged(trial, record) == "validation loss 2.0000"


def test_a_search_needs_a_rate_to_set():
    """Documented contract: a transformation of Optax has no learning rate that could be told."""
    raw = dataclasses.replace(config("backprop"), optimizer=optax.sgd(0.1))
    recipe = dataclasses.replace(RECIPE, variants={"backprop": raw})
    with pytest.raises(InputError, match="tunes learning rates.*give an Optimizer"):
        tuning.labels(recipe)
