"""Sign-concordant feedback with fixed random magnitudes (frSF)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.rules import draw
from dfa_jax.rules.base import ChainRule
from dfa_jax.types import Params, RuleState


@dataclasses.dataclass(frozen=True)
class FixedRandomSign(ChainRule):
    r"""The chain rule with the signs of the weights and magnitudes drawn once.

        B_l = |M_l| sign(W_l),    M_l fixed

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

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """Draws the magnitudes."""
        del batch  # the kernels have all the shapes
        drawn = draw.kernel_feedback(
            key, model, params, self.feedback_distribution, self.feedback_scale
        )
        return params, jax.tree.map(jnp.abs, drawn)

    def feedback(self, key, model, params, rule_state) -> dict[str, Array]:
        """The fixed magnitudes."""
        del key, model, params  # fixed
        return rule_state

    def substitute(self, weight, feedback, fan_in) -> Array:
        """Under today's signs of the weight as it is applied."""
        del fan_in
        return jnp.abs(feedback) * jnp.sign(weight)
