"""Loss and metrics over a whole set, a part at a time: exactly what they are over all of it."""

import collections
import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dfa_jax import metrics
from dfa_jax.autodiff import loss as losses
from dfa_jax.autodiff.loops import loop_body
from dfa_jax.data.base import num_examples
from dfa_jax.errors import InputError
from dfa_jax.losses import softmax_cross_entropy
from dfa_jax.train import sharding
from dfa_jax.train.program import Program
from dfa_jax.train.state import TrainState
from dfa_jax.types import Batch, Loss, Params

_EXTRA = ", additional term"  # behind the name of what has one
_EVAL_EXAMPLES, _EVAL_TARGETS = 500, 2**13  # at most so many at once


class Sums(NamedTuple):
    """What some examples add to a mean.

    Attributes:
        weighted: sum of weights times values.
        weight: sum of the weights.
    """

    weighted: Float[Array, ""]
    weight: Float[Array, ""]


def mean_of_chunks(
    chunks: Iterable[Batch], state: TrainState, *, program: Program
) -> dict[str, float]:
    """As `evaluate`, over all chunks of a set; a metric of which nothing counts is NaN.

    Raises:
        InputError: nothing of the loss counts.
    """
    weighted: dict[str, float] = collections.defaultdict(float)
    weights: dict[str, float] = collections.defaultdict(float)
    for chunk in chunks:
        found = evaluate_sums(
            state.params, chunk, state.readout, state.model_state, program=program
        )
        for name, sums in jax.device_get(found).items():
            weighted[name] += float(sums.weighted)
            weights[name] += float(sums.weight)
    if not weights["loss"] > 0:
        raise InputError(
            f"the weights of the loss sum to {weights['loss']:g} over the test set; expected a"
            " positive sum: check the loss function, and the data's masks"
        )
    means = {name: weighted[name] / w if w else math.nan for name, w in weights.items()}
    return _with_extras(means)


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    params: Params, data: Batch, readout: Params = (), model_state: Any = (), *, program: Program
) -> dict[str, Array]:
    """Mean loss and metrics over a whole set, of the readout if the program has one.

    They are `sum(weights * values) / sum(weights)` over all examples; NaN where no weight is left.
    """
    found = evaluate_sums(params, data, readout, model_state, program=program)
    return _with_extras({name: one.weighted / one.weight for name, one in found.items()})


@functools.partial(jax.jit, static_argnames="program")
def evaluate_sums(
    params: Params, data: Batch, readout: Params = (), model_state: Any = (), *, program: Program
) -> dict[str, Sums]:
    """What the examples of a set add to loss and metrics.

    Where a value belongs to no example (a scalar, or an auxiliary loss), it counts by its weight,
    or by the examples that it is of, at most 500 at once; then no example may be shown twice to
    fill up the last part, which is evaluated alone.
    """
    params, number = sharding.gathered(program.mesh, params), num_examples(data)
    shards = sharding.batch_shards(program.mesh)
    own = max((leaf[0].size for leaf in jax.tree.leaves(data.targets)), default=1)
    most = max(1, min(_EVAL_EXAMPLES, _EVAL_TARGETS // max(own, 1), number))
    at_once = math.ceil(most / shards) * shards
    seen = functools.partial(_seen, program, params, readout, model_state)

    def total(rows: Int[Array, " some"]) -> dict[str, Sums]:
        batch = jax.tree.map(lambda a: a[jnp.minimum(rows, number - 1)], data)
        batch = jax.lax.with_sharding_constraint(batch, sharding.over_batch(program.mesh))
        counts = rows < number
        return {name: _sums(loss, counts) for name, loss in seen(batch).items()}

    is_filled = _is_by_example(program) or _tells_examples_apart(seen, data, at_once)
    whole = math.ceil(number / at_once) if is_filled else number // at_once
    found = []
    if whole:
        rows = jnp.arange(whole * at_once).reshape(-1, at_once)
        found.append(jax.tree.map(lambda a: a.sum(0), jax.lax.map(loop_body(total), rows)))
    if left := max(0, number - whole * at_once):
        rest = seen(jax.tree.map(lambda a: a[number - left :], data))
        found.append({name: _sums(loss, jnp.ones(left, bool)) for name, loss in rest.items()})
    sums = jax.tree.map(lambda *parts: sum(parts), *found)
    return jax.lax.with_sharding_constraint(sums, sharding.replicated(program.mesh))


def _with_extras(means: dict[str, Any]) -> dict[str, Any]:
    """The means, each with what belongs to no example."""
    return {
        name: mean + means.get(name + _EXTRA, 0)
        for name, mean in means.items()
        if not name.endswith(_EXTRA)
    }


def _seen(
    program: Program, params: Params, readout: Params, model_state: Any, batch: Batch
) -> dict[str, Loss]:
    """Loss and metrics of a batch, in evaluation."""
    key = program.evaluation_key
    if program.readout:
        bound = program.model.bind(model_state, key=key, train=False)
        outputs = program.readout.logits(readout, bound, params, batch.inputs)
        loss = softmax_cross_entropy(outputs, batch.targets)
    else:
        outputs = program.model.apply(params, batch.inputs, state=model_state, key=key)
        loss = program.loss_fn(outputs, batch.targets)
    measured = {
        name: metrics.values_of(function, outputs, batch.targets)
        for name, function in program.metrics
    }
    found = {name: losses.as_loss(one) for name, one in {"loss": loss, **measured}.items()}
    more = {  # what belongs to no example counts by the examples that it is of
        name + _EXTRA: losses.as_loss(one.extra)
        for name, one in found.items()
        if one.extra is not None
    }
    return found | more


def _is_by_example(program: Program) -> bool:
    """Whether loss and metrics are the library's own, which have a value for each example."""
    is_own = all(function is metrics.accuracy for _, function in program.metrics)
    return isinstance(program.loss, str) and is_own


def _tells_examples_apart(seen: Any, data: Batch, number: int) -> bool:
    """Whether everything has one value (or more) for each example, which can be left out.

    Then the leading axis is as long as the batch, whatever its length.
    """

    def some(number: int) -> Batch:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((number, *a.shape[1:]), a.dtype), data)

    for length in (number, 2 * number):
        for loss in jax.eval_shape(seen, some(length)).values():
            if loss.extra is not None or loss.values.shape[:1] != (length,):
                return False
    return True


def _sums(loss: Loss, counts: Any) -> Sums:
    """What those examples that count add."""
    values = loss.values.astype(jnp.promote_types(loss.values.dtype, jnp.float32))
    if loss.extra is None and values.shape[:1] == counts.shape:
        rows = values.reshape(len(counts), -1)
        if loss.weights is None:
            return Sums(jnp.where(counts, rows.mean(1), 0).sum(), counts.sum().astype(rows.dtype))
        weights = loss.weights.reshape(len(counts), -1).astype(rows.dtype)
        each = (weights * rows).sum(1), weights.sum(1)
        return Sums(*(jnp.where(counts, one, 0).sum() for one in each))
    weight = losses.total_weight(loss) if loss.weights is not None else len(counts)
    whole = losses.mean(loss._replace(values=values, extra=None))
    return Sums(weight * whole, jnp.asarray(weight, values.dtype))
