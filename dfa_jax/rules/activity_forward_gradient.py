"""Activity-perturbed forward gradient (FG-A)."""

import dataclasses
import itertools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.autodiff import forward, sites
from dfa_jax.autodiff.objective import Reach, components, deliver, errors_elsewhere
from dfa_jax.rules import draw
from dfa_jax.rules.base import GradEstimate, ObjectiveRule
from dfa_jax.types import PRNGKey, SiteArrays

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
            image) share theirs; `batch`: all do.
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

    def estimate_of(self, objective, key, model, params, rule_state, batch) -> GradEstimate:
        """A `jax.jvp` a draw for the errors, then local VJPs."""
        forward_key, _ = jax.random.split(key)
        sent = self.errors_of(objective, key, model, params, rule_state, batch)
        found = deliver(model, objective, params, batch, sent, key=forward_key)
        return GradEstimate(*found, rule_state)

    def errors_of(self, objective, key, model, params, rule_state, batch, at=None) -> SiteArrays:
        """`s u_l` at every site, or what local VJPs make of it at other places."""
        del rule_state  # there is none
        forward_key, noise_key = jax.random.split(key)

        def losses(perturbations):
            orders = sites.at_sites(model, "perturb", perturbations)
            found = objective(model, params, batch, orders, key=forward_key, replicated=True)
            return found.terms, found

        zeros = sites.zero_activities(model, params, batch.inputs)
        _, plain = losses(zeros)
        num_batch = plain.outputs.ndim - 1
        layouts = {
            site: _Layout(len(place.stack), num_batch, zeros[site].shape)
            for site, place in model.where.items()
        }
        reach = objective.site_reach(model)

        def one(key: PRNGKey) -> tuple[SiteArrays, dict[str, Array]]:
            u = {site: self._direction(key, site, layouts[site]) for site in model.sites}
            if self.relu_mask:
                u = {s: jnp.where(plain.activities[s] > 0, u[s], 0) for s in u}
            u = {site: u[site].astype(zeros[site].dtype) for site in u}
            slopes = jax.jvp(lambda p: losses(p)[0], (zeros,), (u,))[1]
            return u, {name: forward.clipped(slope, self.clip) for name, slope in slopes.items()}

        if self.combination == "projection":
            directions, slopes = forward.all_draws(one, noise_key, self.num_draws)
            sent = _project(directions, slopes, reach, layouts)
        else:

            def guess(key: PRNGKey) -> SiteArrays:
                u, slopes = one(key)
                return {s: u[s] * _slope_at(layouts[s], slopes, reach[s]) for s in u}

            sent = forward.mean_of_draws(guess, noise_key, self.num_draws, self.draws)
        # The objective is the mean over examples.
        sent = {site: array / plain.num_examples for site, array in sent.items()}
        if at is None:
            return sent
        return errors_elsewhere(model, at, objective, params, batch, sent, key=forward_key)

    def _direction(self, key: PRNGKey, site: str, layout: "_Layout") -> Array:
        stack, (num, *more), features = layout.axes
        num = {"none": num, "pairs": -(-num // 2), "batch": 1}[self.sharing]
        drawn = forward.direction(
            key,
            site,
            (*stack, num, *more, *features),
            self.noise,
            num_stack=layout.num_stack,
            num_batch=layout.num_batch,
        )
        if self.sharing == "pairs":
            drawn = jnp.repeat(drawn, 2, axis=layout.num_stack)
            return jax.lax.slice_in_dim(drawn, 0, layout.axes[1][0], axis=layout.num_stack)
        return jnp.broadcast_to(drawn, layout.shape)


class _Layout(NamedTuple):
    """Which axes of a site's activity are what: `[*stack, *batch, *features]`."""

    num_stack: int
    num_batch: int
    shape: tuple[int, ...]

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Layers, examples, features."""
        batch = self.num_stack + self.num_batch
        return self.shape[: self.num_stack], self.shape[self.num_stack : batch], self.shape[batch:]


def _slope_at(layout: _Layout, slopes: dict[str, Array], reach: tuple[Reach, ...]) -> Array:
    """The sum of all slopes that a unit of the site can move, ready to multiply its direction."""
    stack, batch, features = layout.axes
    total = jnp.zeros(())
    for term in reach:
        slope = slopes[term.term]  # [*its stack, *batch, *places]
        places = slope.shape[term.num_stack + layout.num_batch :]
        own_stack = stack if term.is_own and term.num_stack == layout.num_stack else ()
        if term.num_stack and not own_stack:
            slope = slope.sum(tuple(range(term.num_stack)))
        own = common_axes(places, features[:-1]) if term.is_own else 0
        slope = slope.sum(tuple(range(slope.ndim - len(places) + own, slope.ndim)))
        lead = own_stack or (1,) * len(stack)
        total += slope.reshape(*lead, *batch, *places[:own], *(1,) * (len(features) - own))
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
    """Errors by projection; sites that move the same terms are one vector an example."""
    sent = {}
    for members, terms in components(reach):
        parts = [_by_example(slopes[name], term, layouts) for name, term in terms.items()]
        total = jnp.stack(parts).sum(0)
        flat = [
            _examples_first(directions[s], 1 + layouts[s].num_stack, layouts[s]) for s in members
        ]
        found = forward.projection(jnp.concatenate(flat, -1), total)  # [example, dim]
        ends = itertools.accumulate(part.shape[-1] for part in flat[:-1])
        for site, part in zip(members, jnp.split(found, [*ends], axis=-1), strict=True):
            stack, batch, features = layouts[site].axes
            rows = part.reshape(-1, *stack, *features)
            sent[site] = jnp.moveaxis(rows, 0, len(stack)).reshape(*stack, *batch, *features)
    return {site: sent[site] for site in directions}


def _by_example(slope: Array, reach: Reach, layouts: dict[str, _Layout]) -> Array:
    """`[draws, *stack, *batch, *places]` summed to `[draws, example]`."""
    layout = next(iter(layouts.values()))
    return _examples_first(slope, 1 + reach.num_stack, layout).sum(-1)


def _examples_first(x: Array, first: int, layout: _Layout) -> Array:
    """`[draws, *stack, *batch, *rest]` as `[draws, example, all else]`; `first` is a batch axis."""
    axes = range(first, first + layout.num_batch)
    front = jnp.moveaxis(x, axes, range(1, 1 + layout.num_batch))
    return front.reshape(len(x), math.prod(layout.axes[1]), -1)
