"""Replicated losses: one a patch and group, each with the derivative of its own share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.autodiff.replicate import naive_replicated_losses, replicated_losses
from dfa_jax.losses import nt_xent, softmax_cross_entropy
from tests import helpers

BATCH, PATCHES, GROUPS, CHANNELS, CLASSES = 3, 4, 2, 5, 6


def loss(pooled, head, labels):
    """A linear head and cross-entropy, one loss an example."""
    flat = pooled.reshape(*pooled.shape[:-2], -1)
    return softmax_cross_entropy(flat @ head["kernel"] + head["bias"][None], labels)


def made():
    """Features, head, labels; and tangents of the first two."""
    like = jnp.zeros((BATCH, PATCHES, GROUPS, CHANNELS))
    head = {"kernel": jnp.zeros((GROUPS * CHANNELS, CLASSES)), "bias": jnp.zeros(CLASSES)}
    drawn = [helpers.normals((like, head), seed) for seed in (0, 1)]
    return *drawn[0], jnp.array([1, 0, 5]), drawn[1]


@pytest.mark.parametrize("part", ["features", "head", "both"])
def test_fused_equals_naive_under_a_contrastive_loss(x64, part):
    """Independent implementation, as above, forwards and backwards: what a row is compared with is
    constant, so that one slope an example is all there is. The last pair of rows is compared with
    the first: a derivative by the other side would show as a difference."""

    def contrastive(pooled, head, targets):
        flat = pooled.reshape(*pooled.shape[:-2], -1)
        return nt_xent(flat @ head["kernel"] + head["bias"][None], targets)

    like = jnp.zeros((6, PATCHES, GROUPS, CHANNELS))
    head = {"kernel": jnp.zeros((GROUPS * CHANNELS, CLASSES)), "bias": jnp.zeros(CLASSES)}
    (features, head), moved = (helpers.normals((like, head), seed) for seed in (0, 1))
    still = jax.tree.map(jnp.zeros_like, (features, head))
    tangents = {"features": (moved[0], still[1]), "head": (still[0], moved[1]), "both": moved}[part]
    cotangent = helpers.normals(jnp.zeros((6, PATCHES, GROUPS)), 7)
    for transform in (
        lambda f: jax.jvp(f, (features, head), tangents),
        lambda f: jax.vjp(f, features, head)[1](cotangent),
    ):
        fused, naive = (
            transform(lambda x, h, r=r: r(contrastive, x, h, None))
            for r in (replicated_losses, naive_replicated_losses)
        )
        helpers.assert_close(fused, naive, 1e-12)


def pooled_loss(features, head, labels):
    """The plain loss of the mean over patches."""
    return loss(features.mean(1), head, labels)


@pytest.mark.parametrize("part", ["features", "head", "both"])
def test_fused_equals_naive_forwards(x64, part):
    """Independent implementation: masks and `stop_gradient`, a copy of all features a replica."""
    features, head, labels, (features_dot, head_dot) = made()
    tangents = [
        features_dot if part != "head" else jnp.zeros_like(features),
        head_dot if part != "features" else jax.tree.map(jnp.zeros_like, head),
    ]
    both = [
        jax.jvp(lambda x, h, f=f: f(loss, x, h, labels), (features, head), tuple(tangents))
        for f in (replicated_losses, naive_replicated_losses)
    ]
    helpers.assert_close(both[0], both[1], 1e-12)
    assert both[0][1].shape == (BATCH, PATCHES, GROUPS)


def test_fused_equals_naive_backwards_under_unequal_cotangents(x64):
    """Independent implementation, as above: what JAX transposes out of the forward rule. The code
    published with the paper reads one cotangent and takes all for equal."""
    features, head, labels, _ = made()
    cotangent = helpers.normals(jnp.zeros((BATCH, PATCHES, GROUPS)), 7)
    grads = [
        jax.vjp(lambda x, h, f=f: f(loss, x, h, labels), features, head)[1](cotangent)
        for f in (replicated_losses, naive_replicated_losses)
    ]
    helpers.assert_close(grads[0], grads[1], 1e-12)


def test_replicas_have_the_plain_value_and_add_up_to_its_derivative(x64):
    """Exact equivalence: every replica's value is the plain loss; the sum of their tangents along a
    direction of the features is its derivative."""
    features, head, labels, (features_dot, _) = made()
    value, slopes = jax.jvp(
        lambda x: replicated_losses(loss, x, head, labels), (features,), (features_dot,)
    )
    plain, slope = jax.jvp(lambda x: pooled_loss(x, head, labels), (features,), (features_dot,))
    np.testing.assert_allclose(value, np.broadcast_to(plain[:, None, None], value.shape))
    np.testing.assert_allclose(slopes.sum((1, 2)), slope, rtol=1e-12)


@pytest.mark.parametrize("replicate", [replicated_losses, naive_replicated_losses])
def test_no_replica_sees_anothers_tangent(replicate):
    """Proof of absence: NaN in the tangent everywhere but at one patch and group of one example
    leaves that replica's slope a number, and equal to the closed form `<softmax - onehot, W dx>/P`.
    """
    features, head, labels, (features_dot, _) = made()
    poisoned = jnp.full_like(features, jnp.nan).at[1, 2, 0].set(features_dot[1, 2, 0])
    if replicate is naive_replicated_losses:  # zero times NaN: the mask cannot be tried this way
        poisoned = jnp.where(jnp.isnan(poisoned), 0.0, poisoned)
    _, slopes = jax.jvp(lambda x: replicate(loss, x, head, labels), (features,), (poisoned,))
    pooled = features.mean(1)[1].reshape(-1)
    error = jax.nn.softmax(pooled @ head["kernel"] + head["bias"]) - jnp.eye(CLASSES)[labels[1]]
    expected = (features_dot[1, 2, 0] @ head["kernel"][:CHANNELS]) @ error / PATCHES
    np.testing.assert_allclose(slopes[1, 2, 0], expected, rtol=1e-5)
    others = np.delete(
        np.asarray(slopes).reshape(-1), np.ravel_multi_index((1, 2, 0), slopes.shape)
    )
    assert np.isnan(others).all() if replicate is replicated_losses else (others == 0).all()
