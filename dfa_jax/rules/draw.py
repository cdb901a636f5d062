"""How feedback matrices are drawn and scaled; the options that several rules share."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dfa_jax.autodiff import feedback, sites
from dfa_jax.autodiff.site_gradients import ErrorTap
from dfa_jax.errors import InputError, SiteError
from dfa_jax.keys import named_key
from dfa_jax.models.base import Model
from dfa_jax.rules.base import check_swapped, kernels
from dfa_jax.types import Batch, Params, PRNGKey, RuleState, SiteArrays

Distribution = Literal["gaussian", "uniform"]
"""Entries of a feedback matrix before scaling: N(0, 1), or uniform on [-1, 1)."""

Scaling = Literal["site_width", "error_width", "none"]
"""Divides B_l by the root of the site's width d_l, of the error's width d_e, or by nothing."""

Sharing = Literal["per_site", "shared"]
"""One matrix a site, or one wide matrix whose first columns serve the narrower sites."""

Storage = Literal["stored", "regenerated"]
"""The rule's state holds the matrices, or a key from which each step draws them, as they were."""

SHARED, KEY = "shared", "key"


class SiteShape(NamedTuple):
    """Axes of a site's activity: `[*stack, *batch, *features]`."""

    stack: tuple[int, ...]
    features: tuple[int, ...]

    @property
    def width(self) -> int:
        """Number of features, `d_l`."""
        return math.prod(self.features)


def draw(key: PRNGKey, name: str, shape: tuple[int, ...], distribution: Distribution) -> Array:
    """Unscaled entries from a key of the name's own."""
    return entries(named_key(key, name), shape, distribution)


def entries(key: PRNGKey, shape: tuple[int, ...], distribution: Distribution) -> Array:
    """Unscaled entries."""
    if distribution == "gaussian":
        return jax.random.normal(key, shape)
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


@dataclasses.dataclass(frozen=True)
class DirectFeedback:
    """Fixed random matrices from one signal to every site.

    Attributes:
        distribution: of the entries before scaling.
        scaling: what divides them by the root of a width.
        scale: what multiplies them.
        sharing: a matrix for each site, or one for all, scaled by the largest width.
        storage: whether the state holds the matrices, or the key that they are drawn from.
        error_tap: where the signal is read.
    """

    distribution: Distribution
    scaling: Scaling
    scale: float
    sharing: Sharing
    storage: Storage = "stored"
    error_tap: ErrorTap = "logits"

    def init(self, key: PRNGKey, model: Model, params: Params, batch: Batch) -> RuleState:
        """`{site: B_l}`, `[*stack, d_e, *features]`; `{"shared": B}`, `[d_e, max d_l]`; the key."""
        shapes, error_width = site_shapes(model, params, batch, self.error_tap)
        if self.storage == "regenerated":
            return {KEY: key}
        if self.sharing == "shared":
            return {SHARED: self._shared(key, shapes, error_width)}
        drawn = {}
        for site, shape in shapes.items():
            keys = _layer_keys(key, site, shape.stack)
            layers = jax.vmap(lambda key, shape=shape: self._one(key, shape, error_width))(keys)
            drawn[site] = layers.reshape(*shape.stack, *layers.shape[1:])
        return drawn

    def send(
        self, model: Model, rule_state: RuleState, error: Array, activities: SiteArrays
    ) -> SiteArrays:
        """`e B_l` at every site; `error` is `[*batch, d_e]`."""
        shapes = {
            site: SiteShape(at.stack, activities[site].shape[len(at.stack) + error.ndim - 1 :])
            for site, at in model.where.items()
        }
        if KEY in rule_state:
            # Tied to the error, or the compiler takes the matrices out of the loop over steps.
            key, error = _behind(rule_state[KEY], error)
            if self.sharing == "per_site":
                return self._send_anew(key, shapes, error)
            rule_state = {SHARED: self._shared(key, shapes, error.shape[-1])}
        if SHARED not in rule_state:
            return {
                site: feedback.project(error, rule_state[site], len(shape.stack))
                for site, shape in shapes.items()
            }
        sent = {
            site: feedback.project(
                error, matrix(rule_state, site, shape.width).reshape(-1, *shape.features)
            )
            for site, shape in shapes.items()
        }
        return {site: jnp.broadcast_to(one, activities[site].shape) for site, one in sent.items()}

    def _send_anew(self, key: PRNGKey, shapes: Mapping[str, SiteShape], error: Array) -> SiteArrays:
        """A matrix is drawn, used and forgotten: sites of one shape take turns in a loop."""

        def one(key: PRNGKey, features: tuple[int, ...]) -> Array:
            shape = SiteShape((), features)
            return feedback.project(error, self._one(key, shape, error.shape[-1]))

        alike: dict[tuple[int, ...], list[str]] = {}
        for site, shape in shapes.items():
            alike.setdefault(shape.features, []).append(site)
        found = {}
        for features, names in alike.items():
            keys = [_layer_keys(key, site, shapes[site].stack) for site in names]
            sent = jax.lax.map(lambda key, f=features: one(key, f), jnp.concatenate(keys))
            ends = np.cumsum([len(own) for own in keys])
            for site, own in zip(names, jnp.split(sent, ends[:-1]), strict=True):
                found[site] = own.reshape(*shapes[site].stack, *own.shape[1:])
        return found

    def _one(self, key: PRNGKey, shape: SiteShape, error_width: int) -> Array:
        factor = self.scale * scaling_factor(self.scaling, shape.width, error_width)
        return factor * entries(key, (error_width, *shape.features), self.distribution)

    def _shared(self, key: PRNGKey, shapes: Mapping[str, SiteShape], error_width: int) -> Array:
        widest = SiteShape((), (max(shape.width for shape in shapes.values()),))
        return self._one(named_key(key, SHARED), widest, error_width)


def _layer_keys(key: PRNGKey, site: str, stack: tuple[int, ...]) -> Array:
    """A key for each layer of a site, in one row; its own alone where it is no stack."""
    key = named_key(key, site)
    return jax.random.split(key, math.prod(stack)) if stack else key[None]


def _behind(key: PRNGKey, value: Array) -> tuple[PRNGKey, Array]:
    """Both as they are, but the key is not known before the value."""
    words, value = jax.lax.optimization_barrier((jax.random.key_data(key), value))
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key)), value


def scaling_factor(scaling: Scaling, site_width: int, error_width: int) -> float:
    """What multiplies the entries of a feedback matrix, the option `scale` aside."""
    divisor = {"site_width": site_width, "error_width": error_width, "none": 1}[scaling]
    return 1 / math.sqrt(divisor)


def matrix(rule_state: RuleState, site: str, width: int) -> Array:
    """The feedback of a site without layer axes as a matrix, `[d_e, width]`."""
    if SHARED in rule_state:
        return rule_state[SHARED][:, :width]
    return rule_state[site].reshape(-1, width)


def site_shapes(
    model: Model, params: Params, batch: Batch, error_tap: ErrorTap
) -> tuple[dict[str, SiteShape], int]:
    """Shape of every site, and the width of the error at the tap.

    Raises:
        SiteError: a site's activity lacks the batch axes of the model's outputs.
    """
    outputs, activities = sites.abstract_forward(model, params, batch.inputs)
    error = model.error_shape(outputs)
    batch_axes = error[:-1]
    shapes = {}
    for site, place in model.where.items():
        inner = activities[site].shape[len(place.stack) :]
        if not place.has_examples:
            raise SiteError(
                f"site '{site}' has activity {inner}, whose first axis is not that of the examples"
                " (it is not as long as the batch, or does not grow with it): direct feedback sends"
                " an error to each example; put the site where examples are in front"
            )
        if inner[: len(batch_axes)] != batch_axes:
            raise SiteError(
                f"site '{site}' has activity {inner} and the outputs' errors are {error}:"
                f" direct feedback needs the batch axes {batch_axes} in front of both; put the site"
                " where they are, or say how many batch axes there are: from_linen(...,"
                " batch_axes=1) reads one error an example"
            )
        shapes[site] = SiteShape(place.stack, inner[len(batch_axes) :])
    width = error[-1] if error_tap == "logits" else shapes[model.sites[-1]].width
    return shapes, width


def kernel_feedback(
    key: PRNGKey, model: Model, params: Params, distribution: Distribution, scale: float
) -> dict[str, Array]:
    """For chain rules: a matrix like each map's parameter, entries scaled by 1 / sqrt(fan_in).

    Raises:
        InputError: an error passes parameters in another way than by a product.
    """
    check_swapped(model)
    return {
        name: draw(key, name, kernel.shape, distribution).astype(kernel.dtype)
        * (scale / math.sqrt(model.linear_maps[name].fan_in))
        for name, kernel in kernels(model, params).items()
    }


def check_positive(**options: float) -> None:
    """Refuses a scale that is not a positive finite number."""
    for name, value in options.items():
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} is {value}; expected a positive finite number")


def check_draws(num_draws: int, clip: float) -> None:
    """Refuses options of a forward gradient that no estimate can be made of."""
    if num_draws < 1:
        raise InputError(f"num_draws is {num_draws}; expected at least one direction")
    if not (clip >= 0 and math.isfinite(clip)):
        raise InputError(f"clip is {clip}; expected a finite number >= 0, where 0 is no limit")
