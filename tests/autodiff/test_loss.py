"""The objective: what a loss function returns, as one scalar, and which part each example has."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import losses
from dfa_jax.autodiff import loss as of_loss
from dfa_jax.errors import InputError
from dfa_jax.models import MLP, from_linen
from dfa_jax.rules import Backprop, functional
from dfa_jax.types import Batch, Loss
from tests import helpers

VALUES = np.float32([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (VALUES, 63 / 6),
        (np.float32(3.0), 3.0),
        (Loss(VALUES, np.float32([[1, 0, 0], [0, 0, 1]])), 33 / 2),
        (Loss(VALUES, np.float32([1, 0])), 7 / 3),  # an example counts for all of its positions
        (Loss(VALUES, np.array([False, True])), 56 / 3),
        (Loss(VALUES, np.float32([[1], [3]])), (7 + 3 * 56) / 12),
        (Loss(VALUES[0], np.float32([0.5, 0.5, 0])), 1.5),
        (Loss(VALUES, None, np.float32(0.5)), 63 / 6 + 0.5),
        (Loss(VALUES, np.zeros((2, 3), np.float32), np.float32(0.5)), 0.5),
    ],
)
def test_the_scalar_of_a_loss(loss, expected):
    """Closed form: `sum(w v) / sum(w) + extra`, weights by their leading axes."""
    found = of_loss.as_loss(jax.tree.map(jnp.asarray, loss))
    np.testing.assert_allclose(of_loss.mean(found), expected, rtol=1e-6)
    each = of_loss.contributions(found, min(1, found.values.ndim))
    extra = 0 if found.extra is None else found.extra
    np.testing.assert_allclose(each.sum() + extra, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "front", "expected"),
    [
        (None, (2, 3), np.full((2, 3), 1 / 6)),
        ([[1, 0, 0], [0, 1, 2]], (2, 3), [[0.25, 0, 0], [0, 0.25, 0.5]]),
        ([[1, 0, 0], [0, 1, 2]], (2,), [0.25, 0.75]),
        ([3, 1], (2, 3), [[0.25] * 3, [1 / 12] * 3]),
        ([[1, 0, 0], [0, 1, 2]], (2, 4), [[1 / 16] * 4, [3 / 16] * 4]),  # a position less
        ([[1, 0, 0], [0, 1, 2]], (5,), [0.2] * 5),  # values that have nothing to do with the rows
    ],
)
def test_shares_of_rows(weights, front, expected):
    """Closed form: a row's weight by all weights. A rule that sends targets, or signs, multiplies by
    it: padding would train the network otherwise."""
    loss = Loss(jnp.asarray(VALUES), None if weights is None else jnp.float32(weights))
    found = of_loss.row_shares(of_loss.as_loss(loss), front)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def sequence_model(independent):
    module, x = nn.Sequential([nn.Dense(6), nn.Dense(2)]), jnp.ones((4, 5, 3))
    return from_linen(module, "layers_0", x, independent_axes=independent), jnp.ones((4, 5, 2))


@pytest.mark.parametrize(
    ("loss", "axes"),
    [
        (lambda y, t: jnp.square(y).sum(-1), (0, 1, 2)),
        (lambda y, t: jnp.square(y), (0, 1, 2)),
        (lambda y, t: jnp.square(y).mean((1, 2)), (0, 1, 0)),
        (lambda y, t: jnp.square(y).mean(), (0, 0, 0)),
        (lambda y, t: jnp.square(y).mean(0)[:4], (0, 0, 0)),  # four positions of five, not examples
        (lambda y, t: jnp.square(y).mean((0, 2)), (0, 0, 0)),
        (lambda y, t: jnp.square(y).sum(-1).T, (0, 0, 0)),
        (
            lambda y, t: jnp.square(y).sum(-1) * jnp.ones((4, 1)),
            (0, 0, 0),
        ),  # one size of batch only
        (losses.nt_xent_unstopped, (0, 0, 0)),
    ],
)
def test_axes_along_which_examples_are_told_apart(loss, axes):
    """Documented contract: the model's axes, where the values have them and grow with the batch.

    An axis of equal size that is none of the examples would weigh noise by another example's slope.
    """
    for independent, expected in enumerate(axes):
        if loss is losses.nt_xent_unstopped:
            independent = min(independent, 1)
            x, y = jnp.ones((4, 3)), jnp.ones((4, 2))
            model = from_linen(MLP((6,), 2), "layer_0", x, independent_axes=independent)
        else:
            model, y = sequence_model(independent)
        assert of_loss.example_axes(model, loss, y, ()) == expected


def start(loss, inputs=None, targets=None):
    """What a user does first."""
    batch = Batch(jnp.ones((4, 3)) if inputs is None else inputs, targets)
    model = from_linen(MLP((6,), 2), "layer_0", jnp.ones((4, 3)))
    return functional.init(Backprop(), model, loss, jax.random.key(0), batch)


BAD = {
    "nothing": (lambda y, t: None, "a NoneType; expected real floating-point numbers"),
    "a pair": (lambda y, t: (y, y), "a tuple; expected.*dfa_jax.types.Loss"),
    "integers": (lambda y, t: y.argmax(-1), r"int32 \(4,\); expected real floating-point"),
    "complex": (lambda y, t: jax.lax.complex(y, y), r"complex64 \(4, 2\); expected real"),
    "a vector of extras": (
        lambda y, t: Loss(y, None, y.sum(-1)),
        r"extra is \(4,\); expected a scalar",
    ),
    "weights of other axes": (
        lambda y, t: Loss(y, jnp.ones(2)),
        r"weights are \(2,\) and its values \(4, 2\).*leading axes",
    ),
    "no weight at all": (
        lambda y, t: Loss(y, jnp.zeros(4)),
        "weights of the loss sum to 0 on the first batch",
    ),
    "NaN": (lambda y, t: jnp.log(-jnp.square(y) - 1), "nan before any step.*check the loss"),
    "infinite": (lambda y, t: y / 0, "before any step"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_loss_that_no_rule_can_descend_is_refused_at_the_start(name):
    """Documented contract: one line that says what was found and what will do, before any step."""
    loss, words = BAD[name]
    with pytest.raises(InputError, match=words):
        start(loss)


def test_an_empty_batch():
    """Documented contract: a mean over nothing is named as such."""
    with pytest.raises(InputError, match="the batch is empty"):
        start(helpers.LOSS, jnp.ones((0, 3)), jnp.zeros(0, int))
