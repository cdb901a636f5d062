r"""One loss a patch and group, all of equal value, each with the derivative of its own entries.

A loss that sees one patch and one group only lacks the rest of the image. So each sees the same
aggregated features, but all entries except its own count as constants.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Aggregator = Literal["fused", "naive"]
"""How replicated losses are computed: from one shared loss, or each for itself (the oracle)."""

PooledLoss = Callable[[Array, Any, Any], Array]
"""`loss(pooled, head, whatever)`: `[*batch, group, channel]` to one loss an example, `[*examples]`.

The axes of the examples are all of the batch's, or the first of them, or none.
"""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def replicated_losses(
    loss: PooledLoss,
    features: Float[Array, "*batch patch group channel"],
    head: Any,
    whatever: Any,
) -> Float[Array, "*examples patch group"]:
    r"""The loss of the features' mean over patches, once a patch and group.

        l_pg(x) = loss(z_pg),  z_pg = (1/P) x_pg + constants,  so  dl_pg = (1/P) <dloss/dz_g, dx_pg>

    and `sum_pg dl_pg` is the derivative of `loss(mean_p x)`. If the head moves, all `l_pg` do.
    Memory and time are those of one loss. Forward mode is written out here; it is linear, so JAX
    transposes it for reverse mode.

    Args:
        loss: of each example; it depends (as far as derivatives go) on that example alone.
        features: `x`; P patches.
        head: parameters of the loss.
        whatever: handed on; no derivative.

    Source: Ren et al. (2023), arXiv 2210.03310, section on the feature aggregator.
    """
    return _spread(loss(features.mean(-3), head, whatever), features)


def _spread(value: Array, features: Array) -> Array:
    """The same value for every patch and group, `[*examples, patch, group]`."""
    return jnp.broadcast_to(value[..., None, None], (*value.shape, *features.shape[-3:-1]))


@replicated_losses.defjvp
def _replicated_jvp(loss, primals, tangents):
    features, head, whatever = primals
    features_dot, head_dot, _ = tangents
    pooled = features.mean(-3)

    def of_head(head):
        return loss(pooled, head, whatever)

    value, value_dot = jax.jvp(of_head, (head,), (head_dot,))
    slope = jax.grad(lambda pooled: loss(pooled, head, whatever).sum())(pooled)
    own = jnp.einsum("...pgc,...gc->...pg", features_dot, slope) / features.shape[-3]
    own = own.sum(tuple(range(value.ndim, own.ndim - 2)))  # over positions of one example
    return _spread(value, features), own + value_dot[..., None, None]


def naive_replicated_losses(
    loss: PooledLoss, features: Array, head: Any, whatever: Any
) -> Float[Array, "*examples patch group"]:
    """The same by masks and `stop_gradient`: a copy of all features for every patch and group."""
    stop = jax.lax.stop_gradient
    num_patches, num_groups = features.shape[-3:-1]
    share = features / num_patches
    # The mean in value; in derivative, one patch's share of it: [*batch, patch, group, channel].
    seen = share + stop(features.mean(-3, keepdims=True) - share)
    own = jnp.eye(num_groups, dtype=bool)[:, :, None]
    pooled = jnp.where(own, seen[..., None, :, :], stop(seen)[..., None, :, :])
    for _ in ("patch", "group"):  # from the inside; the new axis goes behind
        loss = jax.vmap(loss, in_axes=(-3, None, None), out_axes=-1)
    return loss(pooled, head, whatever)


REPLICATED: dict[str, Any] = {"fused": replicated_losses, "naive": naive_replicated_losses}
