"""Kolen-Pollack: the feedback follows the weights."""

import jax
import optax
import pytest

from dfa_jax import tree
from dfa_jax.errors import InputError
from dfa_jax.rules import FeedbackAlignment, KolenPollack, functional
from dfa_jax.rules.base import kernels
from tests import helpers


def difference(case, params):
    """`W - B` by linear map, in NumPy."""
    params = helpers.to_float64(params)
    layers = {name: tree.get(params, at.path[:-1]) for name, at in case.model.linear_maps.items()}
    return {name: layer["kernel"] - layer["feedback"] for name, layer in layers.items()}


@pytest.mark.parametrize(
    ("rule_decay", "tx", "case"),
    [
        (0.3, optax.sgd(0.1), helpers.mlp),
        (0.3, optax.sgd(0.1), helpers.convnet),
        (0.3, optax.sgd(0.1), helpers.scanned),
        (0.0, optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1)), helpers.mlp),
        (0.0, optax.adamw(0.1, weight_decay=0.3), helpers.mlp),
    ],
    ids=["mlp", "convnet", "scanned", "add_decayed_weights", "adamw"],
)
def test_difference_shrinks_by_one_minus_rate_times_decay(x64, case, rule_decay, tx):
    """Closed form: `W - B` is multiplied by `1 - eta lambda` a step, by whichever way W decays.

    This convergence is the theorem behind the rule; a B that missed one term would not meet W.
    """
    case = case()
    rule = KolenPollack(decay=rule_decay)
    params, _ = helpers.started(rule, case)
    start = difference(case, params)

    @jax.jit
    def step(params, opt_state, batch):
        grads = functional.estimate(
            rule, case.model, helpers.LOSS, params, (), (), batch, jax.random.key(0)
        ).grads
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = jax.jit(tx.init)(params)
    for num_steps in range(1, 4):
        params, opt_state = step(params, opt_state, case.batch)
        factor = (1 - 0.1 * 0.3) ** num_steps
        expected = {name: factor * leaf for name, leaf in start.items()}
        helpers.assert_close(difference(case, params), expected, 1e-12)


def test_gradients_are_feedback_alignments_plus_decay(x64):
    """Exact equivalence: at every step KP is FA with today's B, plus `lambda W` on kernels only."""
    case = helpers.mlp()
    rule = KolenPollack(decay=0.3)
    params, _ = helpers.started(rule, case)
    B = rule.feedback(jax.random.key(0), case.model, params, ())
    fixed = helpers.estimate(FeedbackAlignment(), case, case.params, B).grads
    found = helpers.estimate(rule, case, params, ()).grads
    for name, kernel in kernels(case.model, params).items():
        layer, plain = found, fixed
        for part in name.split("/"):
            layer, plain = layer[part], plain[part]
        helpers.assert_close(layer["kernel"], plain["kernel"] + 0.3 * kernel, 1e-12)
        helpers.assert_close(layer["feedback"], plain["kernel"] + 0.3 * B[name], 1e-12)
        helpers.assert_close(layer["bias"], plain["bias"], 1e-12)


def test_bad_options_are_refused_by_name():
    """Documented contract: a negative decay would grow the weights; it is refused at the door."""
    for decay in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(InputError, match="decay"):
            KolenPollack(decay=decay)


def test_alignment_rises_to_one():
    """Closed form: after 500 steps `W - B` is `0.99^500 = 0.7 %` of its start, so the cosine is near 1."""
    case = helpers.mlp()
    rule = KolenPollack(decay=0.02)
    start, _ = helpers.started(rule, case)

    @jax.jit
    def train(params, batch):
        def step(params, _):
            key = jax.random.key(0)
            found = functional.estimate(rule, case.model, helpers.LOSS, params, (), (), batch, key)
            return jax.tree.map(lambda leaf, g: leaf - 0.5 * g, params, found.grads), None

        return jax.lax.scan(step, params, length=500)[0]

    before = rule.weight_alignment(case.model, start, (), case.batch)
    after = rule.weight_alignment(case.model, train(start, case.batch), (), case.batch)
    assert set(after) == {"layer_1/Dense_0", "readout"}
    assert all(abs(value) < 0.6 for value in before.values())
    assert all(value > 0.99 for value in after.values())
