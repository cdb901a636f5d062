"""Uniform sign-concordant feedback (uSF)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.rules import draw
from dfa_jax.rules.base import ChainRule, kernels


@dataclasses.dataclass(frozen=True)
class UniformSign(ChainRule):
    r"""The chain rule with the signs of the weights and one magnitude a layer.

        B_l = s sign(W_l) / sqrt(fan_in)

    Attributes:
        feedback_scale: the magnitude `s`.

    Source: Liao, Leibo and Poggio (2016), arXiv 1510.05067.
    """

    feedback_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        draw.check_positive(feedback_scale=self.feedback_scale)

    def feedback(self, key, model, params, rule_state) -> dict[str, Any]:
        """The parameters themselves: only signs are read."""
        del key, rule_state  # nothing is drawn
        return kernels(model, params)

    def substitute(self, weight, feedback, fan_in) -> Array:
        """Today's signs of the weight as it is applied."""
        del feedback
        return jnp.sign(weight) * jnp.asarray(self.feedback_scale * fan_in**-0.5, weight.dtype)
