"""How feedback is drawn: distribution, scale, independence."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import SiteError
from dfa_jax.models import MLP, ConvNet, from_linen
from dfa_jax.rules import (
    Backprop,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    FeedbackAlignment,
    FixedRandomSign,
    functional,
)
from dfa_jax.types import Batch
from tests import helpers

WIDTHS, INPUTS, OUTPUTS = (300, 500), 200, 100


def wide(widths=WIDTHS, sites="layer_*"):
    """A model wide enough for statistics; nothing is computed with it."""
    inputs = jnp.zeros((2, INPUTS))
    model = from_linen(MLP(widths, OUTPUTS), sites, inputs)
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return model, params, Batch(inputs, jnp.zeros(2, int))


def assert_variance(entries, variance, distribution):
    """z-test on mean and variance: sd of s^2 is sqrt((mu_4 - sigma^4) / n).

    With n >= 30,000 a scale that is off by 5 % is more than 10 standard deviations away.
    """
    entries = np.asarray(entries, float).ravel()
    n = entries.size
    assert n >= 30_000
    excess = {"gaussian": 2.0, "uniform": 9 / 5 - 1}[distribution]
    assert abs(entries.mean()) / math.sqrt(variance / n) < 4
    assert abs((entries**2).mean() / variance - 1) / math.sqrt(excess / n) < 4


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
@pytest.mark.parametrize("scaling", ["site_width", "error_width", "none"])
@pytest.mark.parametrize("sharing", ["per_site", "shared"])
def test_direct_feedback_has_the_stated_variance(distribution, scaling, sharing):
    """Statistical test: variance of B against `scale^2 v / d`, v = 1 (gaussian) or 1/3 (uniform).

    The scale of B sets the learning rate of every hidden layer; papers differ in it.
    """
    model, params, batch = wide()
    rule = DirectFeedbackAlignment(
        feedback_distribution=distribution,
        feedback_scaling=scaling,
        feedback_scale=3.0,
        feedback_sharing=sharing,
    )
    _, state = rule.init(jax.random.key(0), model, params, batch)
    widths = {"shared": 500} if sharing == "shared" else {"layer_0": 300, "layer_1": 500}
    assert set(state) == set(widths)
    for name, width in widths.items():
        divisor = {"site_width": width, "error_width": OUTPUTS, "none": 1}[scaling]
        unit = {"gaussian": 1.0, "uniform": 1 / 3}[distribution]
        assert_variance(state[name], 9 * unit / divisor, distribution)
        if distribution == "uniform":
            assert np.abs(state[name]).max() <= 3 / math.sqrt(divisor)


def test_last_hidden_tap_is_scaled_by_its_own_width():
    """Statistical test: with the tap at the last site the error's width is that site's, 500."""
    model, params, batch = wide()
    rule = DirectFeedbackAlignment(error_tap="last_hidden", feedback_scaling="error_width")
    _, state = rule.init(jax.random.key(0), model, params, batch)
    assert state["layer_0"].shape == (500, 300)
    assert_variance(state["layer_0"], 1 / 500, "gaussian")


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
def test_chain_feedback_is_scaled_by_fan_in(distribution):
    """Statistical test: variance of FA's B is `scale^2 v / fan_in`, as a LeCun-initialised kernel."""
    model, params, batch = wide()
    rule = FeedbackAlignment(feedback_distribution=distribution, feedback_scale=2.0)
    _, state = rule.init(jax.random.key(0), model, params, batch)
    unit = {"gaussian": 1.0, "uniform": 1 / 3}[distribution]
    for name, fan_in in {"layer_0/Dense_0": 200, "layer_1/Dense_0": 300, "readout": 500}.items():
        assert_variance(state[name], 4 * unit / fan_in, distribution)


def test_convolution_feedback_is_scaled_by_its_receptive_field():
    """Statistical test: the fan-in of a 5 x 5 convolution of 40 channels is 1,000."""
    inputs = jnp.zeros((1, 4, 4, 3))
    model = from_linen(ConvNet((40, 40), 5, 2), "layer_*", inputs)
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)
    _, state = FeedbackAlignment().init(
        jax.random.key(0), model, params, Batch(inputs, jnp.zeros(1, int))
    )
    assert_variance(state["layer_1/Conv_0"], 1 / 1000, "gaussian")


def test_fixed_random_sign_magnitudes_are_half_normal():
    """Closed form: the mean of |N(0, 1/fan_in)| is `sqrt(2 / (pi fan_in))`; its square has 1/fan_in."""
    model, params, batch = wide()
    _, state = FixedRandomSign().init(jax.random.key(0), model, params, batch)
    magnitudes = np.asarray(state["readout"], float).ravel()
    sd = math.sqrt((1 - 2 / math.pi) / 500 / magnitudes.size)
    assert abs(magnitudes.mean() - math.sqrt(2 / (math.pi * 500))) / sd < 4


def test_matrices_are_independent():
    """Statistical test: correlations between sites, and between layers of a stack, are N(0, 1/n).

    One key used twice would give every site the same matrix, which is another algorithm.
    """
    model, params, batch = wide((300, 300, 300))
    _, state = DirectFeedbackAlignment().init(jax.random.key(0), model, params, batch)
    stacked = helpers.scanned()
    _, layers = DirectFeedbackAlignment(feedback_scaling="none").init(
        jax.random.key(0), stacked.model, stacked.params, stacked.batch
    )
    for flat in (
        np.stack([np.ravel(state[site]) for site in model.sites]),
        np.reshape(layers["layers"], (3, -1)),
    ):
        correlations = np.corrcoef(flat)[np.triu_indices(3, 1)]
        assert np.abs(correlations).max() < 4 / math.sqrt(flat.shape[1])


def test_another_site_changes_no_matrix_of_the_others():
    """Invariant: B of a site depends on key and name alone, so ablating a site keeps the rest."""
    rule = DirectFeedbackAlignment()
    states = []
    for sites in (["layer_1"], ["layer_0", "layer_1"]):
        model, params, batch = wide(sites=sites)
        states.append(rule.init(jax.random.key(0), model, params, batch)[1])
    helpers.assert_identical(states[0]["layer_1"], states[1]["layer_1"])


def test_site_without_the_batch_axes_is_refused():
    """Documented contract: direct feedback is per example; a site in another layout is named."""

    import flax.linen as nn

    class Transposed(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(4, name="across")(x.T).T
            return nn.Dense(3, name="readout")(h)

    case = helpers.made(Transposed(), "across", helpers.images())
    with pytest.raises(
        SiteError, match=r"'across'.*\(8, 4\).*first axis is not that of the examples"
    ):
        helpers.started(DirectFeedbackAlignment(), case)


CASES = {
    "per site": (DirectFeedbackAlignment(), MLP((6, 5), 3), "layer_*"),
    "shared": (DirectFeedbackAlignment(feedback_sharing="shared"), MLP((6, 5), 3), "layer_*"),
    "uniform": (DirectFeedbackAlignment(feedback_distribution="uniform"), MLP((6,), 3), "layer_*"),
    "targets": (DirectRandomTargetProjection(), MLP((6, 5), 3), "layer_*"),
    "stack": (DirectFeedbackAlignment(), helpers.Stack("scan"), "layers"),
    "stack, shared": (
        DirectFeedbackAlignment(feedback_sharing="shared"),
        helpers.Stack("scan"),
        ["layers", "layers/*"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_regenerated_feedback_is_the_stored_one(name):
    """Exact equivalence: the same gradients, from a state of one key."""
    rule, module, sites = CASES[name]
    model, params, batch = helpers.made(module, sites, helpers.images())

    def begun(rule):
        _, state = rule.init(jax.random.key(2), model, params, batch)
        key = jax.random.key(3)
        return functional.estimate(
            rule, model, helpers.LOSS, params, state, (), batch, key
        ).grads, state

    anew = dataclasses.replace(rule, feedback_storage="regenerated")
    (stored, _), (anew, state) = jax.jit(lambda: (begun(rule), begun(anew)))()
    assert jax.random.key_data(state["key"]).size == 2
    assert len(jax.tree.leaves(state)) == 1
    helpers.assert_close(anew, stored, 1e-6)


def test_regenerated_feedback_is_held_nowhere():
    """Oracle: the compiler's own account of memory, of a loop over steps. With four more sites
    of 1 MB each it grows by what backpropagation's grows by, and not by the feedback."""

    def megabytes(rule, depth, width=512):
        batch = Batch(jnp.zeros((2, 8)), jnp.zeros(2, int))
        model = from_linen(MLP((width,) * depth, width), "layer_*", batch.inputs)
        params = jax.eval_shape(model.init, jax.random.key(0), batch.inputs)
        _, state = jax.eval_shape(lambda p: rule.init(jax.random.key(0), model, p, batch), params)

        def many(params, state):
            def step(_, params):
                key = jax.random.key(0)
                found = functional.estimate(
                    rule, model, helpers.LOSS, params, state, (), batch, key
                )
                return jax.tree.map(lambda p, g: p - 0.1 * g, params, found.grads)

            return jax.lax.fori_loop(0, 10, step, params)

        compiled = jax.jit(many, donate_argnums=0).lower(params, state).compile()
        memory = compiled.memory_analysis()
        return (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20

    def growth(rule):
        return megabytes(rule, 6) - megabytes(rule, 2)

    none = growth(Backprop())
    assert growth(DirectFeedbackAlignment()) > none + 3
    assert growth(DirectFeedbackAlignment(feedback_storage="regenerated")) < none + 1
