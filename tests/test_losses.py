"""Losses against closed forms, and the error at the outputs that each documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import losses
from tests import helpers, reference


def logits_and_labels():
    labels = np.random.default_rng(1).integers(5, size=(4, 3))
    return helpers.normals(jnp.zeros((4, 3, 5)), 0, 2.0), jnp.asarray(labels)


def softplus(a):
    return np.log1p(np.exp(a))


def test_values_match_numpy(x64):
    """Independent implementation: each loss in NumPy, one value per example for any batch axes."""
    y, labels = logits_and_labels()
    a, onehot = np.asarray(y), np.eye(5)[labels]
    found = jax.jit(losses.softmax_cross_entropy)(y, labels)
    np.testing.assert_allclose(found, -(np.log(reference.softmax(a)) * onehot).sum(-1), rtol=1e-12)
    found = jax.jit(losses.sigmoid_cross_entropy)(y, labels)
    np.testing.assert_allclose(found, (softplus(a) - a * onehot).sum(-1), rtol=1e-12)
    found = jax.jit(losses.squared_error)(y, jnp.ones_like(y))
    np.testing.assert_allclose(found, 0.5 * ((a - 1) ** 2).sum(-1), rtol=1e-12)


OF_LABELS = ["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"]


@pytest.mark.parametrize("name", OF_LABELS)
def test_error_at_the_outputs(x64, name):
    """Closed form: `softmax - onehot`, `sigmoid - onehot`, `y - target`: what DFA projects.

    A factor here is a factor on every hidden learning rate.
    """
    y, labels = logits_and_labels()
    a, onehot = np.asarray(y), np.eye(5)[labels]
    targets = y[::-1] if name == "squared_error" else labels
    expected = {
        "softmax_cross_entropy": reference.softmax(a) - onehot,
        "sigmoid_cross_entropy": 1 / (1 + np.exp(-a)) - onehot,
        "squared_error": a - a[::-1],
    }[name]
    error = jax.jit(jax.grad(lambda y: losses.LOSSES[name](y, targets).sum()))(y)
    np.testing.assert_allclose(error, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_cross_entropy"])
def test_large_logits_stay_finite(name):
    """Closed form: a logit of 1,000 on another class costs 1,000 nats; no overflow, finite error."""
    y = jnp.array([[1000.0, 0.0, 0.0]])
    loss = losses.LOSSES[name]
    value, error = jax.jit(jax.value_and_grad(lambda y: loss(y, jnp.array([1])).sum()))(y)
    assert 1000 <= value < 1003
    assert np.isfinite(error).all()
