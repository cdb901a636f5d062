"""Direct random target projection (DRTP)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dfa_jax import tree
from dfa_jax.autodiff import sites
from dfa_jax.autodiff.site_gradients import Backward
from dfa_jax.errors import InputError
from dfa_jax.rules import draw
from dfa_jax.rules.base import SiteRule
from dfa_jax.types import Params, RuleState, SiteArrays


@dataclasses.dataclass(frozen=True)
class DirectRandomTargetProjection(SiteRule):
    r"""The one-hot target, not the error, goes to every site: no site waits for the outputs.

        delta_l = onehot(target) B_l / N,    N examples, or each by its share in a weighted mean

    Attributes:
        feedback_distribution: as in direct feedback alignment.
        feedback_scaling: as in direct feedback alignment.
        feedback_scale: multiplies `B_l`.
        feedback_sharing: as in direct feedback alignment.
        feedback_storage: as in direct feedback alignment.
        backward: as in direct feedback alignment.
        labels: which array of the targets the labels are, by name, where several will do.

    Source: Frenkel, Lefebvre and Bol (2021), arXiv 1909.01311.
    """

    feedback_distribution: draw.Distribution = "gaussian"
    feedback_scaling: draw.Scaling = "site_width"
    feedback_scale: float = 1.0
    feedback_sharing: draw.Sharing = "per_site"
    feedback_storage: draw.Storage = "stored"
    backward: Backward = "sequential"
    labels: str = ""

    def __post_init__(self):
        super().__post_init__()
        draw.check_positive(feedback_scale=self.feedback_scale)

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """Draws the feedback.

        Raises:
            InputError: the targets are no integer labels, one for each error vector.
        """
        outputs = sites.abstract_forward(model, params, batch.inputs)[0]
        *front, width = model.error_shape(outputs)
        _check_classes(self._labels(batch.targets, tuple(front)), width)
        return params, self._feedback.init(key, model, params, batch)

    def _labels(self, targets: Any, front: tuple[int, ...]) -> Any:
        """The one array of integers in the targets, or the one that is named."""
        found = {
            name: leaf
            for name, leaf in tree.leaves_by_name(targets).items()
            if jnp.issubdtype(jnp.result_type(leaf), jnp.integer) and jnp.shape(leaf) == front
        }
        if self.labels:
            found = {name: leaf for name, leaf in found.items() if name == self.labels}
        if len(found) == 1:
            return next(iter(found.values()))
        kinds = jax.tree.map(lambda a: f"{jnp.result_type(a)} {jnp.shape(a)}", targets)
        raise InputError(
            f"direct_random_target_projection projects integer labels {front}; the targets are"
            f" {kinds}" + (f", without '{self.labels}'" if self.labels else "") + ". Name"
            " the labels by its option `labels` if there are several, or use another rule"
        )

    @property
    def order(self) -> Backward:
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

    def send(self, key, model, rule_state, error, activities, targets, shares) -> SiteArrays:
        """`onehot(target) B_l / N` at every site; the error is not read."""
        del key  # fixed feedback
        labels = self._labels(targets, error.shape[:-1])
        projected = jax.nn.one_hot(labels, error.shape[-1]) * shares[..., None]
        return self._feedback.send(model, rule_state, projected, activities)


def _check_classes(labels: Any, width: int) -> None:
    """Refuses whole numbers that are no classes of so many outputs, where they are known."""
    if width < 2:
        raise InputError(
            "direct_random_target_projection projects integer labels of several classes, and the"
            f" outputs that it reads have {width} number an example; use another rule"
        )
    if isinstance(labels, Tracer | jax.ShapeDtypeStruct):
        return
    largest = np.asarray(labels).max()
    if largest >= width:
        raise InputError(
            f"a target is {largest}, and the outputs have {width} classes;"
            " direct_random_target_projection expects integer labels below that"
        )
