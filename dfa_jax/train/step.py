"""One training step, the same pure function for every learning rule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dfa_jax import metrics
from dfa_jax.models.base import Model
from dfa_jax.rules import LearningRule
from dfa_jax.train.readout import Readout
from dfa_jax.train.state import TrainState
from dfa_jax.train.views import Views
from dfa_jax.types import Batch, LossFn, Metrics


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
) -> tuple[TrainState, Metrics]:
    """Estimates gradients by the rule and applies the optimiser's update.

    With `views` it trains on those of the batch; a `readout` takes a step too, on the features of
    the parameters before the update. A `rate_factor` multiplies the learning rate, or rather what
    the optimiser adds to the parameters. `gather` is applied to what the rule
    computes with, and to its gradients.

    Returns:
        The next state, and `loss` (mean over the batch) and, for integer targets, `accuracy`: the
        readout's, if there is one.
    """
    key = jax.random.fold_in(state.key, state.step)
    if views:
        batch = views(key, batch)
    whole, rule_state = gather(state.params), gather(state.rule_state)
    estimate = rule.estimate(key, model, loss_fn, whole, rule_state, batch)
    updates, opt_state = tx.update(gather(estimate.grads), state.opt_state, state.params)
    if rate_factor is not None:
        updates = jax.tree.map(lambda u: (rate_factor * u).astype(u.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    found: Metrics = {"loss": estimate.loss}
    classifier = state.readout
    if readout:
        classifier, seen = readout.step(state.readout, whole, batch)
        found["accuracy"] = seen["accuracy"]
    elif jnp.issubdtype(batch.targets.dtype, jnp.integer):
        found["accuracy"] = metrics.correct(estimate.outputs, batch.targets).mean()
    moved = (state.step + 1, params, estimate.rule_state, opt_state, state.key, classifier)
    return TrainState(*moved), found
