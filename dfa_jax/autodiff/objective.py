"""What is to be made small, in terms that a rule can tell apart, and gradients by the chain rule.

Backpropagation and its kin descend the total; a forward gradient listens to the terms.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax.autodiff import loss as losses
from dfa_jax.autodiff import sites
from dfa_jax.autodiff.transposes import Substitute, with_feedback
from dfa_jax.models.base import Model
from dfa_jax.tree import Path
from dfa_jax.types import Batch, LossFn, Params, RuleState, SiteArrays

OUTPUTS = "outputs"
"""The term of the model's outputs, example by example."""

SHARED = "shared"
"""The term that belongs to no example: what the loss adds, and the losses that the model sows."""

HEADS = "local_heads"
"""Where the heads of local losses are among the parameters."""


class Losses(NamedTuple):
    """One forward pass.

    Attributes:
        outputs: the model's, whatever they are.
        activities: of the sites that had orders, by site.
        mean: the loss of the outputs, with what belongs to no example.
        terms: what is added up to the total, by name, `[*stack, *examples, *places]`: `outputs` is
            what each example's outputs add, `[*examples]`; a local one has the layer axes of its
            block in front, and behind, where it is replicated, one axis each over the patches and
            groups whose losses are told apart; `shared`, if there is one, is a scalar.
        state: the model's state after the pass.
        weight: sum of the weights of the loss.
    """

    outputs: Any
    activities: SiteArrays
    mean: Float[Array, ""]
    terms: dict[str, Array]
    state: Any
    weight: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """Sum over terms, layers, examples and places."""
        local = [jnp.sum(self.terms[name]) for name in self.terms if name not in (OUTPUTS, SHARED)]
        return jnp.stack([self.mean, *local]).sum() if local else self.mean

    @property
    def example_axes(self) -> int:
        """Axes of the examples that are told apart, in every term but the shared one."""
        return self.terms[OUTPUTS].ndim


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


WHOLE = (Reach(OUTPUTS), Reach(SHARED))
"""The terms of the model itself."""


def present(reach: dict[Any, tuple[Reach, ...]], terms: Any) -> dict[Any, tuple[Reach, ...]]:
    """The same, of terms that there are."""
    return {
        place: tuple(term for term in moved if term.term in terms) for place, moved in reach.items()
    }


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
        loss_fn: of the outputs and of whatever is read like them.
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
        replicated: bool = False,
    ) -> Losses:
        """One forward pass of a bound model with orders carried out at the sites.

        With `replicated`, local terms are one loss a patch and a group, of equal value and with a
        derivative of their own each; the sum of those is the derivative of the plain term.
        """

    @abc.abstractmethod
    def site_reach(self, model: Model) -> dict[str, tuple[Reach, ...]]:
        """The terms that each site can move, of those that there are."""

    @abc.abstractmethod
    def parameter_reach(self, model: Model, paths: list[Path]) -> dict[Path, tuple[Reach, ...]]:
        """The terms that each parameter below the readout can move, by its path, likewise."""

    def of_pass(
        self, model: Model, passed: sites.Passed, targets: Any, *, apart: bool = True
    ) -> Losses:
        """The terms of the model itself after a pass: of its outputs, and what it has sown.

        Examples are told apart if they can be, or not at all.
        """
        loss = losses.as_loss(self.loss_fn(passed.outputs, targets))
        axes = losses.example_axes(model, self.loss_fn, passed.outputs, targets) if apart else 0
        terms = {OUTPUTS: losses.contributions(loss, axes)}
        shared = [jnp.asarray(term) for term in (loss.extra, passed.sown) if term is not None]
        if shared:
            terms[SHARED] = jnp.stack(shared).sum()
        mean = losses.mean(loss) if passed.sown is None else losses.mean(loss) + passed.sown
        weight = losses.total_weight(loss)
        return Losses(passed.outputs, passed.activities, mean, terms, passed.state, weight)


class GlobalLoss(Objective):
    """The loss of the outputs alone."""

    def __call__(self, model, params, batch, orders, *, replicated=False) -> Losses:
        """Outputs, and their loss."""
        del replicated  # there are no local terms
        passed = sites.apply_with_orders(model, params, batch.inputs, orders)
        return self.of_pass(model, passed, batch.targets)

    def site_reach(self, model) -> dict[str, tuple[Reach, ...]]:
        """The outputs' loss."""
        return dict.fromkeys(model.sites, WHOLE)

    def parameter_reach(self, model, paths) -> dict[Path, tuple[Reach, ...]]:
        """The outputs' loss."""
        del model  # whatever it is
        return dict.fromkeys(paths, WHOLE)


def as_objective(loss: Any) -> Any:
    """The objective, or that of a loss of the outputs."""
    return loss if isinstance(loss, Objective) else GlobalLoss(loss)


class GradEstimate(NamedTuple):
    """What a rule makes of one batch.

    Attributes:
        loss: the objective of the outputs, the same under every rule: the loss's mean and what
            belongs to no example.
        outputs: the model's, whatever they are.
        grads: one array per parameter, in the parameters' tree.
        errors: what arrived at each site, `[*stack, *batch, *features]`; none of a rule that sends
            no errors.
        model_state: the model's state after the pass.
        weight: sum of the loss's weights (without any, the number of its values): what this
            estimate counts where the parts of a batch are averaged.
        rule_state: the rule's state for the next step.
    """

    loss: Float[Array, ""]
    outputs: Any
    grads: Params
    errors: SiteArrays
    model_state: Any
    weight: Float[Array, ""]
    rule_state: RuleState = ()


def chain_gradients(
    model: Model,
    loss: LossFn | Objective,
    params: Params,
    batch: Batch,
    feedback: Mapping[str, Array],
    *,
    substitute: Substitute | None = None,
    at: Model | None = None,
) -> GradEstimate:
    """Gradients by the chain rule, with other matrices in its backward pass.

    `feedback` has an array like the parameter for each linear map that is to have another matrix,
    by its name, and `substitute` makes that matrix, see `transposes.with_feedback`; with none this
    is backpropagation. The errors are the chain's `dL/dh_l` at every site, or at the sites of `at`,
    the same module with others.
    """
    objective, places, maps = as_objective(loss), at or model, model.linear_maps
    matrices = {maps[name].path: B for name, B in feedback.items()}

    def losses(params, batch, perturbations):
        return objective(model, params, batch, sites.at_sites(places, "perturb", perturbations))

    def total(params, perturbations):
        if matrices:
            given = (losses, params, batch, perturbations)
            found = with_feedback(*given, matrices, substitute)
        else:
            found = losses(params, batch, perturbations)
        return found.total, found

    zeros = sites.zero_activities(places, params, batch.inputs)
    (grads, errors), found = jax.grad(total, argnums=(0, 1), has_aux=True)(params, zeros)
    return GradEstimate(found.mean, found.outputs, grads, errors, found.state, found.weight)
