"""Sign-concordant feedback with magnitudes redrawn for every batch (brSF)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.rules import draw
from dfa_jax.rules.base import ChainRule


@dataclasses.dataclass(frozen=True)
class BatchwiseRandomSign(ChainRule):
    r"""The chain rule with the signs of the weights and fresh random magnitudes every step.

        B_l = |M_l| sign(W_l),    M_l redrawn

    Attributes:
        feedback_distribution: entries of `M_l` before scaling by 1 / sqrt(fan_in).
        feedback_scale: multiplies `M_l`.

    Source: Liao, Leibo and Poggio (2016), arXiv 1510.05067.
    """

    feedback_distribution: draw.Distribution = "gaussian"
    feedback_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        draw.check_positive(feedback_scale=self.feedback_scale)

    def feedback(self, key, model, params, rule_state) -> dict[str, Array]:
        """Magnitudes from this step's key."""
        del rule_state  # nothing is kept
        return draw.kernel_feedback(
            key, model, params, self.feedback_distribution, self.feedback_scale
        )

    def substitute(self, weight, feedback, fan_in) -> Array:
        """Under today's signs of the weight as it is applied."""
        del fan_in
        return jnp.abs(feedback) * jnp.sign(weight)
