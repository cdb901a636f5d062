r"""Losses with one value per example; the objective of every learning rule is their mean.

A loss maps `outputs` and `targets` to `[*batch]`. Any such function will do, Optax's among them.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dfa_jax.types import LossFn


def softmax_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    r"""`-log softmax(logits)[label]`, in nats per example.

    The error at the logits is `softmax(logits) - onehot(label)`.

    >>> softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(4)
    Array([1.3863], dtype=float32)
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def sigmoid_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Binary cross-entropy against the one-hot label, summed over classes, in nats per example.

    The error at the logits is `sigmoid(logits) - onehot(label)`: the loss of Nøkland (2016, arXiv
    1609.01596) up to a factor `classes`.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


def squared_error(
    outputs: Float[Array, "*batch features"],
    targets: Float[Array, "*batch features"] | Int[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """`1/2 |outputs - targets|^2` per example; the error at the outputs is `outputs - targets`.

    Integer labels count as one-hot targets.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
    return 0.5 * jnp.square(outputs - targets).sum(-1)


LOSSES: dict[str, LossFn] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "squared_error": squared_error,
}
