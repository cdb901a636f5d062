"""What a run's compiled functions depend on, made from its configuration, and checked."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from dfa_jax import metrics
from dfa_jax.autodiff import loss as losses
from dfa_jax.data import ArrayData, Dataset
from dfa_jax.data.augment import NONE
from dfa_jax.errors import InputError, reason
from dfa_jax.losses import LOSSES
from dfa_jax.metrics import MetricFn
from dfa_jax.models import Model, from_linen
from dfa_jax.models.base import described, float_leaves
from dfa_jax.optim import Optimizer
from dfa_jax.rules import LearningRule
from dfa_jax.rules.base import SiteRule
from dfa_jax.train import sharding
from dfa_jax.train.config import TrainConfig, rule_name
from dfa_jax.train.given import RAISED, loss_name
from dfa_jax.train.readout import Readout, place_readout
from dfa_jax.train.views import Views
from dfa_jax.types import Batch, LossFn, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiled functions depend on; equal programs share one compilation.

    Attributes:
        model: with its sites.
        rule: the learning rule.
        loss: its name, or a function.
        optimizer: how gradients move parameters: an `Optimizer`, or a transformation of Optax.
        num_steps: of the whole run, for the schedule.
        mesh: the devices.
        num_parts: of a batch, whose gradients are computed one after the other.
        views: what is done to every batch, if anything.
        readout: the classifier of a contrastive run's features.
        metrics: what is measured besides the loss, by name.
        is_weighted: whether the loss has weights.
    """

    model: Model
    rule: LearningRule
    loss: str | LossFn
    optimizer: Optimizer | optax.GradientTransformation
    num_steps: int
    mesh: Mesh
    num_parts: int = 1
    views: Views | None = None
    readout: Readout | None = None
    metrics: tuple[tuple[str, MetricFn], ...] = (("accuracy", metrics.accuracy),)
    is_weighted: bool = False

    @property
    def loss_fn(self) -> LossFn:
        """The loss as a function."""
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def metric_names(self) -> list[str]:
        """What is noted of every step: the loss first."""
        return ["loss", *(name for name, _ in self.metrics)]

    @property
    def evaluation_key(self) -> PRNGKey | None:
        """For a module that asks for random numbers in evaluation: always the same ones."""
        return jax.random.key(0) if self.model.eval_streams else None

    @property
    def parts(self) -> dict[str, Any]:
        """The keyword arguments of `train_step`."""
        more = {"num_parts": self.num_parts, "metric_fns": dict(self.metrics)}
        return self.initial_parts | more

    @property
    def initial_parts(self) -> dict[str, Any]:
        """The keyword arguments of `init_state`."""
        tx = self.optimizer
        if isinstance(tx, Optimizer):
            tx = tx.build(self.num_steps, self.model.readout)
        return {
            "model": self.model,
            "rule": self.rule,
            "loss_fn": self.loss_fn,
            "tx": tx,
            "readout": self.readout,
            "views": self.views,
        }


def make_program(
    config: TrainConfig, dataset: Dataset, num_steps: int, *, devices: Sequence[Any] | None = None
) -> Program:
    """What the compiled functions of this run depend on, on all devices or these.

    Raises:
        InputError: the devices, or the data, do not fit the configuration.
    """
    mesh = sharding.make_mesh(
        fsdp=config.fsdp,
        model_axis=config.model_axis,
        layer_axis=config.layer_axis,
        batch_size=config.batch_size,
        devices=devices,
    )
    views = _checked_views(config, dataset)
    rows = config.batch_size * (views.per_image if views else 1)
    model, outputs = _checked_model(config, dataset, rows)
    measured, is_weighted = _measured(config, outputs, examples(dataset, rows).targets)
    if config.layer_axis > 1:
        _check_layers(config, model)
    readout = _readout(config, model, dataset) if config.is_contrastive else None
    return Program(
        model,
        config.rule,
        config.loss,
        config.optimizer,
        num_steps,
        mesh,
        _num_parts(config, mesh),
        views,
        readout,
        measured,
        is_weighted,
    )


def _num_parts(config: TrainConfig, mesh: Mesh) -> int:
    """The fewest equal parts of a device's examples that are no larger than is allowed."""
    own = config.batch_size // sharding.batch_shards(mesh)
    most = config.examples_at_once or own
    return next(parts for parts in range(1, own + 1) if own % parts == 0 and own // parts <= most)


def _check_layers(config: TrainConfig, model: Model) -> None:
    """Refuses a layer axis that nothing, or not all of a stack, can be split over."""
    if not isinstance(config.rule, SiteRule) or config.rule.order != "layer_parallel":
        raise InputError(
            f"layer_axis is {config.layer_axis} and rule {rule_name(config.rule)} has no"
            " layer-parallel backward pass; set rule.backward=layer_parallel (rules that send an"
            " error to every site have it), or layer_axis to 1"
        )
    for site, place in model.where.items():
        if place.stack and place.stack[0] % config.layer_axis:
            raise InputError(
                f"layer_axis is {config.layer_axis}, which does not divide the {place.stack[0]}"
                f" layers of site '{site}'; choose a divisor"
            )


def examples(dataset: Dataset, number: int) -> Batch:
    """So many training examples without numbers: shapes and types."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((number, *a.shape[1:]), a.dtype),
        Batch(dataset.train.inputs, dataset.train.targets),
    )


def _checked_views(config: TrainConfig, dataset: Dataset) -> Views | None:
    """What to do with every batch, if anything, after trying it on one without numbers."""
    if config.augment == NONE and not config.is_contrastive:
        return None
    if dataset.train.inputs.ndim != 4:
        raise InputError(
            f"augmentation and contrastive losses want images [height, width, channels], and data"
            f" set '{dataset.name}' has inputs {dataset.train.inputs.shape[1:]}"
        )
    second = config.second_view if config.is_contrastive else None
    views = Views.of(dataset, config.augment, second)
    jax.eval_shape(views, jax.random.key(0), examples(dataset, config.batch_size))
    return views


def _readout(config: TrainConfig, model: Model, dataset: Dataset) -> Readout:
    """The classifier of the features, for single images."""
    at = place_readout(model, config.readout.place)
    return Readout(at, dataset.num_classes, config.readout.learning_rate)


def _checked_model(config: TrainConfig, dataset: Dataset, rows: int) -> tuple[Model, Any]:
    """The model with its sites, and its outputs without numbers, after trying it."""
    example = examples(dataset, rows).inputs
    kind, shapes = type(config.model).__name__, shapes_of(example)
    try:
        model = from_linen(
            config.model, config.sites, example, blocks=config.blocks, **config.calling.options
        )
        params, _, outputs = jax.eval_shape(model.init_variables, jax.random.key(0), example)
    except InputError:
        raise
    except RAISED as error:
        raise InputError(
            f"{kind} does not run on inputs {shapes} ({reason(error)}); check its sizes"
        ) from error
    for path, leaf in jax.tree.leaves_with_path(params):
        if not leaf.size:
            raise InputError(
                f"{kind} on inputs {shapes} has an empty parameter"
                f" {'/'.join(part.key for part in path)} of shape {leaf.shape}; check its sizes"
            )
    _check_widths(config, params)
    if isinstance(config.loss, str):
        _check_outputs(config, dataset, rows, outputs)
    return model, outputs


def shapes_of(tree: Any) -> str:
    """The shape of an array, or of each array of a tree, for a message."""
    return str(tree.shape) if hasattr(tree, "shape") else str(jax.tree.map(lambda a: a.shape, tree))


def _check_outputs(config: TrainConfig, dataset: Dataset, rows: int, outputs: Any) -> None:
    """Refuses outputs that the library's own losses would take for something else.

    Every target, a label of an image or each token of a text, has a row of logits. A contrastive
    run asks for no number of outputs, but for one vector a row.
    """
    targets, loss = dataset.train.targets, f"loss '{config.loss}'"
    for name, tree in (("outputs", outputs), ("targets", targets)):
        if not hasattr(tree, "shape"):
            raise InputError(
                f"{loss} reads one array of {name}, and these are {shapes_of(tree)}; give a"
                " function of your own as the loss"
            )
    if config.is_contrastive:
        if outputs.ndim != 2:
            raise InputError(
                f"the model's outputs are {outputs.shape}; {loss} needs one vector for each of the"
                f" {rows} views"
            )
        return
    if not np.issubdtype(targets.dtype, np.integer):
        if config.loss != "squared_error":
            raise InputError(
                f"{loss} reads labels, and data set '{dataset.name}' has targets {targets.dtype}"
                f" {targets.shape}; choose squared_error, or give a function of your own"
            )
        if targets.ndim < 2:
            raise InputError(
                f"{loss} is summed over the last axis, and data set '{dataset.name}' has targets"
                f" {targets.shape}: give them, and the outputs, an axis of features"
            )
        width, more = targets.shape[-1], False
        expected = (rows, *targets.shape[1:])
    else:
        width, more = dataset.num_classes, isinstance(config.data, ArrayData)  # some may be missing
        expected = (rows, *targets.shape[1:], width)
    is_served = outputs.shape == expected
    is_wider = outputs.shape[:-1] == expected[:-1] and outputs.shape[-1] > width
    if not (is_served or (more and is_wider)):
        raise InputError(
            f"the model's outputs are {outputs.shape}; data set '{dataset.name}' needs {expected}:"
            f" set the model's number of outputs to {width}"
        )


def _measured(
    config: TrainConfig, outputs: Any, targets: Any
) -> tuple[tuple[tuple[str, MetricFn], ...], bool]:
    """What to measure besides the loss, and whether that has weights, after trying both."""
    default = (("accuracy", metrics.accuracy),)
    if config.is_contrastive:
        return default, False
    loss = _tried(f"loss '{loss_name(config.loss)}'", config.loss_fn, outputs, targets)
    if config.metric_fns is None:
        return default if metrics.are_labels(targets, outputs) else (), loss.weights is not None
    pairs = tuple(config.metric_fns.items())
    for name, function in pairs:
        each = functools.partial(metrics.values_of, function)
        _tried(f"metric '{name}'", each, outputs, targets)
    return pairs, loss.weights is not None


def _tried(what: str, function: Any, outputs: Any, targets: Any) -> losses.Loss:
    """A loss or metric on outputs and targets without numbers."""
    try:
        return jax.eval_shape(lambda *both: losses.as_loss(function(*both)), outputs, targets)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except RAISED as error:
        raise InputError(
            f"{what} does not run on outputs {described(float_leaves(outputs))} and targets"
            f" {shapes_of(targets)} ({reason(error)}); check what it reads"
        ) from error


def _check_widths(config: TrainConfig, params: Params) -> None:
    """Refuses a model axis that splits nothing: every device would hold, and do, all of it."""
    widths = sorted({leaf.shape[-1] for leaf in jax.tree.leaves(params) if leaf.ndim >= 2})
    if config.model_axis > 1 and all(width % config.model_axis for width in widths):
        raise InputError(
            f"model_axis is {config.model_axis}, which divides none of"
            f" {type(config.model).__name__}'s widths ({', '.join(map(str, widths))}); choose a"
            " divisor of one, or 1"
        )
