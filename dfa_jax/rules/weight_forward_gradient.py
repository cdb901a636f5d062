"""Weight-perturbed forward gradient (FG-W)."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import flatten_util
from jaxtyping import Array

from dfa_jax.autodiff import forward
from dfa_jax.autodiff.objective import HEADS, SHARED, Losses, Reach, components, present
from dfa_jax.errors import InputError
from dfa_jax.models.base import Model
from dfa_jax.rules import draw
from dfa_jax.rules.base import GradEstimate, ObjectiveRule
from dfa_jax.tree import Flat, Path
from dfa_jax.types import Batch, PRNGKey


@dataclasses.dataclass(frozen=True)
class WeightForwardGradient(ObjectiveRule):
    r"""Guesses the gradient along a random direction in weight space, weighed by its slope.

        g = s v,    s = <grad L, v>  by one `jax.jvp`

    `v` has unit covariance, so `E[g] = grad L`. Nothing is stored for a backward pass, and no
    reverse mode is used below the readout. With local losses, `s` is the slope of those losses
    alone that the weight can move: where a parameter's first axis is that of the groups of its
    block, and its last that of a group's channels, each group has a slope of its own.

    Attributes:
        noise: distribution of `v`: `gaussian`, `rademacher` (signs) or `sphere`.
        num_draws: directions a batch.
        draws: `scan` them in the memory of one, or `vmap` them.
        combination: `mean` over draws; or `projection` on their span, of all weights of a block as
            one vector, which holds all draws at once.
        clip: limit of |s|; none if 0. A clipped estimate is biased.
        per_example: a direction an example, whose estimates are averaged: less variance, at the
            price of as many weight matrices as examples.
        exact_readout: the true gradient for what lies above the last site, and for the heads of
            local losses.

    Sources: Baydin et al. (2022), arXiv 2202.08587; Ren et al. (2023), arXiv 2210.03310.
    """

    noise: forward.Noise = "gaussian"
    num_draws: int = 1
    draws: forward.Draws = "scan"
    combination: forward.Combination = "mean"
    clip: float = 0.0
    per_example: bool = False
    exact_readout: bool = True

    def __post_init__(self):
        super().__post_init__()
        draw.check_draws(self.num_draws, self.clip)

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """A `jax.jvp` a draw; the readout's gradient by itself. No site is sent an error."""
        del at
        flat = traverse_util.flatten_dict(params)
        exact = {path for path in flat if self.exact_readout and _above(model, path)}
        trunk = {path: leaf for path, leaf in flat.items() if path not in exact}
        top = {path: leaf for path, leaf in flat.items() if path in exact}
        reach = objective.parameter_reach(model, list(trunk))

        def losses(trunk: Flat, top: Flat, batch: Batch, *, replicated: bool) -> Losses:
            whole = traverse_util.unflatten_dict(trunk | top)
            return objective(model, whole, batch, {}, replicated=replicated)

        def guess(key: PRNGKey, batch: Batch) -> tuple[Flat, Array]:
            def of_trunk(trunk: Flat) -> Losses:
                return losses(trunk, top, batch, replicated=True)

            plain = of_trunk(trunk)
            return self._guess(key, trunk, present(reach, plain.terms), of_trunk, plain)

        def total(top: Flat) -> tuple[Array, Losses]:
            found = losses(trunk, top, batch, replicated=False)
            return found.total, found

        grads, found = jax.grad(total, has_aux=True)(top)
        guessed = self._each_example(guess, found)(key, batch)
        guessed = {path: guessed[path].astype(jnp.result_type(trunk[path])) for path in trunk}
        whole = traverse_util.unflatten_dict(guessed | grads)
        return GradEstimate(
            found.mean, found.outputs, whole, {}, found.state, found.weight, rule_state
        )

    def _each_example(
        self, guess: Callable[[PRNGKey, Batch], tuple[Flat, Array]], found: Losses
    ) -> Callable[[PRNGKey, Batch], Flat]:
        """The guess itself, or the mean of one an example, each from a key by its index."""
        if not self.per_example:
            return lambda key, batch: guess(key, batch)[0]
        if not found.example_axes or SHARED in found.terms:
            raise InputError(
                "per_example is true and wants the loss of each example alone; this one has no axis"
                " of examples, or a term that belongs to none, or they are coupled"
                " (independent_axes=0, as under batch statistics). Use per_example=False"
            )

        def mean(key: PRNGKey, batch: Batch) -> Flat:
            number = len(jax.tree.leaves(batch.inputs)[0])
            keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(number))
            alone = jax.tree.map(lambda leaf: leaf[:, None], batch)  # batches of one example
            found, weights = jax.vmap(guess)(keys, alone)
            shares = weights / jnp.where(weights.sum() == 0, 1, weights.sum())
            return jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, 1), found)

        return mean

    def _guess(
        self,
        key: PRNGKey,
        trunk: Flat,
        reach: dict[Path, tuple[Reach, ...]],
        losses: Callable[[Flat], Losses],
        plain: Losses,
    ) -> tuple[Flat, Array]:
        """The estimate of the trunk's gradient, and the weight of the loss."""

        def one(key: PRNGKey) -> tuple[Flat, dict[str, Array]]:
            v = {
                path: forward.direction(key, "/".join(path), leaf.shape, self.noise)
                for path, leaf in trunk.items()
            }
            v = {path: v[path].astype(leaf.dtype) for path, leaf in trunk.items()}
            slopes = jax.jvp(lambda trunk: losses(trunk).terms, (trunk,), (v,))[1]
            known = {term.term: term for terms in reach.values() for term in terms}
            slopes = {
                name: _total(slopes[name], term, plain.example_axes) for name, term in known.items()
            }
            return v, {name: forward.clipped(slope, self.clip) for name, slope in slopes.items()}

        if self.combination == "projection":
            directions, slopes = forward.all_draws(one, key, self.num_draws)
            return _project(directions, slopes, reach), plain.weight

        def product(key: PRNGKey) -> Flat:
            v, slopes = one(key)
            return {path: v[path] * _slope_at(v[path].shape, slopes, reach[path]) for path in v}

        return forward.mean_of_draws(product, key, self.num_draws, self.draws), plain.weight


def _above(model: Model, path: Path) -> bool:
    """Whether a parameter lies above the last site, or is that of a local loss's head."""
    return path[0] == HEADS or path[:-1] in model.readout


def _total(slope: Array, reach: Reach, num_examples: int) -> Array:
    """`[*stack, *examples, *places]` to the sum over examples, by layer and group.

    `[*stack, *group]`; losses of patches are added up: they share all weights.
    """
    if reach.term == SHARED:
        return slope
    examples = tuple(range(reach.num_stack, reach.num_stack + num_examples))
    slope = slope.sum(examples)
    last = slope.ndim - (reach.group_shape is not None)
    return slope.sum(tuple(range(reach.num_stack, last)))


def _slope_at(shape: tuple[int, ...], slopes: dict[str, Array], reach: tuple[Reach, ...]) -> Array:
    """The sum of all slopes that a parameter can move, ready to multiply its direction."""
    total = jnp.zeros(())
    for term in reach:
        slope = slopes[term.term]  # [*stack, *group]
        stack = slope.shape[: term.num_stack]
        if not (term.is_own and shape[: term.num_stack] == stack):
            slope, stack = slope.sum(tuple(range(term.num_stack))), ()
        rest = shape[len(stack) :]
        groups = slope.shape[len(stack) :]
        if groups and not (term.is_own and (rest[0], rest[-1]) == term.group_shape):
            slope, groups = slope.sum(-1), ()
        total += slope.reshape(*stack, *groups, *(1,) * (len(rest) - len(groups)))
    return total


def _project(
    directions: Flat, slopes: dict[str, Array], reach: dict[Path, tuple[Reach, ...]]
) -> Flat:
    """The estimate by projection; parameters that move the same terms are one vector."""
    found = {}
    for members, terms in components(reach):
        slope = jnp.stack([slopes[name].reshape(len(slopes[name]), -1).sum(-1) for name in terms])
        part = {path: directions[path] for path in members}
        flat = jax.vmap(lambda tree: flatten_util.ravel_pytree(tree)[0])(part)  # [draws, dim]
        back = flatten_util.ravel_pytree(jax.tree.map(lambda leaf: leaf[0], part))[1]
        found |= back(forward.projection(flat, slope.sum(0)))
    return {path: found[path] for path in directions}
