"""Direct feedback alignment (DFA)."""

import dataclasses
import itertools
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax.autodiff.site_gradients import Backward, ErrorTap
from dfa_jax.rules import draw
from dfa_jax.rules.base import SiteRule, kernels
from dfa_jax.types import Params, RuleState, SiteArrays

ErrorEncoding = Literal["full", "sign", "ternary"]


@dataclasses.dataclass(frozen=True)
class DirectFeedbackAlignment(SiteRule):
    r"""The output error goes to every site through a fixed random matrix of its own.

        delta_l = c(e) B_l,    e = dL/dy (or dL/dh at the last site),    B_l: [d_e, d_l]

    `B_l` lives in the rule's state, so no optimiser and no weight decay can move it.

    Attributes:
        feedback_distribution: entries of `B_l` before scaling: `gaussian` N(0, 1) or `uniform` on
            [-1, 1).
        feedback_scaling: divides `B_l` by the root of the site's width (`site_width`), of the
            error's (`error_width`), or by nothing (`none`).
        feedback_scale: multiplies `B_l`.
        feedback_sharing: `per_site`, or `shared`: one wide matrix whose first columns serve
            narrower sites (scaled by the widest), as in Launay et al. (2020).
        feedback_storage: `stored` in the rule's state, or `regenerated` from its key in every step:
            the same numbers, which take up no memory between steps and none in a checkpoint. The
            weights' alignment with them is not measured then.
        error_tap: where `e` is read: `logits`, or `last_hidden`, the input of what lies above the
            last site; then the feedback does not grow with the number of classes.
        error_encoding: `c(e)`: `full` e, its `sign`, or `ternary`: the sign where an example's
            |e| exceeds `ternary_threshold`, else 0.
        ternary_threshold: in units of the loss per output, before the mean over examples.
        backward: the local VJPs of a scanned stack's blocks one by one (`sequential`), or all of
            them at once (`layer_parallel`): the same gradients to rounding. See `autodiff.layers`.

    Sources: Nøkland (2016), arXiv 1609.01596; shared feedback and the last-hidden tap: Launay et
    al. (2020), arXiv 2006.12878.
    """

    feedback_distribution: draw.Distribution = "gaussian"
    feedback_scaling: draw.Scaling = "site_width"
    feedback_scale: float = 1.0
    feedback_sharing: draw.Sharing = "per_site"
    feedback_storage: draw.Storage = "stored"
    error_tap: ErrorTap = "logits"
    error_encoding: ErrorEncoding = "full"
    ternary_threshold: float = 0.1
    backward: Backward = "sequential"

    def __post_init__(self):
        super().__post_init__()
        draw.check_positive(
            feedback_scale=self.feedback_scale, ternary_threshold=self.ternary_threshold
        )

    @property
    def tap(self) -> ErrorTap:
        """Where the output error is read."""
        return self.error_tap

    @property
    def order(self) -> Backward:
        """Of the local VJPs."""
        return self.backward

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """Draws the feedback, `{site: B_l}` or `{"shared": B}`, or keeps its key."""
        return params, self._feedback.init(key, model, params, batch)

    @property
    def _feedback(self) -> draw.DirectFeedback:
        return draw.DirectFeedback(
            self.feedback_distribution,
            self.feedback_scaling,
            self.feedback_scale,
            self.feedback_sharing,
            self.feedback_storage,
            self.error_tap,
        )

    def send(self, key, model, rule_state, error, activities, targets, shares) -> SiteArrays:
        """`c(e) B_l` at every site."""
        del key, targets  # fixed feedback of the error alone
        return self._feedback.send(model, rule_state, self.encode(error, shares), activities)

    def encode(
        self, error: Float[Array, "*batch width"], shares: Float[Array, "*batch"]
    ) -> Float[Array, "*batch width"]:
        """`c(e)`; a row's share in the mean is undone before the threshold, and redone."""
        if self.error_encoding == "full":
            return error
        signs, shares = jnp.sign(error), shares[..., None]
        if self.error_encoding == "ternary":
            signs = jnp.where(jnp.abs(error) > self.ternary_threshold * shares, signs, 0)
        return signs * shares

    def weight_targets(self, model, params, rule_state, batch) -> dict[str, tuple[Array, Array]]:
        """`W` and `B_{l-1}^T B_l` by linear map above the first; `B_{L-1}^T` on top.

        `B_l` is meant before scaling here, with entries of size 1. That is no matter for one layer
        and weighs the layers where all of them are compared as one vector, as the paper does.
        Defined where the linear maps are a chain with a site behind each but the last and the error
        is read at the logits; empty otherwise. Source: Refinetti et al. (2021), arXiv 2011.12428,
        and the code published with it.
        """
        del batch  # the parameters have all the shapes
        above_first = list(kernels(model, params).items())[1:]
        known = self.feedback_storage == "stored" and len(above_first) == len(model.sites)
        if not known or not all(
            self._feeds(rule_state, site, kernel)
            for site, (_, kernel) in zip(model.sites, above_first, strict=True)
        ):
            return {}
        matrices = [
            self._unscaled(rule_state, site, kernel.shape[0])
            for site, (_, kernel) in zip(model.sites, above_first, strict=True)
        ]
        matrices.append(jnp.eye(matrices[0].shape[0]))  # the outputs get e itself
        return {
            name: (kernel, below.T @ above)
            for (name, kernel), (below, above) in zip(
                above_first, itertools.pairwise(matrices), strict=True
            )
        }

    def _unscaled(self, rule_state: RuleState, site: str, width: int) -> Array:
        """`B_l` with the entries it was drawn with, `[d_e, width]`."""
        scaled = draw.matrix(rule_state, site, width)
        widest = rule_state["shared"].shape[1] if "shared" in rule_state else width
        factor = draw.scaling_factor(self.feedback_scaling, widest, len(scaled))
        return scaled / (self.feedback_scale * factor)

    def _feeds(self, rule_state: RuleState, site: str, kernel: Array) -> bool:
        """Whether this dense kernel takes the features of the site and the tap is at the logits."""
        if self.error_tap != "logits" or kernel.ndim != 2:
            return False
        if "shared" in rule_state:
            return kernel.shape[0] <= rule_state["shared"].shape[1]
        return rule_state[site].ndim == 2 and rule_state[site].shape[1] == kernel.shape[0]
