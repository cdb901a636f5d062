"""A convolution as a matrix, and how far it can align with random feedback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.theory import convolution


@pytest.mark.parametrize(("size", "kernel", "stride"), [(6, 3, 1), (7, 2, 2), (8, 4, 3)])
def test_matrix_acts_as_the_convolution(x64, size, kernel, stride):
    """Independent implementation: `lax.conv_general_dilated`."""
    rng = np.random.default_rng(0)
    x, W = rng.normal(size=(1, size, size, 3)), rng.normal(size=(kernel, kernel, 3, 4))

    @jax.jit
    def both(x, W):
        orders = ("NHWC", "HWIO", "NHWC")
        output = jax.lax.conv_general_dilated(
            x, W, (stride,) * 2, "VALID", dimension_numbers=orders
        )
        return output, convolution.toeplitz(W, size, stride)

    expected, matrix = both(x, W)
    np.testing.assert_allclose(np.einsum("abc,abcpqo->pqo", x[0], matrix), expected[0], atol=1e-12)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "local"])
def test_reach_by_least_squares(x64, shared):
    """Independent implementation: least squares over all weights, with the map as dense columns."""
    size, kernel = 5, 3
    target = np.random.default_rng(1).normal(size=(size, size, 2, 3, 3, 2))
    if shared:
        basis = np.eye(kernel * kernel * 4).reshape(-1, kernel, kernel, 2, 2)
        matrices = jax.jit(jax.vmap(lambda b: convolution.toeplitz(b, size)))(basis)
        columns = np.reshape(matrices, (len(basis), -1)).T
    else:
        ones = jax.device_put(np.ones((kernel, kernel, 2, 2)))
        used = np.asarray(convolution.toeplitz(ones, size)).reshape(-1)
        columns = np.eye(len(used))[:, used > 0]
    fit, *_ = np.linalg.lstsq(columns, target.reshape(-1), rcond=None)
    expected = np.linalg.norm(columns @ fit) / np.linalg.norm(target)
    found = convolution.reachable_alignment(jax.device_put(target), kernel, shared=shared)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_kernel_reaches_itself(x64):
    """Closed form: the cosine of a convolution's own matrix is 1."""
    W = jax.device_put(np.random.default_rng(2).normal(size=(3, 3, 2, 2)))
    matrix = convolution.toeplitz(W, 7, 2)
    np.testing.assert_allclose(convolution.reachable_alignment(matrix, 3, 2), 1, rtol=1e-12)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "local"])
def test_expected_reach_of_random_feedback(shared):
    """Statistical test: the root mean square over 20 draws is `k / (d_in d_out)` within 10 %.

    The squares are sums of hundreds of products, each draw is within 10 % or so of the mean, and a
    bound that depended on the channels or classes would be off by factors.
    """
    keys = jax.random.split(jax.random.key(0), 20)
    size, kernel = 12, 3
    out = convolution.output_size(size, kernel)

    def reach(key):
        target = convolution.random_target(key, size, 3, out, 4, 10)
        return convolution.reachable_alignment(target, kernel, shared=shared)

    found = np.sqrt(np.mean(np.asarray(jax.lax.map(jax.jit(reach), keys)) ** 2))
    expected = convolution.expected_alignment(size, kernel, shared=shared)
    np.testing.assert_allclose(found, expected, rtol=0.1)
    assert expected == pytest.approx(3 / (12 * 10) if shared else 3 / 12)


def test_sizes_refused():
    """Documented contract: a kernel fits in, and the target has the sizes that it makes."""
    with pytest.raises(InputError, match="kernel_size is 9"):
        convolution.output_size(8, 9)
    with pytest.raises(InputError, match="6 input and 6 output"):
        convolution.reachable_alignment(jnp.zeros((6, 6, 1, 6, 6, 1)), 3)
