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
from dfa_jax.errors import check_choices
from dfa_jax.models.base import Model
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
        self, model: Model, params: Params, rule_state: RuleState
    ) -> dict[str, Array]:
        """What each kernel aligns with under this rule, by linear map; empty where undefined."""
        del model, params, rule_state  # undefined unless the rule says otherwise
        return {}

    def weight_alignment(
        self, model: Model, params: Params, rule_state: RuleState
    ) -> dict[str, Float[Array, ""]]:
        """Cosine between each kernel and its target, by linear map."""
        forward = kernels(model, params)
        targets = self.weight_targets(model, params, rule_state)
        return {name: tree.cosine(forward[name], target) for name, target in targets.items()}


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
    """A rule that keeps the chain and replaces the transpose of every linear map but by name."""

    @abc.abstractmethod
    def feedback(
        self, key: PRNGKey, model: Model, params: Params, rule_state: RuleState
    ) -> dict[str, Array]:
        """The kernel whose transpose carries the error back, by linear map, like its own kernel."""

    def estimate(self, model, objective, params, rule_state, batch, key, at=None) -> GradEstimate:
        """The gradient of the objective with the substituted transposes."""
        feedback = self.feedback(key, model, params, rule_state)
        found = chain_gradients(model, objective, params, batch, feedback, at=at)
        return found._replace(rule_state=rule_state)

    def weight_targets(self, model, params, rule_state) -> dict[str, Array]:
        """`B_l` of every linear map but the first, whose feedback no parameter reads."""
        feedback = self.feedback(jax.random.key(0), model, params, rule_state)
        return {name: feedback[name] for name in list(model.linear_maps)[1:] if name in feedback}


def kernels(model: Model, params: Params) -> dict[str, Any]:
    """The kernels of all linear maps by name, in forward order; abstract if the parameters are."""
    maps = model.linear_maps
    return {
        name: tree.get(params, (*linear_map.path, "kernel")) for name, linear_map in maps.items()
    }
