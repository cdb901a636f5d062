"""Backpropagation, the control of every experiment."""

import dataclasses

from jaxtyping import Array

from dfa_jax.rules.base import ChainRule
from dfa_jax.types import Params, RuleState


@dataclasses.dataclass(frozen=True)
class Backprop(ChainRule):
    """The true gradient: site `l` receives `delta_l = dL/dh_l`."""

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """The parameters as they are, and no state."""
        del key, model, batch
        return params, ()

    def feedback(self, key, model, params, rule_state) -> dict[str, Array]:
        """None: every linear map has its own transpose."""
        del key, model, params, rule_state
        return {}
