"""One training step, the same pure function for every learning rule."""

import jax
import jax.numpy as jnp
import optax

from dfa_jax import metrics
from dfa_jax.models.base import Model
from dfa_jax.rules import LearningRule
from dfa_jax.train.state import TrainState
from dfa_jax.types import Batch, LossFn, Metrics


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    rule: LearningRule,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Estimates gradients by the rule and applies the optimiser's update.

    Returns:
        The next state, and `loss` (mean over the batch) and, for integer targets, `accuracy`.
    """
    key = jax.random.fold_in(state.key, state.step)
    estimate = rule.estimate(key, model, loss_fn, state.params, state.rule_state, batch)
    updates, opt_state = tx.update(estimate.grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    found: Metrics = {"loss": estimate.loss}
    if jnp.issubdtype(batch.targets.dtype, jnp.integer):
        found["accuracy"] = metrics.correct(estimate.outputs, batch.targets).mean()
    return TrainState(state.step + 1, params, estimate.rule_state, opt_state, state.key), found
