"""What a learning rule is: a frozen value that turns a batch into gradients.

A rule answers one question: which error does each credit site receive? A `SiteRule` answers it
directly; a `ChainRule` keeps the chain of backpropagation with other matrices in its backward pass.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from dfa_jax import tree
from dfa_jax.autodiff import sites
from dfa_jax.autodiff.objective import (
    GlobalLoss,
    Objective,
    chain_errors,
    chain_gradients,
    errors_elsewhere,
)
from dfa_jax.errors import check_choices
from dfa_jax.models.base import Model
from dfa_jax.types import Batch, LossFn, Params, PRNGKey, RuleState, SiteArrays


class GradEstimate(NamedTuple):
    """What a rule makes of one batch.

    Attributes:
        loss: mean loss of the batch, the same under every rule.
        outputs: the model's outputs, `[*batch, features]`.
        grads: one array per parameter, in the parameters' tree.
        rule_state: the state for the next step.
    """

    loss: Float[Array, ""]
    outputs: Any
    grads: Params
    rule_state: RuleState


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
        key: PRNGKey,
        model: Model,
        loss_fn: LossFn,
        params: Params,
        rule_state: RuleState,
        batch: Batch,
    ) -> GradEstimate:
        """Loss, outputs, gradients and the next state; a pure function."""

    @abc.abstractmethod
    def errors(
        self,
        key: PRNGKey,
        model: Model,
        loss_fn: LossFn,
        params: Params,
        rule_state: RuleState,
        batch: Batch,
        at: Model | None = None,
    ) -> SiteArrays:
        """The error that `estimate` delivers to each site, `[*batch, *features]`, if there are any.

        With `at`, the same module with other sites, it is the error that arrives at those.
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
    ) -> SiteArrays:
        """The error `delta_l` of each site, like its activity.

        Args:
            key: for rules that draw.
            model: for the sites' layer axes.
            rule_state: as `init` made it.
            error: `dL/d(tap)` of the mean loss, `[*batch, width]`.
            activities: `h_l`, `[*stack, *batch, *features]` by site.
            targets: the batch's targets.
        """

    @property
    def tap(self) -> sites.ErrorTap:
        """Where the output error is read."""
        return "logits"

    @property
    def order(self) -> sites.Backward:
        """In which order the local VJPs of a scanned stack are computed."""
        return "sequential"

    def estimate(self, key, model, loss_fn, params, rule_state, batch) -> GradEstimate:
        """One cut forward pass, one error per site, local VJPs."""
        found = self._gradients(key, model, loss_fn, params, rule_state, batch)
        return GradEstimate(found.loss, found.outputs, found.grads, rule_state)

    def errors(self, key, model, loss_fn, params, rule_state, batch, at=None) -> SiteArrays:
        """What `send` answers for this batch, and what local VJPs make of it elsewhere."""
        sent = self._gradients(key, model, loss_fn, params, rule_state, batch).errors
        if at is None:
            return sent
        forward_key, _ = jax.random.split(key)
        return errors_elsewhere(model, at, loss_fn, params, batch, sent, key=forward_key)

    def _gradients(self, key, model, loss_fn, params, rule_state, batch) -> sites.SiteGradients:
        forward_key, rule_key = jax.random.split(key)

        def send(error, activities):
            return self.send(rule_key, model, rule_state, error, activities, batch.targets)

        return sites.site_gradients(
            model,
            loss_fn,
            params,
            batch,
            send,
            key=forward_key,
            error_tap=self.tap,
            backward=self.order,
        )


@dataclasses.dataclass(frozen=True)
class ObjectiveRule(LearningRule):
    """A rule that can descend any objective: the loss of the outputs, or local losses beside it."""

    @abc.abstractmethod
    def estimate_of(
        self,
        objective: Objective,
        key: PRNGKey,
        model: Model,
        params: Params,
        rule_state: RuleState,
        batch: Batch,
    ) -> GradEstimate:
        """As `estimate`, for the objective's total."""

    @abc.abstractmethod
    def errors_of(
        self,
        objective: Objective,
        key: PRNGKey,
        model: Model,
        params: Params,
        rule_state: RuleState,
        batch: Batch,
        at: Model | None = None,
    ) -> SiteArrays:
        """As `errors`, for the objective's total."""

    def estimate(self, key, model, loss_fn, params, rule_state, batch) -> GradEstimate:
        """The estimate for the mean loss of the outputs."""
        return self.estimate_of(GlobalLoss(loss_fn), key, model, params, rule_state, batch)

    def errors(self, key, model, loss_fn, params, rule_state, batch, at=None) -> SiteArrays:
        """The errors for the mean loss of the outputs."""
        return self.errors_of(GlobalLoss(loss_fn), key, model, params, rule_state, batch, at)


@dataclasses.dataclass(frozen=True)
class ChainRule(ObjectiveRule):
    """A rule that keeps the chain and replaces the transpose of every linear map but by name."""

    @abc.abstractmethod
    def feedback(
        self, key: PRNGKey, model: Model, params: Params, rule_state: RuleState
    ) -> dict[str, Array]:
        """The kernel whose transpose carries the error back, by linear map, like its own kernel."""

    def estimate_of(self, objective, key, model, params, rule_state, batch) -> GradEstimate:
        """The gradient of the objective with the substituted transposes."""
        forward_key, rule_key = jax.random.split(key)
        feedback = self.feedback(rule_key, model, params, rule_state)
        found = chain_gradients(model, objective, params, batch, feedback, key=forward_key)
        return GradEstimate(*found, rule_state)

    def errors_of(self, objective, key, model, params, rule_state, batch, at=None) -> SiteArrays:
        """The error that reaches each site along the substituted chain."""
        forward_key, rule_key = jax.random.split(key)
        feedback = self.feedback(rule_key, model, params, rule_state)
        return chain_errors(model, objective, params, batch, feedback, at=at, key=forward_key)

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
