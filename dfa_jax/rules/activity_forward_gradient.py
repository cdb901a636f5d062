"""Activity-perturbed forward gradient (FG-A)."""

import dataclasses
import itertools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.autodiff import forward, sites
from dfa_jax.autodiff.objective import OUTPUTS, SHARED, Objective, Reach, components, present
from dfa_jax.autodiff.site_gradients import deliver
from dfa_jax.models.base import Model, Site
from dfa_jax.rules import draw
from dfa_jax.rules.base import GradEstimate, ObjectiveRule
from dfa_jax.types import Batch, Params, PRNGKey, SiteArrays

Sharing = Literal["none", "pairs", "batch"]


@dataclasses.dataclass(frozen=True)
class ActivityForwardGradient(ObjectiveRule):
    r"""Guesses the error at every site along a random direction, and weighs the guess by its slope.

        delta_l = s u_l,    s = sum_l <dL/dh_l, u_l>  of each example, by one `jax.jvp`

    `u_l` has unit covariance, so `E[delta_l] = dL/dh_l`; local VJPs make weight gradients of these
    errors. Above the last site gradients are exact. With local losses, `s` is the slope of those
    losses alone that the unit can move: where a site's activity has the same axes of patches and
    groups behind the batch as its block, each patch and group has a slope of its own.

    Attributes:
        noise: distribution of `u`: `gaussian`, `rademacher` (signs: the least variance, and cheap)
            or `sphere`.
        num_draws: directions an example.
        draws: `scan` them in the memory of one, or `vmap` them.
        combination: `mean` over draws; or `projection` on their span, of all sites of a block as
            one vector, which holds all draws at once.
        clip: limit of |s|; none if 0. A clipped estimate is biased.
        sharing: `none`: each example has noise of its own; `pairs`: two neighbours (views of one
            image) share theirs; `batch`: all do. Where the slopes of examples cannot be told apart,
            each example has its own.
        relu_mask: no noise where a site's activity is not positive. Exact where a ReLU lies right
            before or behind every site, else biased.

    Sources: Ren et al. (2023), arXiv 2210.03310; Fiete and Seung (2006).
    """

    noise: forward.Noise = "gaussian"
    num_draws: int = 1
    draws: forward.Draws = "scan"
    combination: forward.Combination = "mean"
    clip: float = 0.0
    sharing: Sharing = "none"
    relu_mask: bool = False

    def __post_init__(self):
        super().__post_init__()
        draw.check_draws(self.num_draws, self.clip)

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """A `jax.jvp` a draw for the errors, then local VJPs."""
        sent = self._errors(model, objective, params, batch, key)
        found = deliver(model, objective, params, batch, sent, at=at)
        return found._replace(rule_state=rule_state)

    def _errors(
        self, model: Model, objective: Objective, params: Params, batch: Batch, key: PRNGKey
    ) -> SiteArrays:
        """`s u_l` at every site."""

        def losses(perturbations):
            orders = sites.at_sites(model, "perturb", perturbations)
            found = objective(model, params, batch, orders, replicated=True)
            return found.terms, found

        zeros = sites.zero_activities(model, params, batch.inputs)
        _, plain = losses(zeros)
        layouts = {
            site: _Layout.of(place, plain.example_axes, model.batch_axes, zeros[site].shape)
            for site, place in model.where.items()
        }
        # A slope is that of an example's part of the mean, and the limit that of its own loss.
        limit = self.clip / plain.terms[OUTPUTS].size
        # One slope of several examples tells nothing about noise that they share.
        sharing = self.sharing if plain.example_axes and SHARED not in plain.terms else "none"
        reach = present(objective.site_reach(model), plain.terms)

        def one(key: PRNGKey) -> tuple[SiteArrays, dict[str, Array]]:
            u = {site: self._direction(key, site, layouts[site], sharing) for site in model.sites}
            if self.relu_mask:
                u = {s: jnp.where(plain.activities[s] > 0, u[s], 0) for s in u}
            u = {site: u[site].astype(zeros[site].dtype) for site in u}
            slopes = jax.jvp(lambda p: losses(p)[0], (zeros,), (u,))[1]
            return u, {name: forward.clipped(slope, limit) for name, slope in slopes.items()}

        if self.combination == "projection":
            directions, slopes = forward.all_draws(one, key, self.num_draws)
            return _project(directions, slopes, reach, layouts)

        def guess(key: PRNGKey) -> SiteArrays:
            u, slopes = one(key)
            return {s: u[s] * _slope_at(layouts[s], slopes, reach[s]) for s in u}

        return forward.mean_of_draws(guess, key, self.num_draws, self.draws)

    def _direction(self, key: PRNGKey, site: str, layout: "_Layout", sharing: Sharing) -> Array:
        if not layout.num_batch:
            return forward.direction(
                key, site, layout.shape, self.noise, num_stack=layout.num_stack
            )
        stack, (num, *more), features = layout.axes
        num = {"none": num, "pairs": -(-num // 2), "batch": 1}[sharing]
        drawn = forward.direction(
            key,
            site,
            (*stack, num, *more, *features),
            self.noise,
            num_stack=layout.num_stack,
            num_batch=layout.num_batch,
        )
        if sharing == "pairs":
            drawn = jnp.repeat(drawn, 2, axis=layout.num_stack)
            return jax.lax.slice_in_dim(drawn, 0, layout.axes[1][0], axis=layout.num_stack)
        return jnp.broadcast_to(drawn, layout.shape)


class _Layout(NamedTuple):
    """Which axes of a site's activity are what: `[*stack, *examples, *features]`.

    Attributes:
        num_stack: layer axes.
        num_batch: axes along which noise is drawn for each entry by itself: each example has its
            own even where slopes cannot be told apart.
        num_examples: axes along which the site is told slopes apart.
        num_apart: axes along which the terms tell them apart.
        num_front: axes of examples and positions, behind which those of a block's patches and
            groups begin.
        shape: of the activity.
    """

    num_stack: int
    num_batch: int
    num_examples: int
    num_apart: int
    num_front: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, place: Site, num_apart: int, num_front: int, shape: tuple[int, ...]) -> "_Layout":
        """Of a site; one that has not the examples in front is one vector, told the whole slope."""
        own = num_apart if place.has_examples else 0
        num_batch = max(1, own) if place.has_examples else 0
        return cls(len(place.stack), num_batch, own, num_apart, num_front, shape)

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Layers, examples, features."""
        batch = self.num_stack + self.num_batch
        return self.shape[: self.num_stack], self.shape[self.num_stack : batch], self.shape[batch:]


def _slope_at(layout: _Layout, slopes: dict[str, Array], reach: tuple[Reach, ...]) -> Array:
    """The sum of all slopes that a unit of the site can move, ready to multiply its direction."""
    stack, rest = layout.shape[: layout.num_stack], layout.shape[layout.num_stack :]
    total = jnp.zeros(())
    for term in reach:
        slope = slopes[term.term]  # [*its stack, *examples, *places]
        num_examples = layout.num_examples
        if term.term == SHARED:
            num_examples = 0
        elif layout.num_apart > num_examples:
            examples = range(term.num_stack, term.num_stack + layout.num_apart)
            slope = slope.sum(tuple(examples))
        places = slope.shape[term.num_stack + num_examples :]
        own_stack = stack if term.is_own and term.num_stack == layout.num_stack else ()
        if term.num_stack and not own_stack:
            slope = slope.sum(tuple(range(term.num_stack)))
        own = common_axes(places, rest[layout.num_front : -1]) if term.is_own else 0
        slope = slope.sum(tuple(range(slope.ndim - len(places) + own, slope.ndim)))
        lead = own_stack or (1,) * len(stack)
        if not own:
            behind = (1,) * (len(rest) - num_examples)
        else:
            positions = (1,) * (layout.num_front - num_examples)
            behind = (*positions, *places[:own], *(1,) * (len(rest) - layout.num_front - own))
        total += slope.reshape(*lead, *rest[:num_examples], *behind)
    return total


def common_axes(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many leading entries agree."""
    agree = [a == b for a, b in zip(left, right, strict=False)]
    return agree.index(False) if False in agree else len(agree)


def _project(
    directions: SiteArrays,
    slopes: dict[str, Array],
    reach: dict[str, tuple[Reach, ...]],
    layouts: dict[str, _Layout],
) -> SiteArrays:
    """Errors by projection; sites that move the same terms are one vector an example.

    Where they move a term that belongs to no example, all examples are one vector.
    """
    sent = {}
    for members, terms in components(reach):
        apart = min(layouts[member].num_examples for member in members)
        apart = 0 if SHARED in terms else apart
        parts = [
            _examples_first(slopes[name], 1 + term.num_stack, apart).sum(-1)
            for name, term in terms.items()
        ]
        flat = [_examples_first(directions[s], 1 + layouts[s].num_stack, apart) for s in members]
        found = forward.projection(jnp.concatenate(flat, -1), jnp.stack(parts).sum(0))
        ends = itertools.accumulate(part.shape[-1] for part in flat[:-1])
        for site, part in zip(members, jnp.split(found, [*ends], axis=-1), strict=True):
            num_stack, shape = layouts[site].num_stack, layouts[site].shape
            stack, rest = shape[:num_stack], shape[num_stack:]
            rows = part.reshape(*rest[:apart], *stack, *rest[apart:])
            sent[site] = jnp.moveaxis(rows, range(apart), range(num_stack, num_stack + apart))
    return {site: sent[site] for site in directions}


def _examples_first(x: Array, first: int, num_axes: int) -> Array:
    """`[draws, *stack, *examples, *rest]` as `[draws, example, all else]`.

    Args:
        x: the array.
        first: its first axis of examples.
        num_axes: how many there are; with none all is one vector.
    """
    front = jnp.moveaxis(x, range(first, first + num_axes), range(1, 1 + num_axes))
    return front.reshape(len(x), math.prod(front.shape[1 : 1 + num_axes]), -1)
