"""Gradient guesses: the projection of a true slope on a proposed direction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.models import MLP
from dfa_jax.rules import GradientGuess, functional
from tests import helpers

LOWER = ("layer_0", "layer_1")


def three():
    """Three hidden layers, so two guesses."""
    return helpers.made(MLP((7, 6, 5), 3), "layer_*", helpers.images())


def prepared(rule, case):
    """Parameters, state, and what the classifiers are."""
    params, state = helpers.started(rule, case)
    return params, state, params.get("local_heads", state)


def written_out(params, heads, batch, block):
    """Activities of an `MLP`; each example's loss of the outputs, and of a block's classifier, as
    functions of that block's activity, in plain `jax.numpy`."""

    def forward(h, start):
        for i in range(start, 3):
            dense = params[f"layer_{i}"]["Dense_0"]
            h = jnp.tanh(h @ dense["kernel"] + dense["bias"][None])
            if i == block and start == 0:
                return h
        top = params["readout"]
        return helpers.LOSS(h @ top["kernel"] + top["bias"][None], batch.targets)

    def local(h):
        head = heads[f"layer_{block}"]
        return helpers.LOSS(h @ head["kernel"] + head["bias"][None], batch.targets)

    return forward(batch.inputs, 0), lambda h: forward(h, block + 1), local


@pytest.mark.parametrize("guess", ["local", "fixed"])
def test_errors_are_projections_example_by_example(x64, guess):
    """Independent implementation: both gradients by `jax.grad` of plain code, projected in NumPy."""
    case, rule = three(), GradientGuess(guess=guess)
    params, state, heads = prepared(rule, case)

    @jax.jit
    def errors(params, state, batch):
        return functional.estimate(
            rule, case.model, helpers.LOSS, params, state, (), batch, jax.random.key(0)
        ).errors

    @jax.jit
    def slopes(params, heads, batch):
        """The true gradient at each lower block, and the guess, example by example."""
        found = []
        for block in range(len(LOWER)):
            h, *losses = written_out(params, heads, batch, block)
            found.append([jax.grad(lambda h, f=f: f(h).sum())(h) for f in losses])
        return found

    found = errors(params, state, case.batch)
    pairs = jax.tree.map(np.asarray, slopes(params, heads, case.batch))
    for site, (true, guessed) in zip(LOWER, pairs, strict=True):
        scale = (true * guessed).sum(1, keepdims=True) / (guessed**2).sum(1, keepdims=True)
        helpers.assert_close(found[site], scale * guessed / len(true), 1e-10)


def test_the_last_block_and_the_readout_learn_exactly():
    """Exact equivalence: backpropagation's gradients, in either space."""
    case = three()
    true = helpers.backprop(case)
    for space in ("activities", "weights"):
        rule = GradientGuess(space=space)
        params, state, _ = prepared(rule, case)
        grads = helpers.estimate(rule, case, params, state).grads
        for part in ("layer_2", "readout"):
            helpers.assert_close(grads[part], true[part], 1e-5)


@pytest.mark.parametrize("space", ["activities", "weights"])
def test_blocks_may_end_in_front_of_a_layer(space):
    """Exact equivalence, as above, for a module whose activations are functions: the last block is
    the layer in front of the last site."""

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = jnp.tanh(nn.Dense(7)(x))
            h = jnp.tanh(nn.Dense(6)(h))
            return nn.Dense(3)(h)

    case = helpers.made(Compact(), ["Dense_1:input", "Dense_2:input"], helpers.images())
    rule = GradientGuess(space=space)
    params, state, _ = prepared(rule, case)
    grads, true = helpers.estimate(rule, case, params, state).grads, helpers.backprop(case)
    for part in ("Dense_1", "Dense_2"):
        helpers.assert_close(grads[part], true[part], 1e-5)
    assert not np.allclose(grads["Dense_0"]["kernel"], true["Dense_0"]["kernel"], rtol=1e-3)


@pytest.mark.parametrize("space", ["activities", "weights"])
def test_a_local_target_is_hit_by_its_own_gradient(x64, space):
    """Exact equivalence: the projection of a gradient on itself: greedy local backpropagation."""
    case, rule = three(), GradientGuess(target="local", space=space)
    params, state, heads = prepared(rule, case)
    grads = helpers.estimate(rule, case, params, state).grads
    for block, site in enumerate(LOWER):

        def loss(dense, block=block):
            moved = params | {f"layer_{block}": {"Dense_0": dense}}
            h, _, local = written_out(moved, heads, case.batch, block)
            return local(h).mean()

        expected = jax.jit(jax.grad(loss))(params[site]["Dense_0"])
        helpers.assert_close(grads[site]["Dense_0"], expected, 1e-10)


@pytest.mark.slow
def test_weight_guesses_are_projections_block_by_block(x64):
    """Independent implementation: the true gradient projected on the local one, one block a vector."""
    case, rule = three(), GradientGuess(space="weights")
    params, state, _ = prepared(rule, case)
    grads = helpers.estimate(rule, case, params, state).grads
    local = helpers.estimate(GradientGuess(target="local", space="weights"), case, params, state)
    true = helpers.backprop(case)
    for site in LOWER:
        flat = [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(part[site])])
            for part in (grads, local.grads, true)
        ]
        expected = (flat[1] @ flat[2]) / (flat[1] @ flat[1]) * flat[1]
        np.testing.assert_allclose(flat[0], expected, atol=1e-12)


@pytest.mark.slow
def test_random_guesses_are_unbiased():
    """Statistical test: over 4,000 steps the mean error is within 5 standard deviations of the true
    one in every entry; a factor of 0.8 would be seen in the entries above 0.1 of the largest."""
    case, rule = three(), GradientGuess(guess="random")

    def errors(key):
        return functional.estimate(
            rule, case.model, helpers.LOSS, case.params, (), (), case.batch, key
        ).errors["layer_0"]

    found = np.asarray(jax.jit(jax.vmap(errors))(jax.random.split(jax.random.key(0), 4000)), float)
    h, target, _ = written_out(case.params, {}, case.batch, 0)
    true = np.asarray(jax.grad(lambda h: target(h).mean())(h))
    z = (found.mean(0) - true) / (found.std(0) / np.sqrt(len(found)))
    assert np.abs(z).max() < 5
    large = np.abs(true) > 0.1 * np.abs(true).max()
    assert np.abs((0.8 * true - true) / (found.std(0) / np.sqrt(len(found))))[large].max() > 5


def test_who_keeps_the_classifiers():
    """Documented contract: trained ones are parameters and get a gradient, fixed ones are state."""
    case = three()
    params, state, _ = prepared(GradientGuess(), case)
    assert set(params["local_heads"]) == set(LOWER)
    assert state == ()
    grads = helpers.estimate(GradientGuess(), case, params, state).grads["local_heads"]
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(grads))
    params, state, _ = prepared(GradientGuess(guess="fixed"), case)
    assert "local_heads" not in params
    assert set(state) == set(LOWER)


def test_one_block_is_refused():
    """Documented contract: there is nothing below the last block to guess."""
    case = helpers.made(MLP((7,), 3), "layer_*", helpers.images())
    with pytest.raises(InputError, match="one block is layer_0; gradient guesses"):
        prepared(GradientGuess(), case)
