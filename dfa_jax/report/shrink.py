"""A recipe made small: every variant and every figure, in about a second a run."""

import dataclasses
import math
from typing import Any

from dfa_jax.data import ImageData, MarkovData, TextData
from dfa_jax.data.augment import Augmentation
from dfa_jax.models import LocalMixer, Transformer
from dfa_jax.report.recipe import Recipe
from dfa_jax.rules import LocalLosses
from dfa_jax.train.config import TrainConfig

WIDTH, CHANNELS = 8, 2
RATE = 0.01
_SMALL_MIXER = {"num_blocks": 2, "patches_per_side": 2, "channels": 16, "num_groups": 2}


def shrink(recipe: Recipe) -> Recipe:
    """The recipe with one seed, small networks, and two epochs of few digits.

    In place of a tuned learning rate, every variant has the same one.
    """
    variants = {label: shrink_config(config) for label, config in recipe.variants.items()}
    if recipe.tuning:
        for label, config in variants.items():
            optimizer = dataclasses.replace(config.optimizer, learning_rate=RATE)
            variants[label] = dataclasses.replace(config, optimizer=optimizer)
    return dataclasses.replace(recipe, variants=variants, seeds=recipe.seeds[:1], tuning=None)


def shrink_config(config: TrainConfig) -> TrainConfig:
    """The same experiment on 64 digits, with narrow layers, fewer of them where there are many.

    Or on some 2,000 bytes of text.
    """
    if isinstance(config.data, TextData | MarkovData):
        return _shrink_text(config)
    images = isinstance(config.data, ImageData)
    small: dict[str, Any] = {"num_outputs": 10} if images else {}
    rule = config.rule
    if isinstance(config.model, LocalMixer):
        small |= _SMALL_MIXER
        if isinstance(rule, LocalLosses) and rule.num_groups > 1:
            rule = dataclasses.replace(rule, num_groups=_SMALL_MIXER["num_groups"])
    for field, size in (("widths", WIDTH), ("channels", CHANNELS)):
        if isinstance(getattr(config.model, field, None), tuple):
            depth = len(getattr(config.model, field))
            small[field] = (size,) * math.ceil(depth ** (1 / 3))
    return dataclasses.replace(
        config,
        data=ImageData(num_train=64, num_test=32, label_noise=config.data.label_noise)
        if isinstance(config.data, ImageData)
        else dataclasses.replace(config.data, num_train=64),
        model=config.model.clone(**small),
        rule=rule,
        augment=_colourless(config.augment),
        second_view=_colourless(config.second_view),
        batch_size=32,
        num_epochs=2,
        eval_every=1,
        log_evaluations=min(config.log_evaluations, 3),
        alignment_examples=min(config.alignment_examples, 16),
    )


def _shrink_text(config: TrainConfig) -> TrainConfig:
    """Few blocks of eight units on 32 windows of 16 bytes of the standard library, or of a chain.

    Scanned, rematerialised, streamed and in half precision as before; a width that was split over
    devices is split over two.
    """
    model, data = config.model, config.data
    short: dict[str, Any] = {"context": 16, "num_train": 512, "num_test": 256}
    if isinstance(model, Transformer):
        depth = math.ceil(model.num_layers ** (1 / 3))
        model = model.clone(num_layers=depth, width=8, num_heads=2, context=16)
    if isinstance(data, MarkovData):
        data = dataclasses.replace(data, **short)
    elif isinstance(data, TextData):
        data = TextData(**short, stream=data.stream)
        model = model.clone(num_outputs=256)
    return dataclasses.replace(
        config,
        data=data,
        model=model,
        model_axis=min(config.model_axis, 2),
        layer_axis=1,
        examples_at_once=min(config.examples_at_once, 4),
        batch_size=8,
        num_epochs=1,
        num_tokens=512,
        log_evaluations=min(config.log_evaluations, 3),
        alignment_examples=min(config.alignment_examples, 8),
    )


def _colourless(augment: Augmentation) -> Augmentation:
    """What can be done to digits, which have one channel."""
    return dataclasses.replace(augment, color_jitter=0.0, grayscale=0.0)
