"""The shallow control: only what lies above the last site learns."""

import dataclasses

import jax
import jax.numpy as jnp

from dfa_jax.autodiff.objective import cut_gradients
from dfa_jax.rules.base import GradEstimate, SiteRule
from dfa_jax.types import SiteArrays


@dataclasses.dataclass(frozen=True)
class Shallow(SiteRule):
    """Every site receives `delta_l = 0`, so a readout learns on top of random features.

    A rule that does not beat this control has not trained the layers below. They cost their forward
    pass alone.
    """

    def send(self, key, model, rule_state, error, activities, targets) -> SiteArrays:
        """Zeros."""
        del key, model, rule_state, error, targets  # nothing reaches a site
        return jax.tree.map(jnp.zeros_like, activities)

    def estimate(self, key, model, loss_fn, params, rule_state, batch) -> GradEstimate:
        """One cut forward pass and no local VJP, whose products would all be of zeros."""
        forward_key, _ = jax.random.split(key)
        found = cut_gradients(model, loss_fn, params, batch, key=forward_key)
        return GradEstimate(*found, rule_state)
