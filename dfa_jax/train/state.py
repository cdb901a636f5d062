"""All that a run carries from step to step, and all that a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from dfa_jax.models.base import Model
from dfa_jax.rules import LearningRule
from dfa_jax.train.readout import Readout
from dfa_jax.types import Batch, Params, PRNGKey, RuleState


class TrainState(NamedTuple):
    """The state of a run.

    Attributes:
        step: optimiser steps taken.
        params: what the optimiser moves.
        rule_state: what the rule carries, fixed feedback among it; no optimiser sees it.
        opt_state: Optax's.
        key: of the run; step `t` uses `fold_in(key, t)`.
        readout: kernel and bias of the online readout; `()` in a run that has none.
    """

    step: Int[Array, ""]
    params: Params
    rule_state: RuleState
    opt_state: Any
    key: PRNGKey
    readout: Params = ()


def init_state(
    key: PRNGKey,
    batch: Batch,
    *,
    model: Model,
    rule: LearningRule,
    tx: optax.GradientTransformation,
    feedback_key: PRNGKey | None = None,
    readout: Readout | None = None,
) -> TrainState:
    """Draws parameters and the rule's state from separate keys.

    The parameters depend on the key alone, not on the rule: runs of one seed under several rules
    start from the same network. With `feedback_key` the rule's state depends on that one alone, and
    runs of several seeds can share their feedback. A `readout` starts at zero.
    """
    params_key, rule_key, run_key = jax.random.split(key, 3)
    if feedback_key is not None:
        rule_key = feedback_key
    params, rule_state = rule.init(rule_key, model, model.init(params_key, batch.inputs), batch)
    classifier = readout.init(params, batch.inputs) if readout else ()
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, rule_state, tx.init(params), run_key, classifier)
