"""What must not happen: no error crosses a cut, and no transposed weight is read."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import autodiff
from dfa_jax.models import MLP
from dfa_jax.rules import (
    RULES,
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    SiteRule,
    functional,
)
from tests import helpers

SITE_RULES = [name for name, kind in RULES.items() if issubclass(kind, SiteRule)]


@jax.custom_vjp
def poison(h):
    """The identity, whose backward pass gives NaN."""
    return h


poison.defvjp(lambda h: (h, None), lambda _, error: (jnp.full_like(error, jnp.nan),))


class Poisoned(nn.Module):
    """Two layers with a site each; whatever crosses back into a site's output becomes NaN."""

    active: bool = True

    @nn.compact
    def __call__(self, x):
        h = x
        for i in range(2):
            h = nn.Dense(6, name=f"dense_{i}")(h)
            h = jnp.tanh(poison(h) if self.active else h)
        return nn.Dense(3, name="readout")(h)


def is_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SITE_RULES)
def test_no_cotangent_crosses_a_cut(name):
    """Proof of absence: NaN in the cotangent behind each site breaks BP, and no bit of a site rule.

    Zeroing the error instead of cutting would fail here (0 * NaN), as would adding to it.
    """
    rule = RULES[name]()
    case = helpers.made(Poisoned(), "dense_*", helpers.images())
    clean = helpers.made(Poisoned(active=False), "dense_*", helpers.images())
    params, state = helpers.started(rule, case)
    broken = helpers.estimate(Backprop(), case, case.params, ()).grads
    assert not is_finite(broken["dense_0"])
    assert not is_finite(broken["dense_1"])
    found = helpers.estimate(rule, case, params, state).grads
    assert is_finite(found)
    helpers.assert_identical(found, helpers.estimate(rule, clean, params, state).grads)


WIDTHS, INPUTS, OUTPUTS, EXAMPLES = (11, 13, 17), 7, 5, 3


def distinct():
    """Every width is another prime, so each product of matrices has shapes of its own."""
    batch = helpers.images(num=EXAMPLES, shape=(INPUTS,), classes=OUTPUTS)
    return helpers.made(MLP(WIDTHS, OUTPUTS), "layer_*", batch)


def products(rule, case):
    """Shapes of both operands of every matrix product in a rule's step, before XLA removes any."""
    params, state = helpers.started(rule, case)
    lowered = jax.jit(
        lambda params, state, batch: (
            functional.estimate(
                rule, case.model, helpers.LOSS, params, state, (), batch, jax.random.key(0)
            ).grads
        )
    ).lower(params, state, case.batch)
    return re.findall(
        r"stablehlo.dot_general.*?: \(tensor<(\d+x\d+)xf32>, tensor<(\d+x\d+)xf32>\)",
        lowered.as_text(),
    )


def transposed_reads(found):
    """Upper layers whose weight `[d_in, d_out]` meets an error `[examples, d_out]`."""
    sizes = [*WIDTHS, OUTPUTS]
    reads = []
    for d_in, d_out in itertools.pairwise(sizes):
        error, weight = f"{EXAMPLES}x{d_out}", {f"{d_in}x{d_out}", f"{d_out}x{d_in}"}
        if any(error in pair and weight & set(pair) for pair in found):
            reads.append((d_in, d_out))
    return reads


@pytest.mark.parametrize("name", SITE_RULES)
def test_no_transposed_weight_is_read(name):
    """Proof of absence: among the step's matrix products BP has `delta W^T` for each upper layer.

    No site rule has a single one (`B_l` is `[5, d_l]`, of shape `W_l^T` for none but the top layer,
    where W^T would show as the second product of its shapes).
    """
    case = distinct()
    every = [(11, 13), (13, 17), (17, 5)]
    assert transposed_reads(products(Backprop(), case)) == every
    found = products(RULES[name](), case)
    top = [pair for pair in found if {"3x5"} & set(pair) and {"17x5", "5x17"} & set(pair)]
    projections = 0 if name == "shallow" else 1
    assert len(top) == projections
    assert [layer for layer in transposed_reads(found) if layer != (17, 5)] == []


def test_feedback_alignment_does_not_read_upper_weights():
    """Proof of absence: in a linear network with a fixed error FA's lower gradients ignore upper W.

    All that a lower layer could learn of an upper one is its transposed weight; BP's gradient moves.
    """
    case = helpers.made(MLP((7, 6, 5), 3, "linear"), "layer_*", helpers.images())
    targets = helpers.normals(np.zeros((16, 3)), 5)
    case = case._replace(batch=case.batch._replace(targets=targets))
    upper = ("layer_1", "layer_2", "readout")
    moved = case.params | {name: jax.tree.map(np.exp, case.params[name]) for name in upper}

    def linear(outputs, targets):
        return (outputs * targets).sum(-1)  # dL/dy does not depend on the outputs

    rule = FeedbackAlignment()
    _, state = helpers.started(rule, case)
    fixed = helpers.estimator(rule, case, linear)
    helpers.assert_identical(
        fixed(case.params, state).grads["layer_0"], fixed(moved, state).grads["layer_0"]
    )
    true = helpers.estimator(Backprop(), case, linear)
    change = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        true(case.params, ()).grads["layer_0"],
        true(moved, ()).grads["layer_0"],
    )
    assert min(jax.tree.leaves(change)) > 1e-2


class TheirBlock(nn.Module):
    """A residual block from somebody else's repository."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        y = nn.Dense(self.hidden)(y)
        y = nn.Dense(x.shape[-1])(nn.silu(y))
        return x + y


class TheirNet(nn.Module):
    """Pre-norm residual network, Flax only; knows nothing of sites."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        for _ in range(3):
            x = TheirBlock(12)(x)
        return nn.Dense(3)(nn.LayerNorm()(x))


SITES = ["Dense_0", "TheirBlock_*"]


def test_nothing_leaks_across_a_site_of_a_third_party_module():
    """Proof of absence: moving all weights above a site, errors held fixed, moves no bit below it.

    Skip connections go around modules; a cut that misses one lets the true error through.
    """
    case = helpers.made(TheirNet(), SITES, helpers.images())
    drawn = {s: helpers.normals(np.zeros((16, 8)), i) for i, s in enumerate(case.model.sites)}

    @jax.jit
    def gradients(params):
        send = lambda error, activities, shares: drawn  # noqa: E731
        return autodiff.site_gradients(case.model, helpers.LOSS, params, case.batch, send).grads

    before = gradients(case.params)
    order = ["Dense_0", "TheirBlock_0", "TheirBlock_1", "TheirBlock_2", "LayerNorm_0", "Dense_1"]
    assert set(order) == set(case.params)
    for i in range(1, len(order)):
        above = {
            name: jax.tree.map(
                lambda w: np.float32(1.5) * np.asarray(w) + np.float32(0.3), case.params[name]
            )
            for name in order[i:]
        }
        after = gradients(case.params | above)
        for name in order[:i]:
            if name in case.model.sites:
                helpers.assert_identical(after[name], before[name])
        assert np.abs(after["Dense_1"]["kernel"] - before["Dense_1"]["kernel"]).max() > 1e-4


def test_a_path_around_a_site_does_leak():
    """The test above can fail: a skip around a block that is no site brings the true error down."""
    case = helpers.made(TheirNet(), ["TheirBlock_1"], helpers.images())
    rule = DirectFeedbackAlignment()
    params, state = helpers.started(rule, case)
    zero = jax.tree.map(np.zeros_like, state)
    found = helpers.estimate(rule, case, params, zero).grads
    assert np.abs(found["TheirBlock_0"]["Dense_0"]["kernel"]).max() == 0
    assert np.abs(found["TheirBlock_2"]["Dense_0"]["kernel"]).max() > 0
