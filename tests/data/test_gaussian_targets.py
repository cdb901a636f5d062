"""`GaussianTargets`: white inputs, and targets with a covariance of their own."""

import numpy as np
import pytest

from dfa_jax.data import GaussianTargets
from dfa_jax.errors import InputError


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.2, 0.6), (0.5, 0.0)])
def test_covariance(alpha, beta):
    """Statistical test: all second moments of x and y, to 5 deviations of 40,000 examples (0.025).

    Independence of x and y is what makes memorising the only way to a small error.
    """
    found = GaussianTargets(alpha, beta, num_train=40_000).load()
    x, y = found.train
    assert (x.shape, y.shape, x.dtype, y.dtype) == ((40_000, 9), (40_000, 2), "float32", "float32")
    covariance = np.cov(np.concatenate([x, y], 1).T)
    expected = np.eye(11)
    expected[9:, 9:] = [[1, alpha * (1 - beta)], [alpha * (1 - beta), alpha**2]]
    np.testing.assert_allclose(covariance, expected, atol=5 / np.sqrt(40_000))


def test_seed_decides():
    """Invariant: the same seed draws the same examples, another one others; train is not test."""
    first, again, other = (GaussianTargets(num_train=5, seed=s).load() for s in (0, 0, 1))
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert not np.array_equal(first.train.inputs, other.train.inputs)
    assert not np.array_equal(first.train.inputs, first.test.inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"beta": -0.1}, "beta -0.1"),
        ({"num_train": 0}, "num_train is 0"),
    ],
)
def test_refused(fields, message):
    """Documented contract: the value, and the range."""
    with pytest.raises(InputError, match=message):
        GaussianTargets(**fields)
