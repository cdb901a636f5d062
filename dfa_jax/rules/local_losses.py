"""Local losses: every block has a loss of its own, on a linear head (L-BP, LG-BP, LG-FG-A, ...)."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dfa_jax.autodiff import loss as losses
from dfa_jax.autodiff import sites
from dfa_jax.autodiff.objective import HEADS, WHOLE, Losses, Objective, Reach
from dfa_jax.autodiff.replicate import REPLICATED, Aggregator
from dfa_jax.errors import InputError
from dfa_jax.keys import named_key
from dfa_jax.models.base import LinearMap, Model, Site
from dfa_jax.parts import KERNEL_INITS, KernelInit, layer_norm
from dfa_jax.rules.backprop import Backprop
from dfa_jax.rules.base import GradEstimate, LearningRule, ObjectiveRule
from dfa_jax.tree import Path
from dfa_jax.types import Batch, LossFn, Params, PRNGKey, RuleState, SiteArrays


@dataclasses.dataclass(frozen=True)
class LocalLosses(LearningRule):
    r"""A loss at the end of every block, beside that of the outputs, descended by any estimator.

        L = l(y) + sum_k l(W_k z_k + b_k),    z_k = the mean over patches of block k's activity

    With `greedy` the graph is cut behind every block, so a block learns from its own loss alone.
    The head `W_k` is as wide as the outputs. By estimator: backpropagation gives L-BP and LG-BP,
    feedback alignment L-FA and LG-FA, forward gradients LG-FG-W and LG-FG-A.

    A forward gradient guesses the better, the fewer units share a loss. So a block's loss can be
    replicated: every patch and group sees the same `z_k`, and only its own share of it can move.
    The block's activity is `[*batch, *patches, channels]`. A site of the block with the axes
    `[*batch, *patches, channels]` is told the slope of each patch, one with
    `[*batch, *patches, num_groups, channels / num_groups]` that of each patch and group; behind it
    patches, or patches and groups, must not mix before the block ends (`checks.check_locality`).

    Attributes:
        estimator: the rule that descends the losses.
        greedy: cut the graph behind every block.
        blockwise: a loss at every block; else at the last one alone, and no cut between blocks.
        patchwise: a loss a patch, where the estimator is a forward gradient.
        num_groups: equal groups of channels with a loss each, likewise.
        normalize: layer normalisation, without parameters, of what a head reads, before patches
            are averaged.
        head_init: start of the heads' kernels, see `models.MLP`.
        aggregator: `fused`: all losses of a block cost one; `naive`: each for itself, the same.

    Source: Ren et al. (2023), arXiv 2210.03310.
    """

    estimator: ObjectiveRule = Backprop()  # noqa: RUF009 -- a frozen value
    greedy: bool = True
    blockwise: bool = True
    patchwise: bool = False
    num_groups: int = 1
    normalize: bool = False
    head_init: KernelInit = "lecun_normal"
    aggregator: Aggregator = "fused"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.estimator, ObjectiveRule):
            raise InputError(
                f"estimator is {self.estimator}, which answers for the outputs' loss alone;"
                " expected an ObjectiveRule, as Backprop, FeedbackAlignment or a forward gradient"
            )
        if self.num_groups < 1:
            raise InputError(f"num_groups is {self.num_groups}; expected 1 for no groups, or more")

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """The parameters with a head for every block, and the estimator's state."""
        head_key, rule_key = jax.random.split(key)
        objective = self.objective(no_loss, model)
        params = {**params, HEADS: objective.draw_heads(head_key, params, batch)}
        return self.estimator.init(rule_key, objective.with_heads(model, params), params, batch)

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """The estimator's, for all losses; the reported one is that of the outputs."""
        every = self.objective(objective.loss_fn, model)
        augmented = every.with_heads(model, params)
        return self.estimator.estimate(augmented, every, params, rule_state, batch, key, at=at)

    def weight_targets(self, model, params, rule_state, batch) -> dict[str, tuple[Array, Array]]:
        """The estimator's, of the model's own maps."""
        return self.estimator.weight_targets(model, params, rule_state, batch)

    def objective(self, loss_fn: LossFn, model: Model) -> "LocalObjective":
        """All losses of a model."""
        ends = model.blocks if self.blockwise else model.blocks[-1:]
        places = dict.fromkeys((*model.sites, *model.blocks))
        return LocalObjective(loss_fn, self, model.at(ends), model.at([*places]))


@dataclasses.dataclass(frozen=True)
class LocalObjective(Objective):
    """The losses that a `LocalLosses` rule puts into a model.

    A block's loss is the model's, of outputs in which the block's head stands in for those that are
    tapped, and the others are constants.

    Attributes:
        rule: the options.
        at: the model with the blocks that have a loss as its sites.
        order: the model with the sites and all blocks as its sites, in forward order.
    """

    rule: LocalLosses
    at: Model
    order: Model

    def __call__(self, model, params, batch, orders, *, replicated=False) -> Losses:
        """Outputs, activities, and one term a block beside that of the outputs."""
        action = "cut" if self.rule.greedy else "record"
        ends = {block: jnp.zeros(place.stack) for block, place in self.at.where.items()}
        given, orders = orders, sites.merge_orders(orders, sites.at_sites(self.at, action, ends))
        passed = sites.apply_with_orders(self.order, params, batch.inputs, orders)
        cut = {  # by whoever asked: then a loss reaches its head alone
            block
            for block, place in self.at.where.items()
            if "cut" in given.get(place.path, {}).get(place.key, {})
        }
        activities = passed.activities
        seen = {
            block: jax.lax.stop_gradient(activities[block]) if block in cut else activities[block]
            for block in self.at.sites
        }
        # What a block's loss adds that belongs to no example cannot be told apart by examples.
        apart = not self._adds_more(passed.outputs, batch.targets)
        whole = self.of_pass(model, passed, batch.targets, apart=apart)
        local = self.local_terms(
            seen,
            params[HEADS],
            batch.targets,
            passed.outputs,
            whole.example_axes,
            replicated=replicated,
        )
        own = {site: h for site, h in activities.items() if site in model.where}
        return whole._replace(activities=own, terms=local | whole.terms)

    def _adds_more(self, outputs: Any, targets: Any) -> bool:
        def extra(outputs, targets):
            return losses.as_loss(self.loss_fn(outputs, targets)).extra

        return jax.eval_shape(extra, outputs, targets) is not None

    def local_terms(
        self,
        seen: SiteArrays,
        heads: Params,
        targets: Any,
        outputs: Any,
        example_axes: int,
        *,
        replicated: bool,
    ) -> dict[str, Array]:
        """The terms of blocks with these activities, `[*stack, *examples, *places]`."""
        loss = _HeadLoss(self.at.bind(), self.loss_fn, example_axes)
        terms = {}
        for block, place in self.at.where.items():
            term = functools.partial(self._term, loss=loss, outputs=outputs, replicated=replicated)
            for _ in place.stack:
                term = jax.vmap(term, in_axes=(0, 0, None))
            terms[block] = term(seen[block], heads[block], targets)
        return terms

    def _term(
        self,
        h: Array,
        head: Params,
        targets: Any,
        *,
        loss: "_HeadLoss",
        outputs: Any,
        replicated: bool,
    ) -> Array:
        """A block's loss, `[*examples]`, or its replicas, `[*examples, *patches, group]`."""
        if self.rule.normalize:
            h = layer_norm(h)
        axes = self.at.batch_axes
        batch, (*patches, channels) = h.shape[:axes], h.shape[axes:]
        groups = self.rule.num_groups
        x = h.reshape(*batch, math.prod(patches), groups, channels // groups)
        whatever = (targets, jax.lax.stop_gradient(outputs))
        if not replicated:
            return loss(x.mean(-3), head, whatever)
        if not self.rule.patchwise:
            x, patches = x.mean(-3, keepdims=True), ()
        each = REPLICATED[self.rule.aggregator](
            loss, x, head, whatever
        )  # [*examples, patch, group]
        return each.reshape(*each.shape[:-2], *patches, *([groups] if groups > 1 else []))

    def draw_heads(self, key: PRNGKey, params: Params, batch: Batch) -> Params:
        """A linear map from every block's channels to as many numbers as the tapped outputs have.

        Raises:
            InputError: the groups do not divide the channels, no output is tapped where there are
                several, or a block lacks the outputs' batch axes.
        """
        outputs, shapes = sites.abstract_forward(self.at, params, batch.inputs)
        *front, width = self.at.error_shape(outputs)
        heads = {}
        for block, place in self.at.where.items():
            shape = shapes[block].shape[len(place.stack) :]
            self._check_block(block, shape, tuple(front), has_examples=place.has_examples)
            init = KERNEL_INITS[self.rule.head_init]
            keys = jax.random.split(named_key(key, block), place.stack)
            kernel = functools.partial(init, shape=(shape[-1], width))
            for _ in place.stack:
                kernel = jax.vmap(kernel)
            heads[block] = {"kernel": kernel(keys), "bias": jnp.zeros((*place.stack, width))}
        return heads

    def _check_block(
        self, block: str, shape: tuple[int, ...], front: tuple[int, ...], *, has_examples: bool
    ) -> None:
        if not has_examples:
            raise InputError(
                f"block '{block}' has activity {shape}, whose first axis is not that of the"
                " examples (it is not as long as the batch, or does not grow with it): a local loss"
                " has a head on each example; end the block where examples are in front"
            )
        if shape[: len(front)] != front or len(shape) == len(front):
            raise InputError(
                f"block '{block}' has activity {shape}, and the outputs' errors have the axes"
                f" {front} in front: a local loss needs them at the block too, and channels behind;"
                " put the block's end where they are, or read one error an example: from_linen(...,"
                " batch_axes=1)"
            )
        if shape[-1] % self.rule.num_groups:
            raise InputError(
                f"num_groups is {self.rule.num_groups} and block '{block}' has {shape[-1]}"
                " channels; expected a divisor of them"
            )

    def with_heads(self, model: Model, params: Params) -> Model:
        """The model, with the heads among its linear maps, so that feedback serves them too."""
        heads = tuple(
            LinearMap((HEADS, block, "kernel"), params[HEADS][block]["kernel"].shape[-2])
            for block in self.at.sites
        )
        return dataclasses.replace(model, maps=(*model.maps, *heads))

    def site_reach(self, model) -> dict[str, tuple[Reach, ...]]:
        """The next block's term where the graph is cut behind it; else all terms above."""
        places = list(self.order.sites)
        reach = {}
        for site in model.sites:
            above = places[places.index(site) :]
            own = next((end for end in above if end in model.blocks), None)
            terms = [self._reach(end, own, model) for end in above if end in self.at.where]
            if self.rule.greedy:
                # What the model sows is not cut: it may come from any block.
                reach[site] = (terms[0], *WHOLE[1:]) if terms else WHOLE
            else:
                reach[site] = (*terms, *WHOLE)
        return reach

    def parameter_reach(self, model, paths) -> dict[Path, tuple[Reach, ...]]:
        """The term of the block that a parameter is in, where the graph is cut; else all terms."""
        whole = (*(self._reach(end, None, model) for end in self.at.sites), *WHOLE)
        homes, reach = dict(model.homes), {}
        for path in paths:
            own = homes.get(path[:-1], "")
            # A layer of a stack has the stack's axes only inside of it.
            place = self.at.where.get(own)
            is_own = self.rule.greedy and place and (not place.stack or _holds(place, path))
            reach[path] = (self._reach(own, own, model), *WHOLE[1:]) if is_own else whole
        return reach

    def _reach(self, end: str, own: str | None, model: Model) -> Reach:
        """The term of a block for a place whose own block is `own`."""
        groups = self.rule.num_groups
        channels = model.linear_maps[f"{HEADS}/{end}"].fan_in
        shape = (groups, channels // groups) if groups > 1 else None
        return Reach(end, len(self.at.where[end].stack), self.rule.greedy and end == own, shape)


def _holds(place: Site, path: Path) -> bool:
    """Whether a parameter is inside the submodule whose output this place is."""
    return place.place == "output" and path[: len(place.path)] == place.path


@dataclasses.dataclass(frozen=True)
class _HeadLoss:
    """The loss of a head on pooled features; equal ones are one function, which JAX traces once.

    Attributes:
        at: the model, whose tapped outputs the head stands in for.
        loss_fn: the user's.
        example_axes: along which the loss is told apart.
    """

    at: Model
    loss_fn: LossFn
    example_axes: int

    def __call__(self, pooled: Array, head: Params, whatever: Any) -> Array:
        """`[*batch, group, channel]` to what each example adds, `[*examples]`.

        A term that belongs to no example is added where none is told apart.
        """
        targets, outputs = whatever
        flat = pooled.reshape(*pooled.shape[:-2], -1)
        rows = flat @ head["kernel"] + head["bias"].reshape(*(1,) * (flat.ndim - 1), -1)
        tapped = self.at.tapped(outputs)
        sizes = [math.prod(like.shape[self.at.batch_axes :]) for like in tapped.values()]
        parts = jnp.split(rows, np.cumsum(sizes)[:-1], axis=-1)
        values = {
            name: part.reshape(like.shape).astype(like.dtype)
            for (name, like), part in zip(tapped.items(), parts, strict=True)
        }
        found = losses.as_loss(self.loss_fn(self.at.with_tapped(outputs, values), targets))
        own = losses.contributions(found, self.example_axes)
        return own if found.extra is None else own + found.extra


def no_loss(outputs: Any, targets: Any) -> Array:
    """Stands in where only shapes are asked for."""
    raise NotImplementedError
