"""The Kolen-Pollack rule (KP): feedback that learns to mirror the weights."""

import dataclasses
import math

from jaxtyping import Array

from dfa_jax import tree
from dfa_jax.errors import InputError
from dfa_jax.models.maps import LinearMap
from dfa_jax.rules import draw
from dfa_jax.rules.base import ChainRule, GradEstimate
from dfa_jax.tree import Path
from dfa_jax.types import Params, RuleState


@dataclasses.dataclass(frozen=True)
class KolenPollack(ChainRule):
    r"""Feedback alignment whose matrices get the weights' own updates and the same decay.

        dW_l = h_{l-1}^T delta_l + lambda W_l,    dB_l = h_{l-1}^T delta_l + lambda B_l

    so under gradient descent with rate eta the difference `W_l - B_l` shrinks by `1 - eta lambda` a
    step. The feedback is learned, so it is a parameter (`feedback` beside each `kernel`): optimiser
    and weight decay treat both alike, as the rule asks.

    Attributes:
        decay: `lambda`. With a decoupled decay in the optimiser, 0 will do.
        feedback_distribution: entries at the start, before scaling by 1 / sqrt(fan_in).
        feedback_scale: multiplies the matrices at the start.

    Sources: Kolen and Pollack (1994); Akrout et al. (2019), arXiv 1904.05391.
    """

    decay: float = 1e-4
    feedback_distribution: draw.Distribution = "gaussian"
    feedback_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        draw.check_positive(feedback_scale=self.feedback_scale)
        if not (self.decay >= 0 and math.isfinite(self.decay)):
            raise InputError(f"decay is {self.decay}; expected a finite number >= 0")

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """The parameters with a feedback matrix beside every kernel."""
        del batch  # the kernels have all the shapes
        drawn = draw.kernel_feedback(
            key, model, params, self.feedback_distribution, self.feedback_scale
        )
        for name, B in drawn.items():
            params = tree.put(params, _beside(model.linear_maps[name]), B)
        return params, ()

    def feedback(self, key, model, params, rule_state) -> dict[str, Array]:
        """The learned matrices."""
        del key, rule_state  # they are among the parameters
        return {one.name: tree.get(params, _beside(one)) for one in model.maps}

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """The chain's gradients; each feedback matrix gets its kernel's."""
        found = super().estimate(model, objective, params, rule_state, batch, key, at=at)
        grads, learned = found.grads, self.feedback(key, model, params, rule_state)
        for one in model.maps:
            outer = tree.get(grads, one.path)
            decayed = outer + self.decay * tree.get(params, one.path)
            grads = tree.put(grads, one.path, decayed)
            grads = tree.put(grads, _beside(one), outer + self.decay * learned[one.name])
        return found._replace(grads=grads)


def _beside(linear_map: LinearMap) -> Path:
    """Where the feedback of a map's parameter is."""
    *module, name = linear_map.path
    return (*module, "feedback" if name == "kernel" else f"{name}_feedback")
