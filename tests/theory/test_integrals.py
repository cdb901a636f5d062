"""The Gaussian integrals, against quadrature, sampling and each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from dfa_jax.errors import InputError
from dfa_jax.theory import activations, relu
from tests.theory import quadrature

C = np.array(
    [[1, 0.3, 0.2, -0.1], [0.3, 0.8, -0.25, 0.4], [0.2, -0.25, 1.2, 0.15], [-0.1, 0.4, 0.15, 0.9]]
)
FIXTURES = {
    "erf": {"I2": 0.10108262, "I3": -0.08536796, "J2": 0.33980250, "I4": 0.02503802},
    "relu": {"I2": 0.22543758, "I3": -0.01838084, "J2": 0.30443745},
}
SIZES = {"I2": 2, "I3": 3, "I4": 4, "J2": 2}
INTEGRANDS = {
    "I2": lambda g, d, x: g(x[0]) * g(x[1]),
    "I3": lambda g, d, x: d(x[0]) * x[1] * g(x[2]),
    "I4": lambda g, d, x: d(x[0]) * d(x[1]) * g(x[2]) * g(x[3]),
    "J2": lambda g, d, x: d(x[0]) * d(x[1]),
}
COINCIDING = [c for c in itertools.product(range(3), repeat=4) if c[0] <= c[1] and c[2] <= c[3]]


def value(activation, name, covariance):
    return float(jax.jit(getattr(activations.get(activation), name))(jnp.asarray(covariance)))


@pytest.mark.parametrize(
    ("activation", "name"), [(a, name) for a, found in FIXTURES.items() for name in found]
)
def test_fixtures(x64, activation, name):
    """Independent implementation: values that another program computed, to all its digits."""
    n = SIZES[name]
    assert value(activation, name, C[:n, :n]) == pytest.approx(FIXTURES[activation][name], abs=1e-8)


def random_covariance(seed, n):
    """Wishart, with correlations of all sizes and variances from 0.1 to 4 or so."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, n)) * rng.uniform(0.3, 1.2, size=(n, 1))
    return factor @ factor.T + 0.05 * np.eye(n)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("activation", ["erf", "linear"])
def test_smooth_integrals_match_quadrature(x64, activation, name):
    """Independent implementation: Gauss-Hermite quadrature at random covariances."""
    g, d = quadrature.FUNCTIONS[activation]

    @settings(max_examples=8, derandomize=True, deadline=None)
    @given(st.integers(0, 10**6))
    def check(seed):
        covariance = random_covariance(seed, SIZES[name])
        covariance /= covariance.max()  # the quadrature's error grows with the variances
        x, weights = quadrature.gaussian(covariance, 24)
        expected = weights @ INTEGRANDS[name](g, d, x.T)
        assert value(activation, name, covariance) == pytest.approx(expected, abs=2e-7)

    check()


@pytest.mark.parametrize("name", SIZES)
def test_relu_integrals_match_sampling(x64, name):
    """Statistical test: 400,000 antithetic samples at three covariances, |z| < 4.5.

    Its power: the mean's standard deviation is about 0.2 % of the values, so 1 % of error is seen.
    """
    g, d = quadrature.FUNCTIONS["relu"]
    for seed in range(3):
        covariance = random_covariance(seed, SIZES[name])
        z = np.random.default_rng(seed).normal(size=(200_000, SIZES[name]))
        x = (z @ np.linalg.cholesky(covariance).T).T
        found = (INTEGRANDS[name](g, d, x) + INTEGRANDS[name](g, d, -x)) / 2
        error = found.std() / np.sqrt(len(z))
        assert abs(value("relu", name, covariance) - found.mean()) < 4.5 * error


@pytest.mark.slow
def test_orthant_matches_scipy(x64):
    """Independent implementation: SciPy's multivariate normal distribution (Genz), to 1e-6."""
    for seed in range(4):
        covariance = random_covariance(seed, 4)
        law = multivariate_normal(np.zeros(4), covariance, abseps=1e-8, releps=1e-8, seed=0)
        found = jax.jit(relu.orthant)(jnp.asarray(covariance))
        np.testing.assert_allclose(found, law.cdf(np.zeros(4)), atol=1e-6)


def test_relu_I4_where_units_coincide(x64):
    """Closed form: with coinciding arguments I4 is an I2 or a variance; a unit meets itself.

    `s(x) g(x) = g(x)`, so `E[s(a) s(b) g(a) g(b)] = I2(a, b)` and `E[s(a) g(a)^2] = c_aa / 2`.
    """
    for a, b in [(0, 1), (0, 2), (1, 2), (2, 2)]:
        pair = value("relu", "I2", C[np.ix_([a, b], [a, b])])
        for order in ([a, b, a, b], [a, a, a, b], [b, b, b, a], [a, b, b, a]):
            found = value("relu", "I4", C[np.ix_(order, order)])
            np.testing.assert_allclose(found, pair, atol=2e-7)


I4 = jax.jit(relu.I4)
I4_SLOPES = jax.jit(jax.grad(relu.I4))  # once for all cases: it takes longest to compile


@pytest.mark.parametrize("units", COINCIDING, ids=lambda u: "".join(map(str, u)))
def test_relu_I4_is_continuous_and_symmetric(x64, units):
    """Invariant: another order of each pair, and a covariance that coincides only nearly.

    The limit is what makes units that meet themselves harmless; derivatives are finite there too.
    """
    exact = C[np.ix_(units, units)]
    swapped = [units[1], units[0], units[3], units[2]]
    near = exact + 1e-7 * np.eye(4)
    np.testing.assert_allclose(I4(C[np.ix_(swapped, swapped)]), I4(exact), atol=2e-7)
    np.testing.assert_allclose(I4(near), I4(exact), atol=2e-3)
    assert np.isfinite(I4_SLOPES(exact)).all()


@pytest.mark.slow
def test_relu_I4_by_price(x64):
    """Closed form: `dI4 / dc34` is the orthant's probability (Price's theorem)."""
    slopes = I4_SLOPES(C)
    slope = slopes[2, 3] + slopes[3, 2]
    np.testing.assert_allclose(slope, relu.orthant(jnp.asarray(C)), atol=1e-6)


def test_unknown_activation():
    """Documented contract: the name, and what there is."""
    with pytest.raises(InputError, match="'tanh'.*erf"):
        activations.get("tanh")
