"""Random directions and what is made of derivatives along them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dfa_jax.autodiff import forward

NOISES = ("gaussian", "rademacher", "sphere")
KEY = jax.random.key(3)
direction = jax.jit(
    forward.direction, static_argnames=("name", "shape", "noise", "num_stack", "num_batch")
)


@pytest.mark.parametrize("noise", NOISES)
def test_directions_have_unit_covariance(noise):
    """Statistical test: means of `u_i u_j` and of `u_i` over 40,000 examples against delta_ij and 0.

    4.5 standard deviations of the worst entry, 0.0225 off the diagonal; a diagonal of 1.05, or a
    correlation of 0.05, is missed with probability below 1e-6.
    """
    u = np.asarray(direction(KEY, "a", (40_000, 7), noise, num_batch=1))
    bound = 4.5 / np.sqrt(len(u))
    covariance = u.T @ u / len(u)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < bound
    assert np.abs(np.diag(covariance) - 1).max() < bound * np.sqrt(2)
    assert np.abs(u.mean(0)).max() < bound


def test_shapes_of_the_distributions():
    """Closed forms: signs have absolute value 1; the sphere has radius sqrt(dim); normal numbers have
    a fourth moment of 3, within 4 of its standard deviations sqrt(96 / n)."""
    signs, sphere, normal = (
        np.asarray(direction(KEY, "a", (500, 33), noise, num_batch=1))
        for noise in ("rademacher", "sphere", "gaussian")
    )
    assert (np.abs(signs) == 1).all()
    np.testing.assert_allclose(np.linalg.norm(sphere, axis=1), np.sqrt(33), rtol=1e-5)
    assert abs((normal**4).mean() - 3) < 4 * np.sqrt(96 / normal.size)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_belongs_to_the_example(noise):
    """Exact equivalence: the first rows of a larger batch are those of a smaller one, with layer axes
    in front too; and another name or key has other noise."""
    small, large = (
        direction(KEY, "a", (2, num, 5, 3), noise, num_stack=1, num_batch=1) for num in (4, 9)
    )
    np.testing.assert_array_equal(small, large[:, :4])
    for key, name in ((KEY, "b"), (jax.random.key(4), "a")):
        other = direction(key, name, (2, 4, 5, 3), noise, num_stack=1, num_batch=1)
        assert not np.array_equal(small, other)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_does_not_know_the_devices(noise):
    """Exact equivalence, bit for bit: drawn on one device, and sharded over eight."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def draw(key):
        return direction(key, "a", (16, 6), noise, num_batch=1)

    np.testing.assert_array_equal(jax.jit(draw)(KEY), jax.jit(draw, out_shardings=split)(KEY))


def test_draws_one_by_one_equal_draws_at_once():
    """Exact equivalence of `scan` and `vmap`; and three draws are the mean of what each gives."""

    def estimate(key):
        return {"a": jax.random.normal(key, (4,))}

    @jax.jit
    def drawn(key):
        ways = [forward.mean_of_draws(estimate, key, 3, draws) for draws in ("scan", "vmap")]
        return *ways, forward.all_draws(estimate, key, 3)

    scanned, mapped, every = drawn(KEY)
    np.testing.assert_allclose(scanned["a"], mapped["a"], rtol=1e-6)
    np.testing.assert_allclose(np.mean(every["a"], 0), mapped["a"], rtol=1e-6)
    assert len(np.unique(every["a"])) == 12


@pytest.mark.parametrize("num_draws", [2, 5, 9])
def test_projection_is_the_nearest_point_of_the_span(x64, num_draws):
    """Independent implementation: NumPy's least squares, example by example; with as many draws as
    dimensions or more it is the gradient itself."""
    rng = np.random.default_rng(0)
    gradient, directions = rng.normal(size=(3, 5)), rng.normal(size=(num_draws, 3, 5))
    slopes = np.einsum("kbn,bn->kb", directions, gradient)
    found = jax.jit(forward.projection)(directions, slopes)
    for b in range(3):
        weights = np.linalg.lstsq(directions[:, b].T, gradient[b], rcond=None)[0]
        np.testing.assert_allclose(found[b], directions[:, b].T @ weights, atol=1e-10)
    if num_draws >= 5:
        np.testing.assert_allclose(found, gradient, atol=1e-10)


def test_clipping():
    """Closed form: within the limit as it is, beyond it the limit; 0 is none."""
    slopes = jnp.array([-3.0, 0.5, 2.0])
    np.testing.assert_array_equal(forward.clipped(slopes, 1.0), [-1.0, 0.5, 1.0])
    np.testing.assert_array_equal(forward.clipped(slopes, 0.0), slopes)
