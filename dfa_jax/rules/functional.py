"""The functional form: what users call, in the shape that JAX users know."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jaxtyping import Array, Float

from dfa_jax.autodiff import loss as losses
from dfa_jax.autodiff.objective import as_objective
from dfa_jax.models.base import Model
from dfa_jax.rules.base import GradEstimate, LearningRule
from dfa_jax.types import Batch, LossFn, Params, PRNGKey, RuleState, SiteArrays


class Variables(NamedTuple):
    """Where training starts: parameters, the rule's state and the model's."""

    params: Params
    rule_state: RuleState
    model_state: Any


class Aux(NamedTuple):
    """What an estimate finds besides loss and gradients.

    Attributes:
        outputs: the model's, whatever they are.
        rule_state: the rule's state for the next step.
        model_state: the model's state for the next step.
        errors: what arrived at each site; not computed where it is not used.
        weight: sum of the loss's weights.
    """

    outputs: Any
    rule_state: RuleState
    model_state: Any
    errors: SiteArrays
    weight: Float[Array, ""]


def init(
    rule: LearningRule, model: Model, loss_fn: LossFn, key: PRNGKey, batch: Batch
) -> Variables:
    """Draws parameters, and the states of rule and model.

    The model's own parameters depend on the key alone, not on the rule. Abstract arrays will do for
    a batch, or for all under `jax.eval_shape`.

    Args:
        rule: the learning rule.
        model: from `from_linen`.
        loss_fn: the loss; it is tried on the outputs.
        key: of parameters and feedback.
        batch: a few examples.

    Raises:
        InputError: the loss is of a type or shape that no objective can be made of, or not finite
            on this batch, or model or targets do not fit the rule.
    """
    params_key, rule_key = jax.random.split(key)
    return init_from(rule, model, loss_fn, params_key, rule_key, batch)


def init_from(
    rule: LearningRule,
    model: Model,
    loss_fn: LossFn,
    params_key: PRNGKey,
    rule_key: PRNGKey,
    batch: Batch,
) -> Variables:
    """As `init`, with a key for the parameters and one for what the rule draws."""
    params, model_state, outputs = model.init_variables(params_key, batch.inputs)
    check_loss(loss_fn, outputs, batch.targets)
    params, rule_state = rule.init(rule_key, model.bind(model_state), params, batch)
    return Variables(params, rule_state, model_state)


def check_loss(loss_fn: LossFn, outputs: Any, targets: Any) -> None:
    """Tries the loss, and refuses one that no rule could descend.

    Raises:
        InputError: see `init`.
    """
    abstract = any(
        isinstance(leaf, Tracer | jax.ShapeDtypeStruct)
        for leaf in jax.tree.leaves((outputs, targets))
    )
    if abstract:
        jax.eval_shape(lambda o, t: losses.as_loss(loss_fn(o, t)), outputs, targets)
    else:
        losses.check_finite(losses.as_loss(loss_fn(outputs, targets)))


def estimate(
    rule: LearningRule,
    model: Model,
    loss_fn: LossFn,
    params: Params,
    rule_state: RuleState,
    model_state: Any,
    batch: Batch,
    key: PRNGKey,
    *,
    at: Model | None = None,
) -> GradEstimate:
    """All that a rule finds on one batch; the key serves the model's random streams and the rule.

    With `at`, the same module with other sites, the errors are those that arrive there.
    """
    _, rule_key = jax.random.split(key)
    bound = bound_model(model, model_state, key)
    elsewhere = None if at is None else bound_model(at, model_state, key)
    objective = as_objective(loss_fn)
    return rule.estimate(bound, objective, params, rule_state, batch, rule_key, at=elsewhere)


def bound_model(model: Model, model_state: Any, key: PRNGKey) -> Model:
    """The model as `estimate` with this key passes it: the first half of the key is the model's."""
    forward_key, _ = jax.random.split(key)
    return model.bind(model_state, key=forward_key)


def value_and_grad(
    rule: LearningRule, model: Model, loss_fn: LossFn
) -> Callable[
    [Params, RuleState, Any, Batch, PRNGKey], tuple[tuple[Float[Array, ""], Aux], Params]
]:
    """As `jax.value_and_grad(..., has_aux=True)` of the loss, by a learning rule.

    The function that it returns is pure, and works under `jax.jit`, `jax.vmap` and `jax.lax.scan`:

        (loss, aux), grads = value_and_grad(rule, model, loss_fn)(
            params, rule_state, model_state, batch, key)

    Differentiating it again gives the derivative of no loss: `jax.grad` of a function of these
    gradients is right for backpropagation alone, since the other rules cut graphs and replace
    derivatives.

    Args:
        rule: the learning rule.
        model: from `from_linen`.
        loss_fn: the loss; its weighted mean is the objective, see `types.Loss`.

    Raises:
        InputError: when called, see `init`.

    >>> from dfa_jax import MLP, DirectFeedbackAlignment, from_linen
    >>> from dfa_jax.losses import softmax_cross_entropy
    >>> batch = Batch(jax.numpy.ones((4, 3)), jax.numpy.zeros(4, int))
    >>> model, rule = from_linen(MLP((8,), 2), "layer_0", batch.inputs), DirectFeedbackAlignment()
    >>> start = init(rule, model, softmax_cross_entropy, jax.random.key(0), batch)
    >>> estimate = value_and_grad(rule, model, softmax_cross_entropy)
    >>> (loss, aux), grads = estimate(*start, batch, jax.random.key(1))
    >>> aux.outputs.shape
    (4, 2)
    """

    def of(params, rule_state, model_state, batch, key):
        found = estimate(rule, model, loss_fn, params, rule_state, model_state, batch, key)
        aux = Aux(found.outputs, found.rule_state, found.model_state, found.errors, found.weight)
        return (found.loss, aux), found.grads

    return of
