r"""Forward gradients: random directions, derivatives along them by `jax.jvp`, and what they make.

With a direction `u` of unit covariance and the derivative `s = <grad L, u>`, `E[s u] = grad L`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax.autodiff.loops import loop_body
from dfa_jax.keys import named_key
from dfa_jax.types import PRNGKey

Noise = Literal["gaussian", "rademacher", "sphere"]
"""Directions: entries N(0, 1), signs, or uniform on the sphere of radius `sqrt(dimension)`."""

Combination = Literal["mean", "projection"]
"""How several draws make one estimate: their mean, or the projection on the span of directions."""

Draws = Literal["scan", "vmap"]
"""One draw after the other, in the memory of one; or all at once."""


def direction(
    key: PRNGKey,
    name: str,
    shape: tuple[int, ...],
    noise: Noise,
    *,
    num_stack: int = 0,
    num_batch: int = 0,
) -> Float[Array, "*shape"]:
    """A random direction of unit covariance, from a key of its own for each name.

    An example's noise is a function of the key, the name and its index in the whole batch: on how
    many devices or hosts the batch lies, and how many examples follow, changes nothing.

    Args:
        key: of this draw.
        name: of the site or parameter.
        shape: `[*stack, *batch, *features]`.
        noise: distribution of an example's features.
        num_stack: layer axes in front.
        num_batch: batch axes behind them; each example (or the whole array) is a vector.
    """
    key = named_key(key, name)
    stack, rest = shape[:num_stack], shape[num_stack:]
    batch, features = rest[:num_batch], rest[num_batch:]
    dim = math.prod(stack + features)
    flat = {"gaussian": jax.random.normal, "rademacher": _signs, "sphere": _on_sphere}[noise](
        key, (*batch, dim)
    )
    drawn = flat.reshape(*batch, *stack, *features)
    return jnp.moveaxis(drawn, range(num_batch, num_batch + num_stack), range(num_stack))


def _signs(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """+1 or -1, a random bit each: 32 of them a word, where `jax.random.rademacher` takes one."""
    *batch, dim = shape
    words = jax.random.bits(key, (*batch, -(-dim // 32)), jnp.uint32)
    places = jax.lax.broadcasted_iota(jnp.uint32, (*words.shape, 32), words.ndim)
    bits = (words[..., None] >> places) & 1
    flat = bits.reshape(*batch, -1)[..., :dim]
    return 1 - 2 * flat.astype(jnp.float32)


def _on_sphere(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    drawn = jax.random.normal(key, shape)
    return drawn * (shape[-1] ** 0.5 / jnp.linalg.norm(drawn, axis=-1, keepdims=True))


def mean_of_draws(
    estimate: Callable[[PRNGKey], Any], key: PRNGKey, number: int, draws: Draws
) -> Any:
    """The mean of `estimate(key_k)` over independent keys, a tree of arrays."""
    if number == 1:
        return estimate(jax.random.fold_in(key, 0))
    if draws == "vmap":
        return jax.tree.map(lambda leaf: leaf.mean(0), all_draws(estimate, key, number))

    def one(total, index):
        return jax.tree.map(jnp.add, total, estimate(jax.random.fold_in(key, index))), None

    like = jax.eval_shape(estimate, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    total, _ = jax.lax.scan(loop_body(one), zeros, jnp.arange(number))
    return jax.tree.map(lambda leaf: leaf / number, total)


def all_draws(estimate: Callable[[PRNGKey], Any], key: PRNGKey, number: int) -> Any:
    """`estimate(key_k)` for every draw, with an axis of draws in front."""
    return jax.vmap(lambda index: estimate(jax.random.fold_in(key, index)))(jnp.arange(number))


def projection(
    directions: Float[Array, "draws *batch dim"], derivatives: Float[Array, "draws ..."]
) -> Float[Array, "*batch dim"]:
    r"""The orthogonal projection of the gradient on the span of the directions.

        g = V^T (V V^T)^+ d,    V: [draws, dim],  d = V grad L

    Source: Flügel et al. (2024), arXiv 2410.17764.
    """
    gram = jnp.einsum("k...n,j...n->...kj", directions, directions)
    weights = jnp.einsum("...kj,j...->k...", jnp.linalg.pinv(gram, hermitian=True), derivatives)
    return jnp.einsum("k...,k...n->...n", weights, directions)


def clipped(derivative: Array, limit: float) -> Array:
    """The derivative within +-limit; 0 is no limit."""
    return jnp.clip(derivative, -limit, limit) if limit else derivative
