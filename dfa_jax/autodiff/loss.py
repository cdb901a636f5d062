r"""What a loss function returns, as one scalar, and which part of it each example has.

    L = sum(weights * values) / sum(weights) + extra

This is the objective of every rule, and `jax.grad` of it the oracle of all of them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from dfa_jax.errors import InputError
from dfa_jax.losses import couples_examples
from dfa_jax.models.base import Model, float_leaves, tapped_of
from dfa_jax.types import Loss, LossFn

_EXPECTED = (
    "expected real floating-point numbers of any shape (one an example, one a position, a scalar),"
    " or a dfa_jax.types.Loss of these"
)


def as_loss(found: Any) -> Loss:
    """What a loss function has returned, as a `Loss` whose weights are like its values, or None.

    Raises:
        InputError: it is none, or an array has the wrong type or shape.
    """
    loss = found if isinstance(found, Loss) else Loss(found)
    values = loss.values
    if not hasattr(values, "dtype"):
        raise InputError(f"the loss is a {type(found).__name__}; {_EXPECTED}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise InputError(f"the loss is {values.dtype} {values.shape}; {_EXPECTED}")
    if not values.size:
        raise InputError(f"the loss is {values.shape}: the batch is empty; give it an example")
    if loss.extra is not None:
        loss = loss._replace(extra=jnp.asarray(loss.extra, _at_least_single(values)))
    if loss.extra is not None and jnp.ndim(loss.extra):
        raise InputError(
            f"the loss's extra is {jnp.shape(loss.extra)}; expected a scalar: sum or average it"
        )
    if loss.weights is None:
        return loss
    weights = jax.lax.stop_gradient(jnp.asarray(loss.weights))
    behind = values.ndim - weights.ndim
    spread = weights.reshape(*weights.shape, *(1,) * behind) if behind > 0 else weights
    if behind < 0 or any(w not in (1, v) for w, v in zip(spread.shape, values.shape, strict=True)):
        raise InputError(
            f"the loss's weights are {weights.shape} and its values {values.shape}; expected"
            " weights of the same leading axes"
        )
    return loss._replace(weights=jnp.broadcast_to(spread, values.shape).astype(values.dtype))


def total_weight(loss: Loss) -> Float[Array, ""]:
    """Sum of the weights; without any, the number of values. In float32 at least."""
    kind = _at_least_single(loss.values)
    if loss.weights is None:
        return jnp.asarray(loss.values.size, kind)
    return loss.weights.astype(kind).sum()


def _at_least_single(values: Array) -> Any:
    return jnp.promote_types(values.dtype, jnp.float32)


def contributions(loss: Loss, num_axes: int) -> Float[Array, "*examples"]:
    """What each example adds to the weighted mean; zero where all weights are.

    In float32 at least, where sums of many losses of half precision neither overflow nor stop.

    Args:
        loss: as `as_loss` returns it.
        num_axes: leading axes along which examples are told apart.
    """
    inner, values = tuple(range(num_axes, loss.values.ndim)), loss.values
    values = values.astype(_at_least_single(values))
    if loss.weights is None:
        return values.sum(inner) / values.size
    weight = total_weight(loss)
    return (loss.weights * values).sum(inner) / jnp.where(weight == 0, 1, weight)


def mean(loss: Loss) -> Float[Array, ""]:
    """The scalar, auxiliary terms included."""
    found = contributions(loss, 0)
    return found if loss.extra is None else found + loss.extra


def row_shares(loss: Loss, front: tuple[int, ...]) -> Float[Array, "*batch"]:
    """The share of each row in the mean, all together 1.

    Args:
        loss: as `as_loss` returns it.
        front: the batch axes of the rows; the values have them in front, or the first of them, or
            none. What they do not have is shared out equally.
    """
    values = loss.values.shape
    agree = [v == f for v, f in zip(values, front, strict=False)]
    shared = agree.index(False) if False in agree else len(agree)
    if loss.weights is None or not shared:
        return jnp.full(front, 1 / math.prod(front), loss.values.dtype)
    rows = loss.weights.astype(_at_least_single(loss.values)).sum(tuple(range(shared, len(values))))
    rows = jnp.broadcast_to(rows.reshape(*rows.shape, *(1,) * (len(front) - shared)), front)
    total = rows.sum()
    return rows / jnp.where(total == 0, 1, total)


def example_axes(model: Model, loss_fn: LossFn, outputs: Any, targets: Any) -> int:
    """Leading axes of a loss's values along which examples (and positions) are told apart.

    They are the model's independent axes, if the values have them: the first must grow with the
    batch. Where it does not, as in a mean over the batch for each class, or where the loss couples
    examples, there are none, and a forward gradient listens to the whole.
    """
    tapped = tapped_of(float_leaves(outputs), model.tap).values()
    fronts = {leaf.shape[: model.independent_axes] for leaf in tapped}
    if not model.independent_axes or len(fronts) != 1 or couples_examples(loss_fn):
        return 0
    (front,) = fronts

    def leading(number: int) -> tuple[int, ...]:
        def more(leaf: Any) -> jax.ShapeDtypeStruct:
            shape = jnp.shape(leaf)
            if shape[:1] == front[:1]:
                shape = (number * shape[0], *shape[1:])
            return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

        def values(outputs, targets):
            return as_loss(loss_fn(outputs, targets)).values

        found = jax.eval_shape(values, *jax.tree.map(more, (outputs, targets)))
        return found.shape[: model.independent_axes]

    return len(front) if leading(1) == front and _is_double(leading, front) else 0


def _is_double(leading: Any, front: tuple[int, ...]) -> bool:
    """Whether a batch of twice the size has twice the leading axis."""
    try:
        return leading(2) == (2 * front[0], *front[1:])
    except Exception:
        return False


def check_finite(loss: Loss) -> None:
    """Refuses a loss without a number, where numbers are known already.

    Raises:
        InputError: a value is not finite, or all weights are zero.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(loss)):
        return
    weight, found = float(total_weight(loss)), float(mean(loss))
    if weight <= 0:
        raise InputError(
            f"the weights of the loss sum to {weight:g} on the first batch; expected a positive sum"
        )
    if not math.isfinite(found):
        raise InputError(
            f"the loss of the first batch is {found} before any step; check the loss function, the"
            " model's start, and the data for NaN"
        )
