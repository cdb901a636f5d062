"""A learning rate for each variant of a recipe, found on a validation split before its runs."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dfa_jax.data import ArrayData, ImageData, TextData
from dfa_jax.errors import InputError
from dfa_jax.report import plan, series
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.train import records
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import RunRecord

FILE = "tuning.jsonl"
"""The search's runs, beside the recipe's records."""

MOST_STEPS = 8  # up or down from the first rate


def labels(recipe: Recipe) -> list[str]:
    """Of every run that the search may come to, `variant@step`, variant by variant.

    Raises:
        InputError: a variant has data from which no validation split can be cut, or an optimiser
            without a learning rate to set.
    """
    for config in recipe.variants.values():
        _check(recipe, config)
    steps = range(-MOST_STEPS, MOST_STEPS + 1)
    return [f"{variant}@{step:+d}" for variant in recipe.variants for step in steps]


def trial(recipe: Recipe, label: str) -> TrainConfig:
    """The short run of a label; its rate is the variant's times `factor**step`.

    Raises:
        InputError: as `labels`.
    """
    tuning, (variant, _, step) = _required(recipe), label.rpartition("@")
    config = recipe.variants[variant]
    _check(recipe, config)
    short = dataclasses.replace(
        tuning.shorten(config),
        data=_held_out(config.data, tuning.num_validation),
        log_evaluations=0,
        alignment_examples=0,
    )
    return at_rate(short, rate(recipe, config, int(step)))


def _check(recipe: Recipe, config: TrainConfig) -> None:
    if not isinstance(config.data, ImageData | TextData | ArrayData):
        raise InputError(
            f"recipe '{recipe.title}' tunes on a validation split, which is cut from images, text"
            f" or arrays; got {type(config.data).__name__}"
        )
    if config.learning_rate is None:
        raise InputError(
            f"recipe '{recipe.title}' tunes learning rates, and an optimizer is a transformation of"
            " Optax, which has none to set; give an Optimizer, or no `tuning`"
        )


def _held_out(data: Any, number: int) -> Any:
    """The data with the last training examples to test on."""
    if isinstance(data, ArrayData):
        return data.with_validation(number)
    return dataclasses.replace(data, num_validation=number, num_test=None)


def grid(recipe: Recipe, only: Collection[str] | None = None) -> Recipe:
    """Every run that the search may come to, or those of these labels: at one seed, short.

    Raises:
        InputError: as `labels`.
    """
    known = labels(recipe)
    return dataclasses.replace(
        recipe,
        variants={one: trial(recipe, one) for one in known if only is None or one in only},
        seeds=(_required(recipe).seed,),
        expected=(),
        orders=(),
        tuning=None,
    )


def rate(recipe: Recipe, config: TrainConfig, step: int) -> float:
    """The learning rate of a step, to three digits: it is shown, and compared between runs."""
    return float(f"{config.optimizer.learning_rate * _required(recipe).factor ** step:.3g}")


def at_rate(config: TrainConfig, learning_rate: float) -> TrainConfig:
    """The configuration at another rate."""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=learning_rate)
    return dataclasses.replace(config, optimizer=optimizer)


def _required(recipe: Recipe) -> Tuning:
    if recipe.tuning is None:
        raise InputError(f"recipe '{recipe.title}' is not tuned; give it a `tuning`")
    return recipe.tuning


def errors(recipe: Recipe, held: Sequence[RunRecord]) -> dict[str, dict[int, float]]:
    """Validation error, %, or loss, by variant and step; infinite where it diverged."""
    found: dict[str, dict[int, float]] = {variant: {} for variant in recipe.variants}
    for record in held:
        variant, _, step = record.variant.rpartition("@")
        error = score(recipe.variants[variant], record) if record.curve else math.inf
        found[variant][int(step)] = error
    return found


def score(config: TrainConfig, record: RunRecord) -> float:
    """What a trial is judged by: its error, %, or the loss of text or where there are no labels.

    Where there is a branch whose rate decays, it is that one's.
    """
    final = record.final
    if isinstance(config.data, TextData) or final.test_accuracy is None:
        return final.metrics.get("decayed_test_loss", final.test_loss)
    return series.test_error(final)


def best_step(found: dict[int, float]) -> int:
    """The step with the lowest error; of equals, the lowest rate."""
    return min(found, key=lambda step: (found[step], step))


def next_step(found: dict[int, float]) -> int | None:
    """The rate to try next; None once the neighbours of the best and of the first are known.

    So the best rate is inside of what was tried, unless `MOST_STEPS` away from the first, and one
    lucky trial above the first does not hide what lies below.

    >>> next_step({}), next_step({0: 5.0}), next_step({0: 5.0, 1: 4.0}), next_step({0: 5.0, 1: 6.0})
    (0, 1, -1, -1)
    >>> next_step({-1: 6.0, 0: 5.0, 1: 4.0}), next_step({-1: 6.0, 0: 5.0, 1: 6.0})
    (2, None)
    """
    return next(iter(wanted(found)), None)


def wanted(found: dict[int, float]) -> list[int]:
    """The rates that are sure to be tried yet, in order; others may follow from what they give.

    >>> wanted({}), wanted({0: 5.0, 1: 4.0}), wanted({-1: 6.0, 0: 5.0, 1: 6.0})
    ([0, 1, -1], [-1, 2], [])
    """
    best = best_step(found) if found else 0
    steps = dict.fromkeys([0, 1, -1, best + 1, best - 1])
    return [step for step in steps if step not in found and abs(step) <= MOST_STEPS]


def search(
    recipe: Recipe, held: Sequence[RunRecord], make: Callable[[str, TrainConfig], RunRecord]
) -> list[RunRecord]:
    """Makes the runs that are missing, and returns all that the search came to.

    Args:
        recipe: tuned.
        held: those on record.
        make: trains and records the run of a label.
    """
    known = list(held)
    for variant in recipe.variants:
        while (step := next_step(errors(recipe, known)[variant])) is not None:
            label = f"{variant}@{step:+d}"
            known.append(make(label, trial(recipe, label)))
    return known


def settled(recipe: Recipe, held: Sequence[RunRecord]) -> Recipe:
    """The recipe at the best rates; where the search has not come to its end, at its own."""
    variants = {}
    for variant, found in errors(recipe, held).items():
        config = recipe.variants[variant]
        step = best_step(found) if next_step(found) is None else 0
        variants[variant] = at_rate(config, rate(recipe, config, step))
    return dataclasses.replace(recipe, variants=variants, tuning=None)


def matching(
    recipe: Recipe, held: Sequence[RunRecord], *, remedy: str = plan.REMEDY
) -> list[RunRecord]:
    """The search's runs among these records.

    Raises:
        InputError: as `labels`, or one was made with another configuration; the remedy is told.
    """
    found = {*labels(recipe)} & {record.variant for record in held}
    return plan.matching(grid(recipe, found), held, remedy=remedy) if found else []


def read(recipe: Recipe, folder: pathlib.Path) -> list[RunRecord]:
    """The search's runs on record; raises as `matching` does."""
    return matching(recipe, records.read_runs(folder / FILE))
