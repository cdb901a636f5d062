"""What a learning rule is: a frozen value that turns a batch into gradients.

A rule answers one question: which error does each credit site receive? A `SiteRule` answers it
directly; a `ChainRule` keeps the chain of backpropagation with other matrices in its backward pass.
"""

import abc
import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from dfa_jax import tree
from dfa_jax.autodiff.objective import GlobalLoss as GlobalLoss
from dfa_jax.autodiff.objective import GradEstimate as GradEstimate
from dfa_jax.autodiff.objective import Objective, chain_gradients
from dfa_jax.autodiff.site_gradients import Backward, ErrorTap, site_gradients
from dfa_jax.autodiff.transposes import with_matrices
from dfa_jax.errors import InputError, check_choices
from dfa_jax.models.base import Model, float_leaves
from dfa_jax.types import Batch, Params, PRNGKey, RuleState, SiteArrays


@dataclasses.dataclass(frozen=True)
class LearningRule(abc.ABC):
    """A learning rule: its hyper-parameters are its fields, so it is its own configuration."""

    def __post_init__(self):
        """Refuses a value that is none of its field's choices."""
        check_choices(self)

    def init(
        self, key: PRNGKey, model: Model, params: Params, batch: Batch
    ) -> tuple[Params, RuleState]:
        """Parameters (with those that the rule adds) and its state; abstract arrays will do."""
        del key, model, batch  # this rule carries nothing
        return params, ()

    @abc.abstractmethod
    def estimate(
        self,
        model: Model,
        objective: Objective,
        params: Params,
        rule_state: RuleState,
        batch: Batch,
        key: PRNGKey,
        at: Model | None = None,
    ) -> GradEstimate:
        """Loss, outputs, gradients, the errors that made them, and the next states.

        A pure function; `rules.value_and_grad` makes of it what users call.

        Args:
            model: bound to its state and to the key of its random streams, for one pass.
            objective: what is to be made small; `objective.loss_fn` is the user's.
            params: as `init` returned them, or as an optimiser moved them.
            rule_state: as `init` or the last estimate returned it.
            batch: inputs and targets.
            key: for rules that draw.
            at: the same module with other sites: then the errors are those that arrive there.
        """

    def weight_targets(
        self, model: Model, params: Params, rule_state: RuleState, batch: Batch
    ) -> dict[str, tuple[Array, Array]]:
        """Each weight, as it is applied, and what it aligns with under this rule, by linear map.

        Empty where undefined. Of the batch nothing but shapes matters.
        """
        del model, params, rule_state, batch  # undefined unless the rule says otherwise
        return {}

    def weight_alignment(
        self, model: Model, params: Params, rule_state: RuleState, batch: Batch
    ) -> dict[str, Float[Array, ""]]:
        """Cosine between each weight and its target, by linear map."""
        pairs = self.weight_targets(model, params, rule_state, batch)
        return {name: tree.cosine(*pair) for name, pair in pairs.items()}


@dataclasses.dataclass(frozen=True)
class SiteRule(LearningRule):
    """A rule that sends each site an error made from the output error, activities and targets."""

    @abc.abstractmethod
    def send(
        self,
        key: PRNGKey,
        model: Model,
        rule_state: RuleState,
        error: Array,
        activities: SiteArrays,
        targets: Any,
        shares: Array,
    ) -> SiteArrays:
        """The error `delta_l` of each site, like its activity.

        Args:
            key: for rules that draw.
            model: for the sites' layer axes.
            rule_state: as `init` made it.
            error: `dL/d(tap)` of the objective, `[*batch, width]`.
            activities: `h_l`, `[*stack, *batch, *features]` by site.
            targets: the batch's targets.
            shares: of each row in the mean that the objective is, `[*batch]`: `1 / N`, or by the
                weights of the loss.
        """

    @property
    def tap(self) -> ErrorTap:
        """Where the output error is read."""
        return "logits"

    @property
    def order(self) -> Backward:
        """In which order the local VJPs of a scanned stack are computed."""
        return "sequential"

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """One cut forward pass, one error per site, local VJPs."""

        def send(error, activities, shares):
            return self.send(key, model, rule_state, error, activities, batch.targets, shares)

        how = {"error_tap": self.tap, "backward": self.order, "at": at}
        found = site_gradients(model, objective, params, batch, send, **how)
        return found._replace(rule_state=rule_state)


@dataclasses.dataclass(frozen=True)
class ObjectiveRule(LearningRule):
    """A rule that can descend any objective: the loss of the outputs, or local losses beside it."""


@dataclasses.dataclass(frozen=True)
class ChainRule(ObjectiveRule):
    """A rule that keeps the chain and replaces the transpose of every linear map but by name.

    A linear map is a product of data by something made of parameters alone, whichever module wrote
    it (`models.maps`). A normalisation's scale keeps its true transpose.
    """

    def init(self, key, model, params, batch) -> tuple[Params, RuleState]:
        """The parameters as they are, and no state.

        Raises:
            InputError: an error passes parameters in another way than by a product.
        """
        del key, batch
        check_swapped(model)
        return params, ()

    @abc.abstractmethod
    def feedback(
        self, key: PRNGKey, model: Model, params: Params, rule_state: RuleState
    ) -> dict[str, Array]:
        """An array like the parameter of each linear map, by its name.

        A weight that is made of parameters has the matrix on the way back that is made in the same
        way of these.
        """

    def substitute(self, weight: Array, feedback: Array, fan_in: int) -> Array:
        """The matrix on the way back, of the weight as it is applied, and what feedback makes."""
        del weight, fan_in
        return feedback

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """The gradient of the objective with the substituted transposes."""
        feedback = self.feedback(key, model, params, rule_state)
        given = (model, objective, params, batch, feedback)
        found = chain_gradients(*given, substitute=self.substitute, at=at)
        return found._replace(rule_state=rule_state)

    def weight_targets(self, model, params, rule_state, batch) -> dict[str, tuple[Array, Array]]:
        """`B_l` of every linear map but the first, whose feedback no parameter reads."""
        feedback, maps = self.feedback(jax.random.key(0), model, params, rule_state), model.maps
        matrices = {m.path: feedback[m.name] for m in maps if m.name in feedback}
        if not matrices:
            return {}

        def outputs(params, inputs, rest):
            state, key = rest
            return float_leaves(model.bind(state, key=key).run(params, inputs, ())[0])

        rest = model.state, model.key
        _, used = with_matrices(outputs, params, batch.inputs, rest, matrices, self.substitute)
        return {m.name: used[m.path] for m in maps[1:] if m.path in used}


def check_swapped(model: Model) -> None:
    """Refuses a model in which an error passes parameters that no feedback can replace."""
    if model.unswapped:
        names = ", ".join(f"'{'/'.join(path)}'" for path in model.unswapped)
        raise InputError(
            f"an error passes the parameters {names} in another way than by a matrix product: they"
            " scale activations, or lie in an operation that cannot be looked into. A chain rule"
            " cannot replace their transpose; accept the true one by from_linen(...,"
            " true_transpose=[...]), or use another rule"
        )


def kernels(model: Model, params: Params) -> dict[str, Any]:
    """The linear maps' parameters by name, in forward order; abstract if the parameters are."""
    return {one.name: tree.get(params, one.path) for one in model.maps}
