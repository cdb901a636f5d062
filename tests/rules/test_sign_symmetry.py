"""Sign-concordant feedback: uSF, frSF and brSF."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.models import MLP
from dfa_jax.rules import BatchwiseRandomSign, FixedRandomSign, UniformSign
from dfa_jax.rules.base import kernels
from tests import helpers, reference

RULES = [UniformSign(), FixedRandomSign(), BatchwiseRandomSign()]


def feedback(rule, case, state, key=0, params=None):
    """The matrices on the way back, of plain kernels."""
    params = case.params if params is None else params
    W = kernels(case.model, params)
    B = rule.feedback(jax.random.key(key), case.model, params, state)
    fan_ins = {one.name: one.fan_in for one in case.model.maps}
    return {name: rule.substitute(W[name], B[name], fan_ins[name]) for name in W}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("case", [helpers.mlp, helpers.convnet])
def test_feedback_has_the_signs_of_the_weights(rule, case):
    """Documented contract: `sign B = sign W` entry by entry, today's weights, every map."""
    case = case()
    _, state = rule.init(jax.random.key(0), *case)
    for sign in (1, -1):
        params = jax.tree.map(lambda leaf, sign=sign: sign * np.asarray(leaf), case.params)
        B = feedback(rule, case, state, params=params)
        W = kernels(case.model, params)
        helpers.assert_identical(jax.tree.map(np.sign, B), jax.tree.map(np.sign, W))


def test_uniform_sign_has_one_magnitude():
    """Closed form: every entry of B is `+- s / sqrt(fan_in)`, also in a convolution (3 x 3 x 2 in)."""
    case = helpers.convnet()
    B = feedback(UniformSign(feedback_scale=2.0), case, ())
    fan_in = {"layer_0/Conv_0": 3 * 3 * 2, "layer_1/Conv_0": 3 * 3 * 3, "readout": 2 * 2 * 4}
    for name, n in fan_in.items():
        np.testing.assert_allclose(np.abs(B[name]), 2 / np.sqrt(n), rtol=1e-6)


def test_fixed_random_sign_keeps_its_magnitudes():
    """Documented contract: `|B|` is what `init` drew, whatever the weights and the step's key do."""
    case = helpers.mlp()
    rule = FixedRandomSign()
    _, state = rule.init(jax.random.key(0), *case)
    moved = jax.tree.map(lambda leaf: leaf * 1.7 - 0.1, case.params)
    later = feedback(rule, case, state, key=1, params=moved)
    helpers.assert_identical(jax.tree.map(jnp.abs, later), state)
    assert min(leaf.min() for leaf in jax.tree.leaves(state)) > 0


def test_batchwise_random_sign_draws_for_every_step():
    """Documented contract: magnitudes are fresh per key, and the same for the same key."""
    case = helpers.mlp()
    rule = BatchwiseRandomSign()
    first, again, second = (feedback(rule, case, (), key) for key in (0, 0, 1))
    helpers.assert_identical(first, again)
    for name in first:
        assert np.all(np.abs(first[name]) != np.abs(second[name])), name
    steps = [helpers.estimate(rule, case, case.params, (), seed=seed).grads for seed in (0, 1)]
    moved = [grads["layer_0"]["Dense_0"]["kernel"] for grads in steps]
    assert np.abs(moved[0] - moved[1]).max() > 1e-4


@pytest.mark.parametrize("rule", RULES[:2], ids=lambda rule: type(rule).__name__)
def test_gradients_match_numpy(x64, rule):
    """Independent implementation: the NumPy chain with `B = M sign(W)`, magnitudes by definition."""
    case = helpers.made(MLP((7, 6, 5), 3), "layer_*", helpers.images())
    params, state = helpers.started(rule, case)
    B = []
    for name, W in kernels(case.model, params).items():
        magnitude = np.abs(state[name]) if state else W.shape[0] ** -0.5
        B.append(magnitude * np.sign(W))
    expected = reference.chain(params, B, *case.batch, "tanh")
    helpers.assert_close(helpers.estimate(rule, case, params, state).grads, expected, 1e-12)
