"""Direct random target projection (DRTP)."""

import dataclasses

import jax
import jax.numpy as jnp

from dfa_jax.autodiff import sites
from dfa_jax.errors import InputError
from dfa_jax.rules import draw
from dfa_jax.rules.base import SiteRule
from dfa_jax.types import Params, RuleState, SiteArrays


@dataclasses.dataclass(frozen=True)
class DirectRandomTargetProjection(SiteRule):
    r"""The one-hot target, not the error, goes to every site: no site waits for the outputs.

        delta_l = onehot(target) B_l / N,    N examples

    Attributes:
        feedback_distribution: as in direct feedback alignment.
        feedback_scaling: as in direct feedback alignment.
        feedback_scale: multiplies `B_l`.
        feedback_sharing: as in direct feedback alignment.
        feedback_storage: as in direct feedback alignment.
        backward: as in direct feedback alignment.

    Source: Frenkel, Lefebvre and Bol (2021), arXiv 1909.01311.
    """

    feedback_distribution: draw.Distribution = "gaussian"
    feedback_scaling: draw.Scaling = "site_width"
    feedback_scale: float = 1.0
    feedback_sharing: draw.Sharing = "per_site"
    feedback_storage: draw.Storage = "stored"
    backward: sites.Backward = "sequential"

    def __post_init__(self):
        super().__post_init__()
        draw.check_positive(feedback_scale=self.feedback_scale)

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """Draws the feedback; the targets must be integer labels."""
        if not jnp.issubdtype(jnp.result_type(batch.targets), jnp.integer):
            raise InputError(
                "direct_random_target_projection projects integer labels; the targets are"
                f" {jnp.result_type(batch.targets)}. Use another rule for regression"
            )
        return params, self._feedback.init(key, model, params, batch)

    @property
    def order(self) -> sites.Backward:
        """Of the local VJPs."""
        return self.backward

    @property
    def _feedback(self) -> draw.DirectFeedback:
        return draw.DirectFeedback(
            self.feedback_distribution,
            self.feedback_scaling,
            self.feedback_scale,
            self.feedback_sharing,
            self.feedback_storage,
        )

    def send(self, key, model, rule_state, error, activities, targets) -> SiteArrays:
        """`onehot(target) B_l / N` at every site; the error is not read."""
        del key  # fixed feedback
        labels = jax.nn.one_hot(targets, error.shape[-1]) / targets.size
        return self._feedback.send(model, rule_state, labels, activities)
