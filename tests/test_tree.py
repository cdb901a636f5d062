"""Arithmetic on trees against NumPy."""

import jax.numpy as jnp
import numpy as np

from dfa_jax import tree
from tests import helpers

LIKE = {"a": jnp.zeros((3, 2)), "b": {"c": jnp.zeros(4)}}


def flat(nested):
    return np.concatenate([np.ravel(nested["a"]), np.ravel(nested["b"]["c"])]).astype(float)


def test_arithmetic_is_that_of_one_vector(x64):
    """Closed form: sum, size and norm of a tree are those of all its numbers in one vector."""
    left, right = helpers.normals(LIKE, 0), helpers.normals(LIKE, 1)
    np.testing.assert_allclose(flat(tree.add(left, right)), flat(left) + flat(right), rtol=1e-15)
    np.testing.assert_allclose(tree.norm(left), np.linalg.norm(flat(left)), rtol=1e-14)
    assert tree.size(left) == 10


def test_cosine(x64):
    """Closed form: from the angle; scale and shape do not matter, and zero has no angle."""
    for angle in (0.0, 0.4, 1.5, 3.0):
        left, right = jnp.array([[1.0], [0.0]]), 7 * jnp.array([[np.cos(angle)], [np.sin(angle)]])
        np.testing.assert_allclose(tree.cosine(left, right), np.cos(angle), atol=1e-15)
    assert np.isnan(tree.cosine(jnp.zeros(2), jnp.ones(2)))


def test_put_changes_a_copy_only():
    """Invariant: the tree that was given stays as it was, also below the path."""
    before = {"a": {"b": {"c": 1}, "d": 2}}
    after = tree.put(before, ("a", "b", "c"), 3)
    assert after == {"a": {"b": {"c": 3}, "d": 2}}
    assert before == {"a": {"b": {"c": 1}, "d": 2}}
    assert tree.get(after, ("a", "b", "c")) == 3
    assert tree.put(before, ("x", "y"), 1) == before | {"x": {"y": 1}}
