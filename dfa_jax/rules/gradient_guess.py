"""Gradient guesses: a true slope along a direction that a local loss, and not chance, proposes."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from dfa_jax.autodiff import forward, sites
from dfa_jax.autodiff.objective import (
    HEADS,
    OUTPUTS,
    SHARED,
    GlobalLoss,
    Losses,
    chain_gradients,
)
from dfa_jax.autodiff.site_gradients import deliver
from dfa_jax.errors import InputError
from dfa_jax.models.base import Model
from dfa_jax.parts import KernelInit
from dfa_jax.rules.base import GradEstimate, LearningRule
from dfa_jax.rules.local_losses import LocalLosses, LocalObjective, no_loss
from dfa_jax.tree import Flat, Path
from dfa_jax.types import Batch, LossFn, Params, PRNGKey, RuleState, SiteArrays

Guess = Literal["local", "reinitialised", "fixed", "random"]
Target = Literal["global", "local"]
Space = Literal["activities", "weights"]

_TINY = 1e-30  # where a guess has no length, its slope is 0 too


@dataclasses.dataclass(frozen=True)
class GradientGuess(LearningRule):
    r"""Projects the target's gradient on a guessed direction, block by block.

        delta_k = <dL/dh_k, g_k> g_k / |g_k|^2   of each example, at the end of block k, or
        grad_k = <grad_k L, v_k> v_k / |v_k|^2   of the batch, over the weights of block k,

    where the slope is one `jax.jvp` a block, and the guess is the gradient of a linear auxiliary
    classifier's loss at the end of the block. A random guess is not divided by its length, so that
    it is unbiased. The last block and the readout get the true gradient. A stack of layers under
    `nn.scan` is one block.

    Attributes:
        guess: from a classifier that is trained on its own loss (`local`), drawn anew every step
            (`reinitialised`) or drawn once (`fixed`); or `random`, Gaussian noise.
        target: `global`: the loss of the outputs; or `local`: that of the classifier, which its own
            gradient hits exactly.
        space: guess errors at the ends of blocks (`activities`), or gradients (`weights`).
        head_init: start of the classifiers' kernels, see `models.MLP`.

    Raises:
        InputError: the model has one block only.

    Source: Fournier et al. (2023), arXiv 2306.06968; the auxiliary networks here are linear.
    """

    guess: Guess = "local"
    target: Target = "global"
    space: Space = "activities"
    head_init: KernelInit = "lecun_normal"

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """Trained classifiers are parameters, fixed ones the rule's state."""
        heads = self._objective(no_loss, model).draw_heads(key, params, batch)
        if self.guess == "fixed":
            return params, heads
        return ({**params, HEADS: heads}, ()) if self._trains_heads else (params, ())

    @property
    def _trains_heads(self) -> bool:
        return self.guess == "local" or (self.guess, self.target) == ("random", "local")

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """Guesses, their slopes, and what they make.

        The errors are what those at the ends of blocks make at the sites; there are none in weight
        space.
        """
        local = self._objective(objective.loss_fn, model)
        whole = self._with_heads(key, local, params, rule_state, batch)
        if self.space == "activities":
            sent = self._errors(key, local, whole, batch)
        else:
            sent = sites.zero_activities(local.at, params, batch.inputs)
        # The classifiers learn exactly, from losses that reach nothing else.
        total = local if self._trains_heads else objective
        found = deliver(local.at, total, params, batch, sent, at=at or model)
        grads, errors = found.grads, found.errors
        if self.space == "weights":
            guessed = self._gradients(key, local, model, whole, batch)
            grads = traverse_util.unflatten_dict(traverse_util.flatten_dict(grads) | guessed)
            errors = {}
        return found._replace(grads=grads, errors=errors, rule_state=rule_state)

    def _objective(self, loss_fn: LossFn, model: Model) -> LocalObjective:
        """Local losses at the end of every block but the last."""
        if len(model.blocks) < 2:
            raise InputError(
                f"the model's one block is {', '.join(model.blocks)}; gradient guesses are for the"
                " blocks below the last, so name two or more (`from_linen(..., blocks=...)`)"
            )
        at = model.at(model.blocks[:-1])
        return LocalObjective(loss_fn, LocalLosses(head_init=self.head_init), at, at)

    def _with_heads(
        self, key: PRNGKey, local: LocalObjective, params: Params, state: RuleState, batch: Batch
    ) -> Params:
        """The parameters with the classifiers that guess."""
        if HEADS in params:
            return params
        if self.guess == "fixed":
            return {**params, HEADS: state}
        return {**params, HEADS: local.draw_heads(jax.random.fold_in(key, 1), params, batch)}

    def _errors(
        self, key: PRNGKey, local: LocalObjective, params: Params, batch: Batch
    ) -> SiteArrays:
        """One error a block, from its guess."""
        at, objective = local.at, GlobalLoss(local.loss_fn)

        def global_losses(perturbations: SiteArrays) -> Losses:
            return objective(at, params, batch, sites.at_sites(at, "perturb", perturbations))

        zeros = sites.zero_activities(at, params, batch.inputs)
        plain = global_losses(zeros)
        # What belongs to no example is not told apart: then the batch is one vector.
        apart = 0 if SHARED in plain.terms else plain.example_axes

        def local_losses(h: SiteArrays) -> dict[str, Array]:
            terms = local.local_terms(
                h, params[HEADS], batch.targets, plain.outputs, apart, replicated=False
            )
            return {site: _by_example(terms[site], at, site) for site in terms}

        activities = plain.activities
        if self.guess == "random":
            guesses = {
                s: forward.direction(
                    key,
                    s,
                    h.shape,
                    "gaussian",
                    num_stack=len(at.where[s].stack),
                    num_batch=max(1, apart),
                ).astype(h.dtype)
                for s, h in activities.items()
            }
        else:
            guesses = jax.grad(lambda h: _sum(local_losses(h)))(activities)
        losses, start = {
            "global": (
                lambda p: dict.fromkeys(at.sites, _examples(global_losses(p), apart)),
                zeros,
            ),
            "local": (local_losses, activities),
        }[self.target]
        sent = {}
        for site, g in guesses.items():
            slope = jax.jvp(losses, (start,), (zeros | {site: g},))[1][site]  # [*examples]
            axes = len(at.where[site].stack)
            square = jnp.maximum(_square(g, axes, apart), _TINY)
            weight = slope if self.guess == "random" else slope / square
            lead = (1,) * axes
            weight = weight.reshape(*lead, *slope.shape, *(1,) * (g.ndim - axes - apart))
            sent[site] = weight * g
        return sent

    def _gradients(
        self, key: PRNGKey, local: LocalObjective, model: Model, params: Params, batch: Batch
    ) -> Flat:
        """Guessed gradients of all weights below the last block, by path."""
        flat: Flat = traverse_util.flatten_dict({k: v for k, v in params.items() if k != HEADS})
        blocks = _by_block(model, list(flat))
        if self.guess == "random":
            guess = {
                p: forward.direction(key, "/".join(p), flat[p].shape, "gaussian").astype(
                    flat[p].dtype
                )
                for paths in blocks.values()
                for p in paths
            }
        else:
            grads = chain_gradients(local.at, local, params, batch, {}).grads
            guess: Flat = traverse_util.flatten_dict(grads)

        def losses(flat: Flat) -> dict[str, Array]:
            tree = {**traverse_util.unflatten_dict(flat), HEADS: params[HEADS]}
            objective = local if self.target == "local" else GlobalLoss(local.loss_fn)
            found = objective(local.at, tree, batch, {})
            return {name: term.sum() for name, term in found.terms.items()} | {OUTPUTS: found.mean}

        found = {}
        zeros = jax.tree.map(jnp.zeros_like, flat)
        for block, paths in blocks.items():
            part = {path: guess[path] for path in paths}
            slope = jax.jvp(losses, (flat,), (zeros | part,))[1][
                block if self.target == "local" else OUTPUTS
            ]
            square = jnp.maximum(_sum({path: v * v for path, v in part.items()}), _TINY)
            weight = slope if self.guess == "random" else slope / square
            found |= {path: weight * v for path, v in part.items()}
        return found


def _examples(found: Losses, num_axes: int) -> Array:
    """The loss of the outputs by example, or the whole objective."""
    return found.terms[OUTPUTS] if num_axes else found.mean


def _sum(parts: dict[Any, Array]) -> Array:
    return jnp.stack([part.sum() for part in parts.values()]).sum()


def _by_example(term: Array, at: Model, site: str) -> Array:
    """`[*stack, *batch]` summed over layers."""
    return term.sum(tuple(range(len(at.where[site].stack))))


def _square(g: Array, num_stack: int, num_batch: int) -> Array:
    """Squared length of each example's guess, `[*batch]`."""
    behind = range(num_stack + num_batch, g.ndim)
    return jnp.square(g).sum((*range(num_stack), *behind))


def _by_block(model: Model, paths: list[Path]) -> dict[str, list[Path]]:
    """Weights below the last block by the block that they lie in.

    A weight whose place is not known, such as one of the root module, goes with the first.
    """
    homes, first = dict(model.homes), model.blocks[0]
    found: dict[str, list[Path]] = {block: [] for block in model.blocks[:-1]}
    for path in paths:
        block = homes.get(path[:-1], first)
        if path[:-1] not in model.readout and block in found:
            found[block].append(path)
    return {block: members for block, members in found.items() if members}
