"""All that a run carries from step to step, and all that a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from dfa_jax.models.base import Model
from dfa_jax.rules import LearningRule
from dfa_jax.rules.functional import init_from
from dfa_jax.train.readout import Readout
from dfa_jax.train.views import Views
from dfa_jax.types import Batch, LossFn, Params, PRNGKey, RuleState


class TrainState(NamedTuple):
    """The state of a run.

    Attributes:
        step: optimiser steps taken.
        params: what the optimiser moves.
        rule_state: what the rule carries, fixed feedback among it; no optimiser sees it.
        opt_state: Optax's.
        key: of the run; step `t` uses `fold_in(key, t)`.
        readout: kernel and bias of the online readout; `()` in a run that has none.
        model_state: variables of the model besides its parameters, such as batch statistics; `()`
            if it has none.
    """

    step: Int[Array, ""]
    params: Params
    rule_state: RuleState
    opt_state: Any
    key: PRNGKey
    readout: Params = ()
    model_state: Any = ()


def init_state(
    key: PRNGKey,
    batch: Batch,
    *,
    model: Model,
    rule: LearningRule,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    feedback_key: PRNGKey | None = None,
    readout: Readout | None = None,
    views: Views | None = None,
) -> TrainState:
    """Draws parameters and the states of rule and model from separate keys.

    The parameters depend on the key alone, not on the rule: runs of one seed under several rules
    start from the same network. With `feedback_key` the rule's state depends on that one alone, and
    runs of several seeds can share their feedback. A `readout` starts at zero.

    Raises:
        InputError: model, loss, targets and rule do not fit together, see `rules.init`.
    """
    params_key, rule_key, run_key = jax.random.split(key, 3)
    if feedback_key is not None:
        rule_key = feedback_key
    seen = views(run_key, batch) if views else batch
    start = init_from(rule, model, loss_fn, params_key, rule_key, seen)
    params, rule_state, model_state = start
    bound = model.bind(model_state, train=False)
    classifier = readout.init(bound, params, batch.inputs) if readout else ()
    step, opt_state = jnp.zeros((), jnp.int32), tx.init(params)
    return TrainState(step, params, rule_state, opt_state, run_key, classifier, model_state)
