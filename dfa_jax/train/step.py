"""One training step, the same pure function for every learning rule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dfa_jax import metrics, tree
from dfa_jax.autodiff.loops import loop_body
from dfa_jax.models.base import Model
from dfa_jax.rules import LearningRule
from dfa_jax.train.readout import Readout
from dfa_jax.train.state import TrainState
from dfa_jax.train.views import Views
from dfa_jax.types import Batch, LossFn, Metrics, PRNGKey, RuleState


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
    rate_factor: Float[Array, ""] | None = None,
    gather: Callable[[Any], Any] = lambda tree: tree,
    num_parts: int = 1,
) -> tuple[TrainState, Metrics]:
    """Estimates gradients by the rule and applies the optimiser's update.

    With `views` it trains on those of the batch; a `readout` takes a step too, on the features of
    the parameters before the update. A `rate_factor` multiplies the learning rate, or rather what
    the optimiser adds to the parameters. `gather` is applied to what the rule computes with, and to
    its gradients. A batch in several parts gives their mean gradient, one after the other: less
    memory, and the same update where the rule draws nothing.

    Returns:
        The next state, and `loss` (mean over the batch) and, for integer targets, `accuracy`: the
        readout's, if there is one.
    """
    key = jax.random.fold_in(state.key, state.step)
    if views:
        batch = views(key, batch)
    whole, rule_state = gather(state.params), gather(state.rule_state)

    def estimate(key, rule_state, batch):
        found = rule.estimate(key, model, loss_fn, whole, rule_state, batch)
        seen: Metrics = {"loss": found.loss}
        if not readout and jnp.issubdtype(batch.targets.dtype, jnp.integer):
            seen["accuracy"] = metrics.correct(found.outputs, batch.targets).mean()
        return found.rule_state, (gather(found.grads), seen)

    rule_state, (grads, found) = _in_parts(estimate, num_parts, key, rule_state, batch)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    if rate_factor is not None:
        updates = jax.tree.map(lambda u: (rate_factor * u).astype(u.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    classifier = state.readout
    if readout:
        classifier, seen = readout.step(state.readout, whole, batch)
        found["accuracy"] = seen["accuracy"]
    moved = (state.step + 1, params, rule_state, opt_state, state.key, classifier)
    return TrainState(*moved), found


def _in_parts(
    estimate: Callable[[PRNGKey, RuleState, Batch], tuple[RuleState, Any]],
    num_parts: int,
    key: PRNGKey,
    rule_state: RuleState,
    batch: Batch,
) -> tuple[RuleState, Any]:
    """The last state, and the mean of what is estimated on each part of the batch."""
    if num_parts == 1:
        return estimate(key, rule_state, batch)

    def rows(a: Array) -> Array:  # every num_parts-th row, so that a part has rows of each device
        return jnp.moveaxis(a.reshape(-1, num_parts, *a.shape[1:]), 1, 0)

    def add(carry: tuple[RuleState, Any], part: tuple[Array, Batch]) -> tuple[Any, None]:
        rule_state, total = carry
        rule_state, found = estimate(jax.random.fold_in(key, part[0]), rule_state, part[1])
        return (rule_state, tree.add(total, found)), None

    parts = jax.tree.map(rows, batch)  # [parts, batch / parts, ...]
    first = jax.tree.map(lambda a: a[0], parts)
    _, shapes = jax.eval_shape(estimate, key, rule_state, first)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    begin = (rule_state, nothing)
    (rule_state, total), _ = jax.lax.scan(loop_body(add), begin, (jnp.arange(num_parts), parts))
    return rule_state, jax.tree.map(lambda a: a / num_parts, total)
