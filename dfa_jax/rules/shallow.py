"""The shallow control: only what lies above the last site learns."""

import dataclasses

import jax
import jax.numpy as jnp

from dfa_jax.autodiff.site_gradients import cut_gradients
from dfa_jax.rules.base import GradEstimate, SiteRule
from dfa_jax.types import SiteArrays


@dataclasses.dataclass(frozen=True)
class Shallow(SiteRule):
    """Every site receives `delta_l = 0`, so a readout learns on top of random features.

    A rule that does not beat this control has not trained the layers below. They cost their forward
    pass alone.
    """

    def send(self, key, model, rule_state, error, activities, targets, shares) -> SiteArrays:
        """Zeros."""
        del key, model, rule_state, error, targets, shares  # nothing reaches a site
        return jax.tree.map(jnp.zeros_like, activities)

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """One cut forward pass and no local VJP, whose products would all be of zeros."""
        del key  # nothing is drawn
        found = cut_gradients(model, objective, params, batch, at)
        return found._replace(rule_state=rule_state)
