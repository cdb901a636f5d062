r"""Losses with one value per example; the objective of every learning rule is their mean.

Any function of `outputs` and `targets` will do, Optax's among them, whatever shape it returns; with
weights, masks or an additional term it returns a `types.Loss`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dfa_jax.errors import InputError
from dfa_jax.types import LossFn

_SMALLEST_SQUARE = 1e-12  # of a length that is divided by


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


@dataclasses.dataclass(frozen=True)
class NTXent:
    r"""Contrastive loss between two views of each image; targets are ignored.

        l_a = -log( exp(<u_a, v_p(a)> / T) / sum_{b != a} exp(<u_a, v_b> / T) ),  in nats per row

    Rows 2i and 2i + 1 of the outputs are the views of image i (`data.augment.two_views`), `p(a)` is
    the other one. `u` are the rows at length 1; `v` are the same numbers, which by default count as
    constants. Then a row's loss depends, as far as derivatives go, on that row alone, as a
    loss must where one slope an example (or a patch, or a group) is asked for.

    Attributes:
        temperature: `T`.
        stop_comparison: whether `v`, what a row is compared with, are constants.

    Raises:
        InputError: the outputs are not `[2 images, features]` with at least two images.

    Sources: Chen et al. (2020), SimCLR, arXiv 2002.05709; stopped as in the code of Ren et al.
    (2023), arXiv 2210.03310.

    >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> nt_xent(rows).round(4)  # log(1 + 2 exp(-2))
    Array([0.2395, 0.2395, 0.2395, 0.2395], dtype=float32)
    """

    temperature: float = 0.5
    stop_comparison: bool = True

    def __post_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; expected a positive number")

    def __call__(
        self, outputs: Float[Array, "rows features"], targets: Any = None
    ) -> Float[Array, " rows"]:
        """One loss a row, computed at least in single precision."""
        del targets
        rows = len(outputs)
        if rows < 4 or rows % 2:
            raise InputError(
                f"a contrastive loss was given {rows} row(s); expected two views of each of at"
                " least two images, in neighbouring rows (data.augment.two_views)"
            )
        x = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        square = jnp.square(x).sum(-1, keepdims=True)
        u = x * jax.lax.rsqrt(jnp.maximum(square, _SMALLEST_SQUARE))
        v = jax.lax.stop_gradient(u) if self.stop_comparison else u
        # Pairs are swapped by a reshape: where rows are sharded, partners are on one device.
        partner = v.reshape(rows // 2, 2, -1)[:, ::-1].reshape(v.shape)
        positive = (u * partner).sum(-1) / self.temperature
        similarity = jnp.einsum("ad,bd->ab", u, v) / self.temperature
        others = jnp.where(jnp.eye(rows, dtype=bool), -jnp.inf, similarity)
        return (jax.nn.logsumexp(others, axis=-1) - positive).astype(outputs.dtype)

    @property
    def couples_examples(self) -> bool:
        """Whether a row's loss has a derivative by another row."""
        return not self.stop_comparison


nt_xent = NTXent()
"""NT-Xent at temperature 0.5; what a row is compared with counts as constant."""

nt_xent_unstopped = NTXent(stop_comparison=False)
"""The same with the derivative of both sides, as in SimCLR; it couples examples."""


def couples_examples(loss_fn: LossFn) -> bool:
    """Whether an example's loss has a derivative by another example's outputs.

    A loss says so by an attribute of this name; one without it does not.

    >>> couples_examples(nt_xent), couples_examples(nt_xent_unstopped)
    (False, True)
    """
    return getattr(loss_fn, "couples_examples", False)


def is_contrastive(loss_fn: LossFn) -> bool:
    """Whether the loss compares two views of each image, and reads no labels."""
    return isinstance(loss_fn, NTXent)


LOSSES: dict[str, LossFn] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "squared_error": squared_error,
    "nt_xent": nt_xent,
    "nt_xent_unstopped": nt_xent_unstopped,
}
