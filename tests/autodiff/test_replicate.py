"""Replicated losses: one a patch and group, each with the derivative of its own share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

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
    like = np.zeros((BATCH, PATCHES, GROUPS, CHANNELS))
    head = {"kernel": np.zeros((GROUPS * CHANNELS, CLASSES)), "bias": np.zeros(CLASSES)}
    drawn = [helpers.normals((like, head), seed) for seed in (0, 1)]
    return *drawn[0], jnp.asarray(np.array([1, 0, 5])), drawn[1]


@pytest.mark.parametrize("part", ["features", "head", "both"])
def test_fused_equals_naive_under_a_contrastive_loss(x64, part):
    """Independent implementation, as above, forwards and backwards: what a row is compared with is
    constant, so that one slope an example is all there is. The last pair of rows is compared with
    the first: a derivative by the other side would show as a difference."""

    def contrastive(pooled, head, targets):
        flat = pooled.reshape(*pooled.shape[:-2], -1)
        return nt_xent(flat @ head["kernel"] + head["bias"][None], targets)

    like = np.zeros((6, PATCHES, GROUPS, CHANNELS))
    head = {"kernel": np.zeros((GROUPS * CHANNELS, CLASSES)), "bias": np.zeros(CLASSES)}
    (features, head), moved = (helpers.normals((like, head), seed) for seed in (0, 1))
    still = jax.tree.map(np.zeros_like, (features, head))
    tangents = {"features": (moved[0], still[1]), "head": (still[0], moved[1]), "both": moved}[part]
    cotangent = helpers.normals(np.zeros((6, PATCHES, GROUPS)), 7)

    @functools.partial(jax.jit, static_argnums=0)
    def both_ways(replicate):
        def losses(x, h):
            return replicate(contrastive, x, h, None)

        forwards = jax.jvp(losses, (features, head), tangents)
        return forwards, jax.vjp(losses, features, head)[1](cotangent)

    helpers.assert_close(both_ways(replicated_losses), both_ways(naive_replicated_losses), 1e-12)


def pooled_loss(features, head, labels):
    """The plain loss of the mean over patches."""
    return loss(features.mean(1), head, labels)


@functools.partial(jax.jit, static_argnums=0)
def forwards(replicate, primals, tangents, labels):
    """Values and slopes of the replicas."""
    return jax.jvp(lambda x, h: replicate(loss, x, h, labels), primals, tangents)


@pytest.mark.parametrize("part", ["features", "head", "both"])
def test_fused_equals_naive_forwards(x64, part):
    """Independent implementation: masks and `stop_gradient`, a copy of all features a replica."""
    features, head, labels, (features_dot, head_dot) = made()
    tangents = [
        features_dot if part != "head" else np.zeros_like(features),
        head_dot if part != "features" else jax.tree.map(np.zeros_like, head),
    ]
    both = [
        forwards(f, (features, head), tuple(tangents), labels)
        for f in (replicated_losses, naive_replicated_losses)
    ]
    helpers.assert_close(both[0], both[1], 1e-12)
    assert both[0][1].shape == (BATCH, PATCHES, GROUPS)


def test_fused_equals_naive_backwards_under_unequal_cotangents(x64):
    """Independent implementation, as above: what JAX transposes out of the forward rule. The code
    published with the paper reads one cotangent and takes all for equal."""
    features, head, labels, _ = made()
    cotangent = helpers.normals(np.zeros((BATCH, PATCHES, GROUPS)), 7)

    @functools.partial(jax.jit, static_argnums=0)
    def backwards(replicate):
        return jax.vjp(lambda x, h: replicate(loss, x, h, labels), features, head)[1](cotangent)

    helpers.assert_close(backwards(replicated_losses), backwards(naive_replicated_losses), 1e-12)


def test_replicas_have_the_plain_value_and_add_up_to_its_derivative(x64):
    """Exact equivalence: every replica's value is the plain loss; the sum of their tangents along a
    direction of the features is its derivative."""
    features, head, labels, (features_dot, _) = made()
    replicated = functools.partial(replicated_losses, loss)
    (value, slopes), (plain, slope) = (
        jax.jit(lambda x, x_dot, f=f: jax.jvp(lambda x: f(x, head, labels), (x,), (x_dot,)))(
            features, features_dot
        )
        for f in (replicated, pooled_loss)
    )
    np.testing.assert_allclose(value, np.broadcast_to(plain[:, None, None], value.shape))
    np.testing.assert_allclose(np.sum(slopes, (1, 2)), slope, rtol=1e-12)


@pytest.mark.parametrize("replicate", [replicated_losses, naive_replicated_losses])
def test_no_replica_sees_anothers_tangent(replicate):
    """Proof of absence: NaN in the tangent everywhere but at one patch and group of one example
    leaves that replica's slope a number, and equal to the closed form `<softmax - onehot, W dx>/P`.
    """
    features, head, labels, moved = made()
    features_dot = np.asarray(moved[0])
    # Zero times NaN: the masks of the naive form cannot be tried this way.
    poisoned = np.full_like(features, np.nan if replicate is replicated_losses else 0.0)
    poisoned[1, 2, 0] = features_dot[1, 2, 0]
    still = jax.tree.map(np.zeros_like, head)
    _, slopes = forwards(replicate, (features, head), (poisoned, still), labels)
    pooled = np.mean(features, 1)[1].reshape(-1)
    error = softmax(pooled @ head["kernel"] + head["bias"]) - np.eye(CLASSES)[labels[1]]
    expected = (features_dot[1, 2, 0] @ head["kernel"][:CHANNELS]) @ error / PATCHES
    np.testing.assert_allclose(slopes[1, 2, 0], expected, rtol=1e-5)
    others = np.delete(
        np.asarray(slopes).reshape(-1), np.ravel_multi_index((1, 2, 0), slopes.shape)
    )
    assert np.isnan(others).all() if replicate is replicated_losses else (others == 0).all()
