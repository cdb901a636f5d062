"""Backpropagation, the control of every experiment."""

import dataclasses

import jax

from dfa_jax.autodiff import sites
from dfa_jax.rules.base import GradEstimate, LearningRule
from dfa_jax.types import SiteArrays


@dataclasses.dataclass(frozen=True)
class Backprop(LearningRule):
    """The true gradient: site `l` receives `delta_l = dL/dh_l`."""

    def estimate(self, key, model, loss_fn, params, rule_state, batch) -> GradEstimate:
        """`jax.value_and_grad` of the plain forward pass."""
        forward_key, _ = jax.random.split(key)  # the split of all rules, so dropout agrees
        found = sites.chain_gradients(model, loss_fn, params, batch, {}, key=forward_key)
        return GradEstimate(*found, rule_state)

    def errors(self, key, model, loss_fn, params, rule_state, batch, at=None) -> SiteArrays:
        """`dL/dh_l` at every site."""
        del rule_state  # there is none
        forward_key, _ = jax.random.split(key)
        return sites.chain_errors(at or model, loss_fn, params, batch, {}, key=forward_key)
