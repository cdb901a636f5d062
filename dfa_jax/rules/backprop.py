"""Backpropagation, the control of every experiment."""

import dataclasses

from jaxtyping import Array

from dfa_jax.rules.base import ChainRule


@dataclasses.dataclass(frozen=True)
class Backprop(ChainRule):
    """The true gradient: site `l` receives `delta_l = dL/dh_l`."""

    def feedback(self, key, model, params, rule_state) -> dict[str, Array]:
        """None: every linear map has its own transpose."""
        del key, model, params, rule_state
        return {}
