"""What a run is: one frozen value, which is also its command line and its record."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
import optax

from dfa_jax.data import ArrayData, GaussianTargets, ImageData, MarkovData, TextData
from dfa_jax.data.augment import NONE, Augmentation
from dfa_jax.errors import InputError
from dfa_jax.losses import LOSSES, is_contrastive
from dfa_jax.metrics import MetricFn
from dfa_jax.models import MLP
from dfa_jax.optim import Optimizer
from dfa_jax.rules import RULES, Backprop, DirectRandomTargetProjection, LearningRule
from dfa_jax.train.described import describe, place
from dfa_jax.train.given import (
    IN_CODE,
    Calling,
    LossName,
    check_loss,
    checked_metrics,
    checked_optimizer,
    loss_name,
)
from dfa_jax.train.readout import OnlineReadout
from dfa_jax.types import LossFn


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run: data, model, learning rule, optimiser and schedule.

    Attributes:
        data: which examples.
        model: the Flax module to train.
        calling: how it is called, where that is not found.
        sites: its credit sites, submodule paths or glob patterns.
        blocks: where its blocks end, likewise, for local losses; none for the sites.
        rule: the learning rule.
        loss: the name of one of `LOSSES`, or a function `loss_fn(outputs, targets)` of values, or
            of a `types.Loss`; the objective is its (weighted) mean. With a contrastive one
            (`nt_xent`) every image of a batch is two rows, its views, the model's outputs are
            projections of any width, and accuracies and the test loss are those of a linear readout
            of the features.
        metrics: functions `metric(outputs, targets)`, of numbers or a `types.Loss`, by name, whose
            (weighted) means are recorded: a mapping, or a tuple of pairs, which it becomes. Without
            any, `accuracy` where the targets are one label for each row of the outputs.
        augment: random changes of every training image, or the first view of a contrastive run.
        second_view: the second view, in a contrastive run alone.
        readout: the classifier beside a contrastive run.
        optimizer: how gradients move parameters: an `Optimizer`, or any transformation of Optax.
        batch_size: examples a step, over all devices.
        examples_at_once: most examples that a device computes at once: the gradients of parts of a
            batch are added up, in less memory; 0 for the whole batch. A rule that draws noise draws
            it for each part.
        num_epochs: passes over the training set.
        num_tokens: of text to train on, in place of `num_epochs`; 0 for that.
        eval_every: epochs between evaluations (and checkpoints).
        log_evaluations: this many evaluations at logarithmically spaced steps, from the first step
            to the last, in place of evenly spaced ones; 0 for those.
        decay_fraction: at every evaluation a branch goes on for this fraction of the steps so far,
            its learning rate falling linearly to zero, and is tested too: `decayed_test_loss`. The
            run itself does not feel it; 0 for none.
        alignment_examples: training examples on which alignment and norms are measured at each
            evaluation; 0 for none.
        seed: of parameters, feedback and order of examples.
        feedback_seed: of the rule's feedback, where runs of several seeds are to share it.
        fsdp: split every matrix of the state (parameters, moments, feedback) over the devices that
            share the batch, so that none holds it whole; on one device, nothing changes.
        model_axis: devices over which each layer's width is split, where it divides.
        layer_axis: devices over which the blocks of a layer-parallel backward pass are split.
    """

    data: ImageData | TextData | MarkovData | GaussianTargets | ArrayData = ImageData()
    model: nn.Module = MLP()
    calling: Calling = Calling()
    sites: tuple[str, ...] = ("layer_*",)
    blocks: tuple[str, ...] = ()
    rule: LearningRule = Backprop()
    loss: LossName | LossFn = "softmax_cross_entropy"
    metrics: Mapping[str, MetricFn] | tuple[tuple[str, MetricFn], ...] | None = dataclasses.field(
        default=None, metadata=IN_CODE
    )
    augment: Augmentation = NONE
    second_view: Augmentation = NONE
    readout: OnlineReadout = OnlineReadout()
    optimizer: Any = Optimizer()
    batch_size: int = 128
    examples_at_once: int = 0
    num_epochs: float = 10.0
    num_tokens: int = 0
    eval_every: float = 1.0
    log_evaluations: int = 0
    decay_fraction: float = 0.0
    alignment_examples: int = 256
    seed: int = 0
    feedback_seed: int | None = None
    fsdp: bool = False
    model_axis: int = 1
    layer_axis: int = 1

    def __post_init__(self):
        object.__setattr__(self, "metrics", checked_metrics(self.metrics))
        object.__setattr__(self, "optimizer", checked_optimizer(self.optimizer))
        check_loss(self.loss)
        for name in ("batch_size", "num_epochs", "eval_every", "model_axis", "layer_axis"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} is {value}; expected a positive finite number")
        if self.num_tokens < 0:
            raise InputError(f"num_tokens is {self.num_tokens}; expected at least 0")
        if not 0 <= self.decay_fraction <= 1:
            raise InputError(f"decay_fraction is {self.decay_fraction}; expected 0 to 1")
        schedule = getattr(self.optimizer, "schedule", "unknown, of a transformation of Optax")
        if self.decay_fraction and schedule != "constant":
            raise InputError(
                f"decay_fraction is {self.decay_fraction} and optimizer.schedule is"
                f" '{schedule}'; branches want a constant rate"
            )
        for name in (
            "alignment_examples",
            "examples_at_once",
            "log_evaluations",
            "seed",
            "feedback_seed",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**31:
                raise InputError(f"{name} is {value}; expected an integer from 0 to 2**31 - 1")
        self._check_views()

    @property
    def loss_fn(self) -> LossFn:
        """The loss as a function."""
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def metric_fns(self) -> Mapping[str, MetricFn] | None:
        """The metrics by name."""
        return None if self.metrics is None else dict(self.metrics)

    @property
    def learning_rate(self) -> float | None:
        """The optimiser's peak rate; None of a transformation of Optax, which does not tell."""
        return self.optimizer.learning_rate if isinstance(self.optimizer, Optimizer) else None

    @property
    def is_contrastive(self) -> bool:
        """Whether the loss compares two views of each image."""
        return is_contrastive(self.loss_fn)

    def _check_views(self) -> None:
        """Refuses views of what are no images, or of too few, and rules without use for them."""
        loss = loss_name(self.loss)
        if not isinstance(self.data, ImageData):
            for name in ("augment", "second_view"):
                if getattr(self, name) != NONE:
                    raise InputError(
                        f"{name} changes images and data is {self.data}; leave it out, or choose"
                        " ImageData"
                    )
            if self.is_contrastive:
                raise InputError(
                    f"loss '{loss}' compares views of images and data is {self.data}; choose"
                    " ImageData, or another loss"
                )
        if not self.is_contrastive:
            return
        if self.metrics is not None:
            raise InputError(
                f"metrics are given, and with loss '{loss}' the accuracy of a readout is measured;"
                " leave them out, or choose another loss"
            )
        if self.examples_at_once:
            raise InputError(
                f"examples_at_once is {self.examples_at_once}, and loss '{loss}' compares the"
                " images of a whole batch; set it to 0, or choose another loss"
            )
        for name in ("batch_size", "alignment_examples"):
            if getattr(self, name) == 1:
                raise InputError(
                    f"{name} is 1, and loss '{loss}' compares an image with others; expected"
                    " at least 2"
                )
        if isinstance(self.rule, DirectRandomTargetProjection):
            raise InputError(
                f"rule is {rule_name(self.rule)}, which projects labels, and loss '{loss}'"
                " reads none; choose another rule, or another loss"
            )
        if getattr(self.model, "zero_readout", False):
            raise InputError(
                f"zero_readout is true: all outputs are zero, where loss '{loss}' has no"
                " gradient, and the readout would never learn; set it to false"
            )

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the run, at least one.

        Raises:
            InputError: `num_tokens` of what is no text; more steps than can be counted.
        """
        if self.num_tokens:
            if not isinstance(self.data, TextData | MarkovData):
                raise InputError(
                    f"num_tokens is {self.num_tokens} and data is {type(self.data).__name__}, which"
                    " has no tokens; set num_epochs in its place"
                )
            number = round(self.num_tokens / (self.batch_size * self.data.context))
            return _countable(max(1, number), f"num_tokens is {self.num_tokens}")
        number = round(self.num_epochs * steps_per_epoch)
        return _countable(max(1, number), f"num_epochs is {self.num_epochs:g}")

    def evaluation_steps(self, num_steps: int, steps_per_epoch: int) -> list[int]:
        """After which steps to evaluate; the last one is always among them.

        >>> TrainConfig(log_evaluations=4).evaluation_steps(1000, steps_per_epoch=100)
        [1, 10, 100, 1000]
        """
        if self.log_evaluations:
            steps = np.round(np.geomspace(1, num_steps, self.log_evaluations))
            return [*map(int, np.unique(steps))]
        every = max(1, round(self.eval_every * steps_per_epoch))
        return [*range(every, num_steps, every), num_steps]


def _countable(num_steps: int, given: str) -> int:
    """So many steps, if the state can count them, in 32 bits."""
    if num_steps >= 2**31:
        raise InputError(
            f"{given}, which makes {num_steps:.2g} steps; expected fewer than 2**31: lower it"
        )
    return num_steps


_LINEN_FIELDS = ("parent", "name")


def rule_name(rule: LearningRule) -> str:
    """The name under which a rule's class is registered, or the class's own."""
    names = {kind: name for name, kind in RULES.items()}
    return names.get(type(rule), type(rule).__name__)


def to_dict(config: Any) -> Any:
    """A configuration as JSON-able values; a rule or model carries its `name`.

    Where the data lies is left out: it is no part of what was run, and differs between machines.
    Functions and transformations are told by where they are defined and a digest of what they hold,
    arrays by shape, type and digest.

    >>> to_dict(TrainConfig())["rule"]
    {'name': 'backprop'}
    """
    if isinstance(config, ArrayData):
        return config.summary()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        held = {f: getattr(config, f.name) for f in config_fields(config) if f.name != "data_dir"}
        fields = {f.name: to_dict(v) for f, v in held.items() if not _is_left_out(f, v)}
        if isinstance(config, LearningRule):
            return {"name": rule_name(config), **fields}
        if isinstance(config, nn.Module):
            return {"name": type(config).__name__, **fields}
        # An augmentation has been recorded without a name.
        has_name = callable(config) and not isinstance(config, Augmentation)
        return {"name": place(config), **fields} if has_name else fields
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)) and not isinstance(config, optax.GradientTransformation):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    return describe(config)


def _is_left_out(field: dataclasses.Field, value: Any) -> bool:
    """Whether it is what no command line has, and nobody gave."""
    return value is None and bool(field.metadata.get("in_code"))


def config_fields(config: Any) -> list[dataclasses.Field]:
    """The fields that a user sets; Linen's own `parent` and `name` are not among them."""
    hidden = _LINEN_FIELDS if isinstance(config, nn.Module) else ()
    return [f for f in dataclasses.fields(config) if f.init and f.name not in hidden]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration as `to_dict` writes it, by dotted name.

    >>> flatten({"seed": 1, "rule": {"name": "shallow"}})
    {'seed': 1, 'rule.name': 'shallow'}
    """
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def changes(stored: Mapping[str, Any], config: Any) -> list[str]:
    """The settings in which a stored configuration differs from this one, `"name: old -> new"`.

    Of any dataclass that `to_dict` writes: a run's, or a study's case.

    A setting that is younger than the stored configuration had its default then. Where the data lay
    is no setting.

    >>> changes(to_dict(TrainConfig()), TrainConfig(seed=1))
    ['seed: 0 -> 1']
    """
    written = to_dict(config)
    if stored == written:  # as a rule, and of every record each time that a file is read
        return []
    new = flatten(written)
    old = _defaults(config) | flatten(stored)
    names = sorted((new.keys() | flatten(stored).keys()) - {"data.data_dir"})
    return [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in names
        if old.get(name, "absent") != new.get(name, "absent")
    ]


PLACEMENT = ("fsdp", "model_axis", "layer_axis")
"""Settings that say where a run is computed, and change nothing but the order of sums."""


def run_changes(stored: Mapping[str, Any], config: Any) -> list[str]:
    """As `changes`, but for `PLACEMENT`: a run goes on under another mesh.

    >>> run_changes(to_dict(TrainConfig()), TrainConfig(seed=1, model_axis=2))
    ['seed: 0 -> 1']
    """
    return [one for one in changes(stored, config) if one.partition(":")[0] not in PLACEMENT]


def _defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """The defaults of a configuration's fields by dotted name; those of its parts' own classes."""
    found = {}
    for field in config_fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _defaults(value, f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING and not _is_left_out(field, field.default):
            found |= flatten({field.name: to_dict(field.default)}, prefix)
    return found
