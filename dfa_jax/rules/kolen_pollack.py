"""The Kolen-Pollack rule (KP): feedback that learns to mirror the weights."""

import dataclasses
import math

from jaxtyping import Array

from dfa_jax import tree
from dfa_jax.errors import InputError
from dfa_jax.rules import draw
from dfa_jax.rules.base import ChainRule, GradEstimate, kernels
from dfa_jax.types import Params, RuleState

_FEEDBACK = "feedback"


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
            params = tree.put(params, (*model.linear_maps[name].path, _FEEDBACK), B)
        return params, ()

    def feedback(self, key, model, params, rule_state) -> dict[str, Array]:
        """The learned matrices."""
        del key, rule_state  # they are among the parameters
        return {
            name: tree.get(params, (*linear_map.path, _FEEDBACK))
            for name, linear_map in model.linear_maps.items()
        }

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """The chain's gradients; each feedback matrix gets its kernel's."""
        found = super().estimate(model, objective, params, rule_state, batch, key, at=at)
        grads, learned = found.grads, self.feedback(key, model, params, rule_state)
        for name, kernel in kernels(model, params).items():
            path = model.linear_maps[name].path
            outer = tree.get(grads, (*path, "kernel"))
            grads = tree.put(grads, (*path, "kernel"), outer + self.decay * kernel)
            grads = tree.put(grads, (*path, _FEEDBACK), outer + self.decay * learned[name])
        return found._replace(grads=grads)
