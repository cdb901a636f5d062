"""How feedback matrices are drawn and scaled; the options that several rules share."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.autodiff import feedback, sites
from dfa_jax.errors import InputError, SiteError
from dfa_jax.keys import named_key
from dfa_jax.models.base import Model
from dfa_jax.rules.base import kernels
from dfa_jax.types import Batch, Params, PRNGKey, RuleState, SiteArrays

Distribution = Literal["gaussian", "uniform"]
"""Entries of a feedback matrix before scaling: N(0, 1), or uniform on [-1, 1)."""

Scaling = Literal["site_width", "error_width", "none"]
"""Divides B_l by the root of the site's width d_l, of the error's width d_e, or by nothing."""

Sharing = Literal["per_site", "shared"]
"""One matrix a site, or one wide matrix whose first columns serve the narrower sites."""


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
    key = named_key(key, name)
    if distribution == "gaussian":
        return jax.random.normal(key, shape)
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def direct_feedback(
    key: PRNGKey,
    model: Model,
    params: Params,
    batch: Batch,
    *,
    distribution: Distribution,
    scaling: Scaling,
    scale: float,
    sharing: Sharing,
    error_tap: sites.ErrorTap = "logits",
) -> RuleState:
    """Fixed feedback from the error to every site: `{site: B_l}`, `[*stack, d_e, *features]`.

    With `sharing="shared"` it is `{"shared": B}`, `[d_e, max d_l]`, scaled by the largest width.
    """
    shapes, error_width = site_shapes(model, params, batch, error_tap)

    def factor(width: int) -> float:
        return scale * scaling_factor(scaling, width, error_width)

    if sharing == "shared":
        width = max(shape.width for shape in shapes.values())
        return {"shared": factor(width) * draw(key, "shared", (error_width, width), distribution)}
    return {
        site: factor(shape.width)
        * draw(key, site, (*shape.stack, error_width, *shape.features), distribution)
        for site, shape in shapes.items()
    }


def scaling_factor(scaling: Scaling, site_width: int, error_width: int) -> float:
    """What multiplies the entries of a feedback matrix, the option `scale` aside."""
    divisor = {"site_width": site_width, "error_width": error_width, "none": 1}[scaling]
    return 1 / math.sqrt(divisor)


def send_direct(
    model: Model, rule_state: RuleState, error: Array, activities: SiteArrays
) -> SiteArrays:
    """`e B_l` at every site, from the state of either sharing; `error` is `[*batch, d_e]`."""
    errors = {}
    for site, place in model.where.items():
        h, num_stack = activities[site], len(place.stack)
        if "shared" in rule_state:
            features = h.shape[num_stack + error.ndim - 1 :]
            columns = matrix(rule_state, site, math.prod(features))
            sent = feedback.project(error, columns.reshape(-1, *features))
            errors[site] = jnp.broadcast_to(sent, h.shape)
        else:
            errors[site] = feedback.project(error, rule_state[site], num_stack)
    return errors


def matrix(rule_state: RuleState, site: str, width: int) -> Array:
    """The feedback of a site without layer axes as a matrix, `[d_e, width]`."""
    if "shared" in rule_state:
        return rule_state["shared"][:, :width]
    return rule_state[site].reshape(-1, width)


def site_shapes(
    model: Model, params: Params, batch: Batch, error_tap: sites.ErrorTap
) -> tuple[dict[str, SiteShape], int]:
    """Shape of every site, and the width of the error at the tap.

    Raises:
        SiteError: a site's activity lacks the batch axes of the model's outputs.
    """
    outputs, activities = sites.abstract_forward(model, params, batch.inputs)
    batch_axes = outputs.shape[:-1]
    shapes = {}
    for site, place in model.where.items():
        inner = activities[site].shape[len(place.stack) :]
        if inner[: len(batch_axes)] != batch_axes:
            raise SiteError(
                f"site '{site}' has activity {inner} and the outputs are {outputs.shape}: direct"
                f" feedback needs the outputs' batch axes {batch_axes} in front; put the site where"
                " they are"
            )
        shapes[site] = SiteShape(place.stack, inner[len(batch_axes) :])
    width = outputs.shape[-1] if error_tap == "logits" else shapes[model.sites[-1]].width
    return shapes, width


def kernel_feedback(
    key: PRNGKey, model: Model, params: Params, distribution: Distribution, scale: float
) -> dict[str, Array]:
    """For chain rules: a matrix like each kernel, entries scaled by 1 / sqrt(fan_in)."""
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
