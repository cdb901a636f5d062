"""Figures: what is drawn equals what was recorded."""

import dataclasses

import numpy as np
import pytest

from dfa_jax.models import MLP
from dfa_jax.report import figure, style
from dfa_jax.rules import RULES
from tests.report import made_up


def test_every_rule_has_a_style_of_its_own():
    """Oracle: invariant; colours and markers of registered rules never coincide."""
    styles = [style.rule_style(rule) for rule in RULES]
    for column in zip(*styles, strict=True):
        assert len(set(column)) == len(RULES)


def test_an_unlisted_rule_keeps_its_style():
    """Oracle: exact equivalence; the style is a function of the name."""
    assert style.rule_style("brand_new") == style.rule_style("brand_new")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_learning_curves_show_the_means(records, theme):
    """Oracle: independent implementation; NumPy means of the fixture's errors by epoch."""
    drawn = figure.learning_curves(records, theme)
    tanh_error = drawn.axes[0]
    assert tanh_error.get_yscale() == "log"
    for line, rule in zip(
        tanh_error.lines, ("backprop", "direct_feedback_alignment"), strict=False
    ):
        runs = [run for run in records if run.variant == f"tanh/{rule}"]
        errors = [[100 - 100 * e.test_accuracy for e in run.curve] for run in runs]
        np.testing.assert_allclose(line.get_ydata(), np.mean(errors, 0))
        np.testing.assert_allclose(line.get_xdata(), [1, 2])
        assert line.get_color() == style.colour(rule, theme)


def test_alignment_panels_only_where_it_was_measured(records):
    """Oracle: definition; two groups make two panels, and two more with alignment."""
    assert len(figure.learning_curves(records, "light").axes) == 4
    without = [run for run in records if "direct" not in run.variant]
    assert len(figure.learning_curves(without, "light").axes) == 2


def test_depth_shows_errors_and_alignment_by_depth(recipe):
    """Oracle: closed form; each depth's error and alignment are set by hand.

    Twelve layers, in the records' order of letters: "layer_10" comes before "layer_2" there.
    """
    name = "tanh/direct_feedback_alignment"
    records = []
    for layers in (1, 12):
        model = MLP(widths=(5,) * layers)
        config = dataclasses.replace(recipe.variants[name], model=model)
        deep = dataclasses.replace(recipe, variants={**recipe.variants, name: config})
        sites = dict(sorted((f"layer_{i}", 0.05 * (i + 1)) for i in range(layers)))
        records += [made_up.record(deep, name, seed, (2.0 * layers,), sites) for seed in (0, 1)]
    error, _, alignment, by_layer = figure.depth(records, "light").axes
    np.testing.assert_allclose(error.lines[0].get_xydata(), [[1, 2], [12, 24]])
    np.testing.assert_allclose(alignment.lines[0].get_xydata(), [[1, 0.05], [12, 0.325]])
    expected = [[layer, 0.05 * layer] for layer in range(1, 13)]
    np.testing.assert_allclose(by_layer.lines[0].get_xydata(), expected)


@pytest.mark.parametrize("name", sorted(figure.FIGURES))
def test_png(records, name):
    """Oracle: format; the eight bytes that open every PNG, and the same bytes twice."""
    image = figure.draw(name, records)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert image == figure.draw(name, records)
