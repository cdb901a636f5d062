"""Accuracy, gradient alignment per site, and norms."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfa_jax import tree
from dfa_jax.autodiff import loss as losses
from dfa_jax.autodiff import sites
from dfa_jax.models.base import Model
from dfa_jax.rules import Backprop, LearningRule
from dfa_jax.rules.functional import bound_model, estimate
from dfa_jax.types import Batch, Loss, LossFn, Params, PRNGKey, RuleState

MetricFn = Callable[[Any, Any], Any]
"""`metric(outputs, targets)`: numbers whose mean is reported, or a `Loss`, for a weighted one."""


def correct(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether the largest logit is the label's."""
    return logits.argmax(-1) == labels


def accuracy(
    outputs: Float[Array, "*batch classes"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """1 where the largest logit is the label's, else 0."""
    return correct(outputs, targets).astype(jnp.float32)


def measured(
    metric_fns: Mapping[str, MetricFn] | None, outputs: Any, targets: Any
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Mean and total weight of each metric on a batch, by name.

    Without any, `accuracy` where the targets are one label for each row of the outputs.
    """
    if metric_fns is None:
        metric_fns = {"accuracy": accuracy} if are_labels(targets, outputs) else {}
    found = {}
    for name, fn in metric_fns.items():
        value = losses.as_loss(values_of(fn, outputs, targets))
        found[name] = (losses.mean(value), losses.total_weight(value))
    return found


def values_of(metric_fn: MetricFn, outputs: Any, targets: Any) -> Loss:
    """What a metric returns, whole numbers and truth values as real ones."""
    value = metric_fn(outputs, targets)
    return value if isinstance(value, Loss) else Loss(jnp.asarray(value, jnp.float32))


def are_labels(targets: Any, outputs: Any) -> bool:
    """Whether the targets are one label for each row of the outputs."""
    if not (hasattr(targets, "dtype") and hasattr(outputs, "dtype")):
        return False
    return jnp.issubdtype(targets.dtype, jnp.integer) and targets.shape == outputs.shape[:-1]


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A language model's loss in a unit that does not depend on its tokens: `loss / (b ln 2)`.

    Args:
        loss: mean over the targets, nats per token.
        bytes_per_token: `b`, of the text that the loss is of (`Dataset.bytes_per_token`).

    >>> bits_per_byte(loss=8 * math.log(2), bytes_per_token=4)  # a token of 8 bits for 4 bytes
    2.0
    """
    return loss / (bytes_per_token * math.log(2))


class Alignment(NamedTuple):
    """Cosines between two errors over the examples of a batch; NaN where no example counts.

    Attributes:
        mean: over the examples that count, `[*stack]`.
        spread: standard deviation over them, `[*stack]`.
        fraction: of examples that count, `[*stack]`.
    """

    mean: Float[Array, "*stack"]
    spread: Float[Array, "*stack"]
    fraction: Float[Array, "*stack"]


def error_alignment(
    error: Array, reference: Array, *, num_stack: int = 0, num_batch: int = 1
) -> Alignment:
    r"""Cosine, example by example, between an error and the reference (backpropagation's).

        cos_b = <delta_b, g_b> / (|delta_b| |g_b|)

    Each vector is scaled by its largest entry first, so nothing underflows on the way. An example
    does not count where the largest entry of its reference is below `tiny / eps` of its type (1e-31
    in float32), since rounding decides its direction there, nor where its error is zero.

    Args:
        error: `delta`, `[*stack, *batch, *features]`.
        reference: `g`, of the same shape.
        num_stack: layer axes in front.
        num_batch: batch axes behind them.

    >>> a = error_alignment(jnp.array([[1.0, 0.0]]), jnp.array([[1e-20, 1e-20]]))
    >>> round(a.mean.item(), 4), a.fraction.item()
    (0.7071, 1.0)
    """
    stack = error.shape[:num_stack]
    examples = math.prod(error.shape[num_stack : num_stack + num_batch])
    delta = error.reshape(*stack, examples, -1).astype(jnp.float32)
    g = reference.reshape(*stack, examples, -1).astype(jnp.float32)
    floor = jnp.finfo(reference.dtype).tiny / jnp.finfo(reference.dtype).eps
    counts = (jnp.abs(g).max(-1) > floor) & (jnp.abs(delta).max(-1) > 0)
    cosine = jnp.sum(_unit(delta) * _unit(g), -1)
    number = counts.sum(-1)
    mean = jnp.sum(cosine, -1, where=counts) / number
    variance = jnp.sum(jnp.square(cosine - mean[..., None]), -1, where=counts) / number
    return Alignment(mean, jnp.sqrt(variance), number / examples)


def _unit(x: Float[Array, "*any features"]) -> Float[Array, "*any features"]:
    """Unit vectors along the last axis, zero for a zero vector, without under- or overflow."""
    largest = jnp.abs(x).max(-1, keepdims=True)
    scaled = x / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(jnp.linalg.norm(scaled, axis=-1, keepdims=True), 1)


def site_metrics(
    key: PRNGKey,
    model: Model,
    rule: LearningRule,
    loss_fn: LossFn,
    params: Params,
    rule_state: RuleState,
    model_state: Any,
    batch: Batch,
) -> dict[str, Array]:
    """What a rule does at each site of a model on one batch, by name.

    `gradient_alignment/<site>` and its `_spread` (over examples), `weight_alignment/<map>` where
    the rule defines it, `weight_norm/<path>`, and the root mean square over examples of three
    norms: `activity_norm/<site>`, `error_norm/<site>` of the rule's error, `gradient_norm/<site>`
    of backpropagation's, errors being those of the mean loss. A stacked site has one entry a layer,
    `<site>[0]`, `<site>[1]`, ... A rule that sends no errors (weight-perturbed forward gradients)
    has the norms of activities and weights alone.
    """

    def errors_of(rule, rule_state):
        given = (params, rule_state, model_state, batch, key)
        return estimate(rule, model, loss_fn, *given).errors

    errors = errors_of(rule, rule_state)
    reference = errors_of(Backprop(), ()) if errors else {}
    bound = bound_model(model, model_state, key)
    _, activities = sites.activities(bound, params, batch.inputs)
    num_batch = model.batch_axes
    found: dict[str, Array] = {}
    for site, place in model.where.items():
        axes = {"num_stack": len(place.stack), "num_batch": num_batch}
        found |= _by_layer("activity_norm", site, _example_norm(activities[site], **axes))
        if site not in errors:
            continue
        alignment = error_alignment(errors[site], reference[site], **axes)
        found |= _by_layer("gradient_alignment", site, alignment.mean)
        found |= _by_layer("gradient_alignment_spread", site, alignment.spread)
        found |= _by_layer("error_norm", site, _example_norm(errors[site], **axes))
        found |= _by_layer("gradient_norm", site, _example_norm(reference[site], **axes))
    aligned = rule.weight_alignment(bound, params, rule_state, batch)
    found |= {f"weight_alignment/{name}": value for name, value in aligned.items()}
    for path, leaf in jax.tree.leaves_with_path(params):
        name = "/".join(part.key for part in path)
        found[f"weight_norm/{name}"] = tree.norm(leaf)
    return found


def alignment_metrics(
    key: PRNGKey,
    model: Model,
    rule: LearningRule,
    loss_fn: LossFn,
    params: Params,
    rule_state: RuleState,
    model_state: Any,
    batch: Batch,
) -> dict[str, Array]:
    """Alignment by layer and overall, as *Align, then memorise* measures it.

    `preactivation_alignment/<map>`: the mean over examples of the cosine between the rule's error
    and backpropagation's in front of the activation function, at the output of every linear map but
    the last, whose error is exact; `preactivation_alignment` is that of all these errors as one
    vector an example. `weight_alignment/<map>` where the rule defines it, and `weight_alignment`,
    the cosine of all these kernels as one vector.

    Source: Refinetti et al. (2021), arXiv 2011.12428, and the code published with it.
    """
    at = model.at(called_maps(model)[:-1])

    def errors_of(rule, rule_state):
        given = (params, rule_state, model_state, batch, key)
        return estimate(rule, model, loss_fn, *given, at=at).errors

    errors = errors_of(rule, rule_state)
    found = {}
    if errors:
        reference = errors_of(Backprop(), ())
        found = {
            f"preactivation_alignment/{name}": error_alignment(errors[name], reference[name]).mean
            for name in at.sites
        }
        every, every_reference = (
            jnp.concatenate([side[name].reshape(len(side[name]), -1) for name in at.sites], 1)
            for side in (errors, reference)
        )
        found["preactivation_alignment"] = error_alignment(every, every_reference).mean
    bound = bound_model(model, model_state, key)
    if pairs := rule.weight_targets(bound, params, rule_state, batch):
        found |= {f"weight_alignment/{name}": tree.cosine(*pair) for name, pair in pairs.items()}
        weights, targets = ({n: pair[side] for n, pair in pairs.items()} for side in (0, 1))
        found["weight_alignment"] = tree.cosine(weights, targets)
    return found


def called_maps(model: Model) -> list[str]:
    """Names of the linear maps that are submodules, in forward order: places of pre-activations."""
    return [name for name in model.linear_maps if name in model.survey.values]


def _example_norm(x: Array, num_stack: int, num_batch: int) -> Float[Array, "*stack"]:
    stack = x.shape[:num_stack]
    examples = math.prod(x.shape[num_stack : num_stack + num_batch])
    vectors = x.reshape(*stack, examples, -1).astype(jnp.float32)
    return jnp.sqrt(jnp.square(vectors).sum(-1).mean(-1))


def _by_layer(kind: str, site: str, values: Any) -> dict[str, Array]:
    """One named scalar a layer; a site that is not stacked has one."""
    if values.ndim == 0:
        return {f"{kind}/{site}": values}
    return {f"{kind}/{site}[{i}]": value for i, value in enumerate(values.reshape(-1))}
