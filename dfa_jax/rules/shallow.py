"""The shallow control: only what lies above the last site learns."""

import dataclasses

import jax
import jax.numpy as jnp

from dfa_jax.rules.base import SiteRule
from dfa_jax.types import SiteArrays


@dataclasses.dataclass(frozen=True)
class Shallow(SiteRule):
    """Every site receives `delta_l = 0`, so a readout learns on top of random features.

    A rule that does not beat this control has not trained the layers below.
    """

    def send(self, key, model, rule_state, error, activities, targets) -> SiteArrays:
        """Zeros."""
        del key, model, rule_state, error, targets  # nothing reaches a site
        return jax.tree.map(jnp.zeros_like, activities)
