"""What is to be made small, in terms that a rule can tell apart, and gradients by the chain rule.

Backpropagation and its kin descend the total; a forward gradient listens to the terms.
"""

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax.autodiff import sites
from dfa_jax.models.base import Model
from dfa_jax.tree import Path
from dfa_jax.types import Batch, LossFn, Params, PRNGKey, SiteArrays

OUTPUTS = "outputs"
"""The term of the model's outputs."""

HEADS = "local_heads"
"""Where the heads of local losses are among the parameters."""


class Losses(NamedTuple):
    """One forward pass.

    Attributes:
        outputs: the model's, `[*batch, features]`.
        activities: of the sites that had orders, by site.
        terms: losses by name, `[*stack, *batch, *places]`: `outputs` is that of the outputs,
            `[*batch]`; a local one has the layer axes of its block in front, and behind, where it
            is replicated, one axis each over the patches and groups whose losses are told apart.
    """

    outputs: Any
    activities: SiteArrays
    terms: dict[str, Array]

    @property
    def num_examples(self) -> int:
        """Over all batch axes."""
        return math.prod(self.outputs.shape[:-1])

    @property
    def mean(self) -> Float[Array, ""]:
        """Mean loss of the outputs."""
        return self.terms[OUTPUTS].mean()

    @property
    def total(self) -> Float[Array, ""]:
        """Sum over terms, layers and places of the mean over examples."""
        sums = [jnp.sum(term) for term in self.terms.values()]
        return jnp.stack(sums).sum() / self.num_examples


class Reach(NamedTuple):
    """A term that a site or a parameter can move.

    Attributes:
        term: its name.
        num_stack: layer axes that the term has in front.
        is_own: whether the place lies in the term's own block, behind which the graph is cut: then
            a layer, patch or group of the place moves only the losses of that layer, patch, group.
        group_shape: groups, and channels of each, if groups have losses of their own.
    """

    term: str
    num_stack: int = 0
    is_own: bool = False
    group_shape: tuple[int, int] | None = None


def components(
    reach: dict[Any, tuple[Reach, ...]],
) -> list[tuple[list[Any], dict[str, Reach]]]:
    """Sets of places that share no term with the other sets, each with the terms it moves."""
    found: list[tuple[list[Any], dict[str, Reach]]] = []
    for place, terms in reach.items():
        members, moved = [place], {term.term: term for term in terms}
        for part in [part for part in found if part[1].keys() & moved.keys()]:
            found.remove(part)
            members, moved = [*part[0], *members], part[1] | moved
        found.append((members, moved))
    return found


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """Losses of a model on a batch, as a function of its parameters.

    Attributes:
        loss_fn: one loss per example, of the outputs and of whatever is read like them.
    """

    loss_fn: LossFn

    @abc.abstractmethod
    def __call__(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        orders: sites.Orders,
        *,
        key: PRNGKey | None = None,
        replicated: bool = False,
    ) -> Losses:
        """One forward pass with orders carried out at the sites.

        With `replicated`, local terms are one loss a patch and a group, of equal value and with a
        derivative of their own each; the sum of those is the derivative of the plain term.
        """

    @abc.abstractmethod
    def site_reach(self, model: Model) -> dict[str, tuple[Reach, ...]]:
        """The terms that each site can move."""

    @abc.abstractmethod
    def parameter_reach(self, model: Model, paths: list[Path]) -> dict[Path, tuple[Reach, ...]]:
        """The terms that each parameter below the readout can move, by its path."""


class GlobalLoss(Objective):
    """The loss of the outputs alone."""

    def __call__(self, model, params, batch, orders, *, key=None, replicated=False) -> Losses:
        """Outputs, and their loss."""
        del replicated  # there are no local terms
        outputs, activities = sites.apply_with_orders(model, params, batch.inputs, orders, key=key)
        return Losses(outputs, activities, {OUTPUTS: self.loss_fn(outputs, batch.targets)})

    def site_reach(self, model) -> dict[str, tuple[Reach, ...]]:
        """The outputs' loss."""
        return {site: (Reach(OUTPUTS),) for site in model.sites}

    def parameter_reach(self, model, paths) -> dict[Path, tuple[Reach, ...]]:
        """The outputs' loss."""
        del model  # whatever it is
        return {path: (Reach(OUTPUTS),) for path in paths}


def as_objective(loss: LossFn | Objective) -> Objective:
    """The objective, or that of a loss of the outputs."""
    return loss if isinstance(loss, Objective) else GlobalLoss(loss)


class Gradients(NamedTuple):
    """Mean loss of the outputs, the outputs, and gradients of the total."""

    loss: Float[Array, ""]
    outputs: Any
    grads: Params


def chain_gradients(
    model: Model,
    loss: LossFn | Objective,
    params: Params,
    batch: Batch,
    feedback: dict[str, Array],
    *,
    key: PRNGKey | None = None,
) -> Gradients:
    """Loss, outputs and gradients by the chain rule, with other matrices in its backward pass.

    `feedback` has a kernel for each linear map that is to have another one; with none this is
    backpropagation.
    """

    def total(params):
        orders = sites.feedback_orders(model, feedback)
        found = as_objective(loss)(model, params, batch, orders, key=key)
        return found.total, found

    grads, found = jax.grad(total, has_aux=True)(params)
    return Gradients(found.mean, found.outputs, grads)


def cut_gradients(
    model: Model, loss_fn: LossFn, params: Params, batch: Batch, *, key: PRNGKey | None = None
) -> Gradients:
    """Loss, outputs and gradients of the graph that is cut at every site, where nothing is sent.

    Like `sites.site_gradients` with errors of zero, but without a product of zeros: parameters from
    which every path to the loss leads through a site have a gradient of zero, and no work is done
    for it.

    Raises:
        SiteError: no parameter is left to learn.
    """

    def mean(params):
        orders = sites.cut_orders(model)
        found = sites.apply_with_orders(model, params, batch.inputs, orders, key=key)
        outputs, _ = sites.refuse_output_site(model, *found)
        return jnp.mean(loss_fn(outputs, batch.targets)), outputs

    (loss, outputs), grads = jax.value_and_grad(mean, has_aux=True)(params)
    return Gradients(loss, outputs, grads)


def chain_errors(
    model: Model,
    loss: LossFn | Objective,
    params: Params,
    batch: Batch,
    feedback: dict[str, Array],
    *,
    at: Model | None = None,
    key: PRNGKey | None = None,
) -> SiteArrays:
    """The chain's error `dL/dh_l` at every site, `[*stack, *batch, *features]`.

    With `feedback` it is the chain that these matrices make; with none, backpropagation's. With
    `at`, the same module with other sites, it is the error at those.
    """
    at = at or model

    def total(perturbations):
        orders = sites.merge_orders(
            sites.feedback_orders(model, feedback), sites.at_sites(at, "perturb", perturbations)
        )
        return as_objective(loss)(model, params, batch, orders, key=key).total

    return jax.grad(total)(sites.zero_activities(at, params, batch.inputs))


def deliver(
    model: Model,
    loss: LossFn | Objective,
    params: Params,
    batch: Batch,
    sent: SiteArrays,
    *,
    key: PRNGKey | None = None,
) -> Gradients:
    r"""Gradients from errors that are known beforehand, by local VJPs.

        grad theta = dT/dtheta + sum_l (dh_l/dtheta)^T delta_l

    where every Jacobian stops at the sites below, so that the total `T` reaches only what lies
    above the last site on the way to each of its terms.
    """

    def forward_cut(params):
        found = as_objective(loss)(model, params, batch, sites.cut_orders(model), key=key)
        activities = {site: found.activities[site] for site in model.sites}
        return (found.total, activities), found

    (total, activities), pull, found = jax.vjp(forward_cut, params, has_aux=True)
    (grads,) = pull((jnp.ones_like(total), sites.like_activities(sent, activities)))
    return Gradients(found.mean, found.outputs, grads)


def errors_elsewhere(
    model: Model,
    at: Model,
    loss: LossFn | Objective,
    params: Params,
    batch: Batch,
    sent: SiteArrays,
    *,
    key: PRNGKey | None = None,
) -> SiteArrays:
    """What local VJPs make, at other places, of the errors that were sent to the sites.

    Args:
        model: whose sites the errors were sent to.
        at: the same module with the places as its sites, for instance its linear maps, whose
            outputs are the pre-activations.
        sent: the errors by site of `model`.
    """
    zeros = sites.zero_activities(at, params, batch.inputs)
    elsewhere = {s: a for s, a in zeros.items() if at.where[s] not in model.places}

    def forward_cut(perturbations):
        orders = sites.merge_orders(
            sites.cut_orders(model), sites.at_sites(at, "perturb", perturbations)
        )
        found = as_objective(loss)(model, params, batch, orders, key=key)
        return found.total, {site: found.activities[site] for site in model.sites}

    (total, activities), pull = jax.vjp(forward_cut, elsewhere)
    (found,) = pull((jnp.ones_like(total), sites.like_activities(sent, activities)))
    names = {place: site for site, place in model.where.items()}
    return found | {s: sent[names[at.where[s]]] for s in zeros if s not in elsewhere}
