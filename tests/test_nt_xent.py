"""NT-Xent: a double loop in NumPy, finite differences, and what a stopped comparison leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dfa_jax.errors import InputError
from dfa_jax.losses import NTXent, nt_xent, nt_xent_unstopped
from tests import helpers
from tests.train import small

BOTH = pytest.mark.parametrize("loss", [nt_xent, nt_xent_unstopped], ids=["stopped", "unstopped"])


def rows(num=6, features=5, seed=0):
    return helpers.normals(np.zeros((num, features)), seed, 3.0)


def by_hand(x, compared=None, temperature=0.5):
    """The definition, a pair of rows at a time; rows are compared with those of `compared`."""
    x = np.asarray(x, np.float64)
    compared = x if compared is None else np.asarray(compared, np.float64)
    losses = np.empty(len(x))
    for a in range(len(x)):
        similarity = {}
        for b in range(len(x)):
            lengths = np.sqrt(x[a] @ x[a]) * np.sqrt(compared[b] @ compared[b])
            similarity[b] = x[a] @ compared[b] / lengths / temperature
        partner = a + 1 if a % 2 == 0 else a - 1
        others = sum(np.exp(similarity[b]) for b in similarity if b != a)
        losses[a] = -np.log(np.exp(similarity[partner]) / others)
    return losses


@pytest.mark.parametrize("num", [4, 10])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize("stopped", [True, False])
def test_value_is_that_of_a_double_loop(x64, num, temperature, stopped):
    """Independent implementation: the definition in double-precision NumPy."""
    x, loss = rows(num), NTXent(temperature, stopped)
    expected = by_hand(x, temperature=temperature)
    np.testing.assert_allclose(jax.jit(loss)(x, None), expected, rtol=1e-12, atol=1e-12)


def differences(f, x, step=1e-6):
    """Gradient of a scalar function by central differences."""
    x, found = np.asarray(x, np.float64), np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        moved = np.zeros(x.shape)
        moved[place] = step
        found[place] = (f(x + moved) - f(x - moved)) / (2 * step)
    return found


@BOTH
def test_gradient_is_that_of_finite_differences(x64, loss):
    """Independent implementation: central differences of the double loop, whose other side is held
    fixed where it is stopped. They are good to 1e-9 or so; twice the gradient (a common slip) is
    not the answer of either."""
    x = rows()
    weights = np.linspace(1, 2, len(x))  # of the rows, so that they cannot stand for each other
    fixed = x if loss is nt_xent else None
    expected = differences(lambda y: weights @ by_hand(y, fixed), x)
    found = jax.jit(jax.grad(lambda y: (weights * loss(y, None)).sum()))(x)
    helpers.assert_close(found, expected, 1e-7)


def test_stopped_rows_have_no_derivative_by_each_other():
    """Proof of absence: bits. One slope an example is the whole derivative, as replicated losses
    and forward gradients need; without the stop every pair of rows is coupled."""
    for loss, coupled in ((nt_xent, False), (nt_xent_unstopped, True)):
        jacobian = jax.jit(jax.jacrev(lambda x, loss=loss: loss(x, None)))(rows())
        forwards = jax.jit(jax.jacfwd(lambda x, loss=loss: loss(x, None)))(rows())
        helpers.assert_close(forwards, jacobian, 1e-5)
        moves = np.abs(jacobian).max(-1) > 0  # [row's loss, row]
        np.testing.assert_array_equal(moves, np.ones((6, 6)) if coupled else np.eye(6))
        assert loss.couples_examples is coupled


@BOTH
def test_eight_devices_equal_one(loss):
    """Exact equivalence, up to the order of float32 sums: rows sharded over eight devices. The
    negatives of a row are all rows of the whole batch, wherever they lie."""
    x, x_dot = rows(32), rows(32, seed=1)

    @jax.jit
    def all_of_it(x, x_dot):
        value, slope = jax.jvp(lambda x: loss(x, None), (x,), (x_dot,))
        return value, slope, jax.grad(lambda x: loss(x, None).mean())(x)

    over_rows = NamedSharding(small.mesh(8), PartitionSpec("data"))
    split = all_of_it(*jax.device_put((x, x_dot), over_rows))
    helpers.assert_close(split, all_of_it(x, x_dot), 1e-5)


def test_half_precision_and_extreme_rows():
    """Closed form at zero rows: all similarities are 0, the loss is log(rows - 1) and nothing moves.
    bf16 against f32 is a few roundings of 2^-8."""
    x, loss = np.asarray(rows()), jax.jit(nt_xent)
    found = loss(x.astype(jnp.bfloat16), None)
    assert found.dtype == jnp.bfloat16
    helpers.assert_close(found, loss(x, None), 0.03)
    value_and_error = jax.jit(jax.value_and_grad(lambda x: nt_xent(x, None).sum()))
    value, error = value_and_error(np.zeros_like(x))
    np.testing.assert_allclose(value, 6 * np.log(5), rtol=1e-6)
    np.testing.assert_array_equal(error, 0)
    large, error = value_and_error(np.float32(1e15) * x)
    np.testing.assert_allclose(large, np.sum(loss(x, None)), rtol=1e-5)
    assert np.isfinite(error).all()


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_too_few_or_odd_rows_are_refused(num):
    """Documented contract: two rows have no negative, and an odd one no partner."""
    with pytest.raises(InputError, match=rf"given {num} row.*two views of each.*two_views"):
        nt_xent(jnp.ones((num, 3)), None)


def test_temperature_that_cannot_be():
    """Documented contract."""
    with pytest.raises(InputError, match="temperature is 0.0; expected a positive number"):
        NTXent(temperature=0.0)
