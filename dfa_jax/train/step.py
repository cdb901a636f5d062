"""One training step, the same pure function for every learning rule."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dfa_jax import metrics, tree
from dfa_jax.autodiff.loops import loop_body
from dfa_jax.errors import InputError
from dfa_jax.metrics import MetricFn
from dfa_jax.models.base import Model
from dfa_jax.rules import LearningRule
from dfa_jax.rules.functional import estimate as estimate_gradients
from dfa_jax.train.readout import Readout
from dfa_jax.train.state import TrainState
from dfa_jax.train.views import Views
from dfa_jax.types import Batch, LossFn, Metrics, PRNGKey

_GRADIENTS = ""  # no metric has this name


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    rule: LearningRule,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    views: Views | None = None,
    readout: Readout | None = None,
    metric_fns: Mapping[str, MetricFn] | None = None,
    rate_factor: Float[Array, ""] | None = None,
    gather: Callable[[Any], Any] = lambda tree: tree,
    num_parts: int = 1,
) -> tuple[TrainState, Metrics]:
    """Estimates gradients by the rule and applies the optimiser's update.

    With `views` it trains on those of the batch; a `readout` takes a step too, on the features of
    the parameters before the update. A `rate_factor` multiplies the learning rate, or rather what
    the optimiser adds to the parameters. `gather` is applied to what the rule computes with, and to
    its gradients. A batch in several parts gives their mean gradient, each by the weight of its
    loss (and its additional term with it), one after the other: less memory, and the same update
    where the rule draws nothing; batch statistics then move once a part.

    Returns:
        The next state, and the step's `loss` and metrics: those of `metric_fns`, or, without any,
        `accuracy` where the targets are one label for each row of the outputs; of a readout, if
        there is one, its accuracy.
    """
    key = jax.random.fold_in(state.key, state.step)
    if views:
        batch = views(key, batch)
    whole, rule_state = gather(state.params), gather(state.rule_state)

    def estimate(key, carry, batch):
        rule_state, model_state = carry
        found = estimate_gradients(rule, model, loss_fn, whole, rule_state, model_state, batch, key)
        seen = {} if readout else metrics.measured(metric_fns, found.outputs, batch.targets)
        gradients = (gather(found.grads), found.loss), found.weight
        return (found.rule_state, found.model_state), {_GRADIENTS: gradients, **seen}

    carry = (rule_state, state.model_state)
    (rule_state, model_state), means = _in_parts(estimate, num_parts, key, carry, batch)
    (grads, loss), found = means.pop(_GRADIENTS), means
    found["loss"] = loss
    tx = optax.with_extra_args_support(tx)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
    if rate_factor is not None:
        updates = jax.tree.map(lambda u: (rate_factor * u).astype(u.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    classifier = state.readout
    if readout:
        bound = model.bind(state.model_state, train=False)
        classifier, seen = readout.step(state.readout, bound, whole, batch)
        found["accuracy"] = seen["accuracy"]
    moved = (state.step + 1, params, rule_state, opt_state, state.key, classifier, model_state)
    return TrainState(*moved), found


def _in_parts(
    estimate: Callable[[PRNGKey, Any, Batch], tuple[Any, dict[str, tuple[Any, Array]]]],
    num_parts: int,
    key: PRNGKey,
    carry: Any,
    batch: Batch,
) -> tuple[Any, dict[str, Any]]:
    """The last carry, and the means, by their weights, of what is found on each part of a batch."""
    if num_parts == 1:
        carry, found = estimate(key, carry, batch)
        return carry, {name: value for name, (value, _) in found.items()}

    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(size % num_parts for size in sizes):
        raise InputError(
            f"num_parts is {num_parts}, which does not divide the batch of {max(sizes)}; choose a"
            " divisor"
        )

    def rows(a: Array) -> Array:  # every num_parts-th row, so that a part has rows of each device
        return jnp.moveaxis(a.reshape(-1, num_parts, *a.shape[1:]), 1, 0)

    def weighted(found):
        return {
            name: (jax.tree.map(lambda a, w=w: (w * a).astype(a.dtype), value), w)
            for name, (value, w) in found.items()
        }

    def add(so_far: tuple[Any, Any], part: tuple[Array, Batch]) -> tuple[Any, None]:
        carry, total = so_far
        carry, found = estimate(jax.random.fold_in(key, part[0]), carry, part[1])
        return (carry, tree.add(total, weighted(found))), None

    parts = jax.tree.map(rows, batch)  # [parts, batch / parts, ...]
    first = jax.tree.map(lambda a: a[0], parts)
    _, shapes = jax.eval_shape(estimate, key, carry, first)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    steps = (jnp.arange(num_parts), parts)
    (carry, total), _ = jax.lax.scan(loop_body(add), (carry, nothing), steps)
    return carry, {
        name: jax.tree.map(lambda a, w=w: (a / jnp.where(w == 0, 1, w)).astype(a.dtype), value)
        for name, (value, w) in total.items()
    }
