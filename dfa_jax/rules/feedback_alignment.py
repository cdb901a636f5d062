"""Feedback alignment (FA)."""

import dataclasses

from jaxtyping import Array

from dfa_jax.rules import draw
from dfa_jax.rules.base import ChainRule
from dfa_jax.types import Params, RuleState


@dataclasses.dataclass(frozen=True)
class FeedbackAlignment(ChainRule):
    r"""The chain rule with fixed random matrices in place of the transposed weights.

        delta_{l-1} = delta_l B_l^T  in place of  delta_l W_l^T

    for every dense and convolutional map; `B_l` has the shape of the kernel `W_l`.

    Attributes:
        feedback_distribution: entries before scaling by 1 / sqrt(fan_in): `gaussian` or `uniform`.
        feedback_scale: multiplies `B_l`.

    Source: Lillicrap et al. (2016), Nature Communications 7:13276.
    """

    feedback_distribution: draw.Distribution = "gaussian"
    feedback_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        draw.check_positive(feedback_scale=self.feedback_scale)

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """Draws one matrix a linear map."""
        del batch  # the kernels have all the shapes
        return params, draw.kernel_feedback(
            key, model, params, self.feedback_distribution, self.feedback_scale
        )

    def feedback(self, key, model, params, rule_state) -> dict[str, Array]:
        """The fixed matrices."""
        del key, model, params  # fixed
        return rule_state
