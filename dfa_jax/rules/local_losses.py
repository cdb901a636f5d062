"""Local losses: every block has a loss of its own, on a linear head (L-BP, LG-BP, LG-FG-A, ...)."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.autodiff import sites
from dfa_jax.autodiff.objective import HEADS, OUTPUTS, Losses, Objective, Reach
from dfa_jax.autodiff.replicate import REPLICATED, Aggregator
from dfa_jax.errors import InputError
from dfa_jax.keys import named_key
from dfa_jax.losses import couples_examples
from dfa_jax.models.base import LinearMap, Model, Site, from_linen
from dfa_jax.models.local_mixer import layer_norm
from dfa_jax.models.mlp import KERNEL_INITS, KernelInit
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
        aggregator: `fused`: all losses of a block cost one; `naive`: each for itself, which a loss
            needs that couples examples (`losses.couples_examples`).

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
        objective = self.objective(no_loss, model, batch)
        params = {**params, HEADS: objective.draw_heads(head_key, params, batch)}
        return self.estimator.init(rule_key, objective.with_heads(model, params), params, batch)

    def estimate(self, key, model, loss_fn, params, rule_state, batch) -> GradEstimate:
        """The estimator's, for all losses; the reported one is that of the outputs."""
        objective = self.objective(loss_fn, model, batch)
        augmented = objective.with_heads(model, params)
        return self.estimator.estimate_of(objective, key, augmented, params, rule_state, batch)

    def errors(self, key, model, loss_fn, params, rule_state, batch, at=None) -> SiteArrays:
        """The estimator's, for all losses."""
        objective = self.objective(loss_fn, model, batch)
        augmented = objective.with_heads(model, params)
        return self.estimator.errors_of(objective, key, augmented, params, rule_state, batch, at)

    def weight_targets(self, model, params, rule_state) -> dict[str, Array]:
        """The estimator's, of the model's own maps."""
        return self.estimator.weight_targets(model, params, rule_state)

    def objective(self, loss_fn: LossFn, model: Model, batch: Batch) -> "LocalObjective":
        """All losses of a model; of the batch only shapes are read."""
        ends = model.blocks if self.blockwise else model.blocks[-1:]
        at = from_linen(model.module, ends, batch.inputs)
        order = from_linen(model.module, [*model.sites, *model.blocks], batch.inputs)
        return LocalObjective(loss_fn, self, at, order)


@dataclasses.dataclass(frozen=True)
class LocalObjective(Objective):
    """The losses that a `LocalLosses` rule puts into a model.

    Attributes:
        rule: the options.
        at: the module with the blocks that have a loss as its sites.
        order: the module with the sites and all blocks as its sites, in forward order.
    """

    rule: LocalLosses
    at: Model
    order: Model

    def __call__(self, model, params, batch, orders, *, key=None, replicated=False) -> Losses:
        """Outputs, activities, and one term a block beside that of the outputs."""
        action = "cut" if self.rule.greedy else "record"
        ends = {block: jnp.zeros(place.stack) for block, place in self.at.where.items()}
        given, orders = orders, sites.merge_orders(orders, sites.at_sites(self.at, action, ends))
        outputs, found = sites.apply_with_orders(self.order, params, batch.inputs, orders, key=key)
        cut = {  # by whoever asked: then a loss reaches its head alone
            block
            for block, place in self.at.where.items()
            if "cut" in given.get(place.path, {}).get(place.place, {})
        }
        seen = {
            block: jax.lax.stop_gradient(found[block]) if block in cut else found[block]
            for block in self.at.sites
        }
        heads = sites.put_orders(params, orders)[HEADS]
        terms = self.local_terms(seen, heads, batch.targets, outputs, replicated=replicated)
        terms[OUTPUTS] = self.loss_fn(outputs, batch.targets)
        return Losses(outputs, {s: h for s, h in found.items() if s in model.where}, terms)

    def local_terms(
        self, seen: SiteArrays, heads: Params, targets: Any, outputs: Array, *, replicated: bool
    ) -> dict[str, Array]:
        """The terms of blocks with these activities; of the outputs only the shape is read."""
        terms = {}
        for block, place in self.at.where.items():
            term = functools.partial(
                self._term,
                width=outputs.shape[-1],
                num_batch=outputs.ndim - 1,
                replicated=replicated,
            )
            for _ in place.stack:
                term = jax.vmap(term, in_axes=(0, 0, None))
            terms[block] = term(seen[block], heads[block], targets)
        return terms

    def _term(
        self, h: Array, head: Params, targets: Any, *, width: int, num_batch: int, replicated: bool
    ) -> Array:
        """A block's loss, `[*batch]`, or its replicas, `[*batch, *patches, group]`."""
        if self.rule.normalize:
            h = layer_norm(h)
        batch, (*patches, channels) = h.shape[:num_batch], h.shape[num_batch:]
        groups = self.rule.num_groups
        x = h.reshape(*batch, math.prod(patches), groups, channels // groups)
        loss = _pooled_loss(self.loss_fn, width)
        if not replicated:
            return loss(x.mean(-3), head, targets)
        if not self.rule.patchwise:
            x, patches = x.mean(-3, keepdims=True), ()
        self._check_aggregator()
        each = REPLICATED[self.rule.aggregator](loss, x, head, targets)  # [*batch, patch, group]
        return each.reshape(*batch, *patches, *([groups] if groups > 1 else []))

    def _check_aggregator(self) -> None:
        if self.rule.aggregator == "fused" and couples_examples(self.loss_fn):
            raise InputError(
                "aggregator is 'fused', which tells each example the slope of its own loss, and the"
                " loss couples examples; use aggregator 'naive', or a loss with a stopped"
                " comparison, as nt_xent"
            )

    def draw_heads(self, key: PRNGKey, params: Params, batch: Batch) -> Params:
        """A linear map from every block's channels to as many outputs as the model has."""
        outputs, shapes = sites.abstract_forward(self.at, params, batch.inputs)
        heads = {}
        for block, place in self.at.where.items():
            channels = shapes[block].shape[-1]
            if channels % self.rule.num_groups:
                raise InputError(
                    f"num_groups is {self.rule.num_groups} and block '{block}' has {channels}"
                    " channels; expected a divisor of them"
                )
            init = KERNEL_INITS[self.rule.head_init]
            keys = jax.random.split(named_key(key, block), place.stack)
            kernel = functools.partial(init, shape=(channels, outputs.shape[-1]))
            for _ in place.stack:
                kernel = jax.vmap(kernel)
            bias = jnp.zeros((*place.stack, outputs.shape[-1]))
            heads[block] = {"kernel": kernel(keys), "bias": bias}
        return heads

    def with_heads(self, model: Model, params: Params) -> Model:
        """The model, with the heads among its linear maps, so that feedback serves them too."""
        heads = tuple(
            LinearMap((HEADS, block), params[HEADS][block]["kernel"].shape[-2])
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
                reach[site] = tuple(terms[:1]) or (Reach(OUTPUTS),)
            else:
                reach[site] = (*terms, Reach(OUTPUTS))
        return reach

    def parameter_reach(self, model, paths) -> dict[Path, tuple[Reach, ...]]:
        """The term of the block that a parameter is in, where the graph is cut; else all terms."""
        whole = (*(self._reach(end, None, model) for end in self.at.sites), Reach(OUTPUTS))
        homes, reach = dict(model.homes), {}
        for path in paths:
            own = homes.get(path[:-1], "")
            # A layer of a stack has the stack's axes only inside of it.
            place = self.at.where.get(own)
            is_own = self.rule.greedy and place and (not place.stack or _holds(place, path))
            reach[path] = (self._reach(own, own, model),) if is_own else whole
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


@functools.cache
def _pooled_loss(loss_fn: LossFn, width: int) -> Callable[[Array, Params, Any], Array]:
    """The loss of a head on pooled features `[*batch, group, channel]`, one an example.

    The same function for the same arguments, so that JAX traces it once.
    """

    def loss(pooled: Array, head: Params, targets: Any) -> Array:
        flat = pooled.reshape(*pooled.shape[:-2], -1)
        return loss_fn(sites.apply_submodule(nn.Dense(width), head, flat), targets)

    return loss


def no_loss(outputs: Any, targets: Any) -> Array:
    """Stands in where only shapes are asked for."""
    raise NotImplementedError
