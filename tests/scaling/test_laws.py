"""Laws in log-sum-exp form: what they predict, and what people quote of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.scaling import LAWS, laws, runs
from tests.scaling import planted


def predicted(law, theta, features):
    return np.exp(np.asarray(law.log_loss(jnp.asarray(theta), jnp.asarray(law.design(features)))))


def test_chinchilla_is_its_equation(x64):
    """Closed form: E + A / N^alpha + B / D^beta in plain NumPy."""
    theta = np.array([0.6, 6.2, 7.6, 0.35, 0.37])
    features = np.array([[7e7, 5e9], [1e10, 4e11], [3e3, 2e4]])
    E, A, B = np.exp(theta[:3])
    expected = E + A / features[:, 0] ** 0.35 + B / features[:, 1] ** 0.37
    np.testing.assert_allclose(predicted(LAWS["chinchilla"], theta, features), expected, rtol=1e-13)


def test_laws_of_compute_are_their_equations(x64):
    """Closed form: (C_c / C)^alpha, alone and above a floor, through the numbers people quote."""
    C = np.array([[1e13], [1e17], [1e21]])
    for name, theta in (("power_law", [3.2, 0.07]), ("power_law_with_floor", [0.1, 3.2, 0.07])):
        quoted = dict(zip(LAWS[name].parameters, LAWS[name].named(np.array(theta)), strict=True))
        expected = quoted.get("E", 0.0) + (quoted["C_c"] / C[:, 0]) ** quoted["alpha"]
        np.testing.assert_allclose(predicted(LAWS[name], theta, C), expected, rtol=1e-12)


def test_far_starts_do_not_overflow():
    """Invariant: every start of a grid gives finite log-losses, in single precision too."""
    for law in LAWS.values():
        features = np.full((1, len(law.features)), 1e20)
        log_losses = jax.vmap(law.log_loss, (0, None))(
            jnp.asarray(law.starts()), jnp.asarray(law.design(features))
        )
        assert np.isfinite(log_losses).all()


def test_grid_is_the_published_one():
    """Published: 5 x 6 x 6 x 5 x 5 starts of Hoffmann et al., as replicated by Besiroglu et al."""
    assert LAWS["chinchilla"].starts().shape == (4500, 5)
    np.testing.assert_array_equal(LAWS["chinchilla"].starts().max(0), [1, 25, 25, 2, 2])


def test_named_many_at_once(x64):
    """Exact equivalence: a stack of parameters is named row by row."""
    law = LAWS["chinchilla"]
    stack = np.random.default_rng(0).normal(size=(3, 2, 5))
    np.testing.assert_array_equal(law.named(stack)[1, 0], law.named(stack[1, 0]))


def test_unknown_law_is_refused():
    """Documented contract: the nearest known name."""
    with pytest.raises(InputError, match="unknown scaling law 'chinchila'; did you mean"):
        laws.get("chinchila")


@pytest.mark.parametrize(
    ("field", "value"), [("loss", float("nan")), ("loss", 0.0), ("flops", -1.0), ("num_params", 0)]
)
def test_numbers_without_logarithm_are_refused(field, value):
    """Documented contract: the field, its value, and whose it is."""
    good = planted.compute_runs([1e12], [3.0])
    bad = good[0]._replace(**{field: value}, size="tiny")
    with pytest.raises(InputError, match=f"{field} is {value} in arm 'backprop', size 'tiny'"):
        runs.check([*good, bad])


def test_nothing_is_refused():
    """Documented contract: no runs, no arm of that name."""
    with pytest.raises(InputError, match="there are no runs"):
        runs.check([])
    with pytest.raises(InputError, match="unknown arm 'dfa'"):
        runs.of_arm(planted.compute_runs([1e12], [3.0]), "dfa")
