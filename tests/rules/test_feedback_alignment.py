"""Feedback alignment on dense, convolutional and attention maps."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import autodiff
from dfa_jax.models import MLP
from dfa_jax.rules import FeedbackAlignment
from dfa_jax.rules.base import kernels
from dfa_jax.types import Batch
from tests import helpers, reference


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_match_numpy(x64, activation):
    """Independent implementation: `delta_{l-1} = (delta_l B_l^T) phi'` in NumPy, to 1e-12."""
    case = helpers.made(MLP((7, 6, 5), 3, activation), "layer_*", helpers.images())
    rule = FeedbackAlignment()
    params, state = helpers.started(rule, case)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, kernels(case.model, params))
    feedback = [np.asarray(state[name]) for name in case.model.linear_maps]
    expected = reference.chain(params, feedback, *case.batch, activation)
    helpers.assert_close(helpers.estimate(rule, case, params, state).grads, expected, 1e-12)


class Attention(nn.Module):
    """Attention with a skip connection, then a general dense map over two axes."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8, name="embed")(x)
        h = h + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm()(h))
        heads = jnp.tanh(nn.DenseGeneral((2, 3), name="split")(h))
        return nn.DenseGeneral(3, axis=(-2, -1), name="join")(heads)


def attention():
    batch = Batch(
        jax.random.normal(jax.random.key(0), (4, 5, 6)),
        jax.random.randint(jax.random.key(1), (4, 5), 0, 3),
    )
    return helpers.made(Attention(), ["embed", "attention"], batch)


@pytest.mark.parametrize("case", [helpers.mlp, helpers.convnet, helpers.scanned, attention])
def test_own_weights_as_feedback_give_backprop(x64, case):
    """Exact equivalence: `B = W` is backpropagation, through every kind of linear map.

    It shows that nothing but the transpose is replaced: strides, heads, biases, skips stay.
    """
    case = case()
    own = kernels(case.model, case.params)
    found = helpers.estimate(FeedbackAlignment(), case, case.params, own)
    helpers.assert_close(found.grads, helpers.backprop(case), 1e-12)


@pytest.mark.parametrize("case", [helpers.mlp, helpers.convnet, helpers.scanned, attention])
def test_every_linear_map_gets_a_matrix(case):
    """Invariant: another matrix at any one map changes some gradient below it (the first map: none).

    A map that the survey missed would keep its true transpose, and FA would quietly be half BP.
    """
    case = case()
    rule = FeedbackAlignment()
    params, state = helpers.started(rule, case)
    owners = {
        "/".join(str(key.key) for key in path[:-1])
        for path, _ in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel"
    }
    assert set(state) == owners
    run = helpers.estimator(rule, case)
    before = run(params, state).grads
    for i, name in enumerate(case.model.linear_maps):
        after = run(params, state | {name: -np.asarray(state[name])}).grads
        changed = jax.tree.map(
            lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), before, after
        )
        assert any(jax.tree.leaves(changed)) == (i > 0), name


def convolution(strides, padding, groups, dilation):
    return nn.Conv(
        4,
        (3, 2),
        strides=strides,
        padding=padding,
        feature_group_count=groups,
        kernel_dilation=dilation,
    )


class Behind(nn.Module):
    """A dense map, then one other linear map whose output is flattened."""

    second: nn.Module

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="first")(x)
        return self.second(h).reshape(x.shape[0], -1)


def inner_product(outputs, targets):
    return (outputs * targets).sum(-1)


def error_at_input(module):
    """The error that FA delivers in front of `second`, its matrix, and the error behind it."""
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    outputs = jax.eval_shape(lambda: Behind(module).init_with_output(jax.random.key(0), x)[0])
    batch = Batch(x, jax.random.normal(jax.random.key(1), outputs.shape))
    case = helpers.made(Behind(module), "second:input", batch)
    _, state = helpers.started(FeedbackAlignment(), case)
    errors = jax.jit(autodiff.chain_gradients, static_argnums=(0, 1))(
        case.model, inner_product, case.params, batch, state
    ).errors
    return errors["second:input"], state["second"], batch.targets / 2


@functools.partial(jax.jit, static_argnums=0)
def transposed(forward, error):
    """The error in front of a linear map, from the one behind it, by `jax.vjp`."""
    y, pull = jax.vjp(forward, jnp.zeros((2, 7, 6, 4)))
    return pull(error.reshape(y.shape))[0]


@pytest.mark.parametrize(
    ("strides", "padding", "groups", "dilation"),
    [
        ((1, 1), "SAME", 1, (1, 1)),
        ((2, 1), "VALID", 1, (1, 1)),
        ((2, 2), "SAME", 2, (1, 1)),
        ((1, 2), ((1, 0), (0, 2)), 4, (2, 1)),
    ],
)
def test_convolution_matches_lax(x64, strides, padding, groups, dilation):
    """Independent implementation: `jax.vjp` of `lax.conv_general_dilated` with B in place of W.

    Strides, padding and groups all shape the transpose; a wrong one still has the right size.
    """
    found, B, error = error_at_input(convolution(strides, padding, groups, dilation))

    def forward(x):
        return jax.lax.conv_general_dilated(
            x,
            B,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    helpers.assert_close(found, transposed(forward, error), 1e-12)


def test_transposed_convolution_matches_lax(x64):
    """Independent implementation: as above for `lax.conv_transpose`."""
    module = nn.ConvTranspose(5, (3, 3), strides=(2, 2), padding="SAME")
    found, B, error = error_at_input(module)

    def forward(x):
        return jax.lax.conv_transpose(x, B, (2, 2), "SAME")

    helpers.assert_close(found, transposed(forward, error), 1e-12)


class FromBytes(nn.Module):
    """Two layers, the first of which reads integers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(jnp.tanh(nn.Dense(5, name="first")(x)))


def test_integer_inputs_need_no_feedback():
    """Exact equivalence: images as bytes give the gradients of the same images as floats.

    No error goes to integers, and asking for their transpose is an error in JAX.
    """
    levels = np.random.default_rng(0).integers(10, size=(16, 8))
    labels = helpers.images().targets
    found = []
    for dtype in (jnp.float32, jnp.uint8):
        case = helpers.made(FromBytes(), "first", Batch(jnp.asarray(levels, dtype), labels))
        rule = FeedbackAlignment()
        found.append(helpers.estimate(rule, case, *helpers.started(rule, case)).grads)
    helpers.assert_close(found[1], found[0], 1e-6)
