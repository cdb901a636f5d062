"""What a run's compiled functions depend on, made from its configuration, and checked."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dfa_jax.data import Dataset
from dfa_jax.data.augment import NONE
from dfa_jax.errors import InputError
from dfa_jax.losses import LOSSES
from dfa_jax.models import Model, from_linen
from dfa_jax.optim import Optimizer
from dfa_jax.rules import LearningRule
from dfa_jax.rules.base import SiteRule
from dfa_jax.train import sharding
from dfa_jax.train.config import TrainConfig, rule_name
from dfa_jax.train.readout import Readout, place_readout
from dfa_jax.train.views import Views
from dfa_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiled functions depend on; equal programs share one compilation.

    Attributes:
        model: with its sites.
        rule: the learning rule.
        loss: its name.
        optimizer: how gradients move parameters.
        num_steps: of the whole run, for the schedule.
        mesh: the devices.
        num_parts: of a batch, whose gradients are computed one after the other.
        views: what is done to every batch, if anything.
        readout: the classifier of a contrastive run's features.
    """

    model: Model
    rule: LearningRule
    loss: str
    optimizer: Optimizer
    num_steps: int
    mesh: Mesh
    num_parts: int = 1
    views: Views | None = None
    readout: Readout | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The keyword arguments of `train_step`."""
        return {**self.initial_parts, "num_parts": self.num_parts}

    @property
    def initial_parts(self) -> dict[str, Any]:
        """The keyword arguments of `init_state`."""
        tx = self.optimizer.build(self.num_steps, self.model.readout)
        return {
            "model": self.model,
            "rule": self.rule,
            "loss_fn": LOSSES[self.loss],
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
    model = _checked_model(config, dataset, rows)
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
    return Batch(
        *(
            jax.ShapeDtypeStruct((number, *a.shape[1:]), a.dtype)
            for a in (dataset.train.inputs, dataset.train.targets)
        )
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


def _checked_model(config: TrainConfig, dataset: Dataset, rows: int) -> Model:
    """The model with its sites, after checking that it classifies as many classes as there are.

    Every target, a label of an image or each token of a text, has a row of logits. A contrastive
    run asks for no number of outputs, but for one vector a row.
    """
    example = jax.ShapeDtypeStruct(
        (rows, *dataset.train.inputs.shape[1:]), dataset.train.inputs.dtype
    )
    try:
        model = from_linen(config.model, config.sites, example, blocks=config.blocks)
        params, _, outputs = jax.eval_shape(model.init_variables, jax.random.key(0), example)
    except InputError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:  # what Flax raises over bad sizes
        raise InputError(
            f"{type(config.model).__name__} does not run on inputs {example.shape} ({error}); check"
            " its sizes"
        ) from error
    for path, leaf in jax.tree.leaves_with_path(params):
        if not leaf.size:
            raise InputError(
                f"{type(config.model).__name__} on inputs {example.shape} has an empty parameter"
                f" {'/'.join(part.key for part in path)} of shape {leaf.shape}; check its sizes"
            )
    _check_widths(config, params)
    if config.is_contrastive:
        if outputs.ndim != 2:
            raise InputError(
                f"the model's outputs are {outputs.shape}; loss '{config.loss}' needs one vector"
                f" for each of the {rows} views"
            )
        return model
    labels = dataset.train.targets
    places = labels.shape[1:] if np.issubdtype(labels.dtype, np.integer) else ()
    expected = (rows, *places, dataset.num_classes)
    if outputs.shape != expected:
        raise InputError(
            f"the model's outputs are {outputs.shape}; data set '{dataset.name}' needs {expected}:"
            f" set the model's number of outputs to {dataset.num_classes}"
        )
    return model


def _check_widths(config: TrainConfig, params: Params) -> None:
    """Refuses a model axis that splits nothing: every device would hold, and do, all of it."""
    widths = sorted({leaf.shape[-1] for leaf in jax.tree.leaves(params) if leaf.ndim >= 2})
    if config.model_axis > 1 and all(width % config.model_axis for width in widths):
        raise InputError(
            f"model_axis is {config.model_axis}, which divides none of"
            f" {type(config.model).__name__}'s widths ({', '.join(map(str, widths))}); choose a"
            " divisor of one, or 1"
        )
