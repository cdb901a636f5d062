"""A made-up recipe and its records, so that these tests train nothing."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dfa_jax.models import MLP
from dfa_jax.report.recipe import Expected, Recipe
from dfa_jax.rules import RULES
from dfa_jax.train.config import TrainConfig, rule_name, to_dict
from dfa_jax.train.directory import RunDirectory
from dfa_jax.train.records import Evaluation, RunRecord

# Two groups of three rules over three seeds, with one published number.
RECIPE = Recipe(
    title="A <made-up> recipe",
    paper="Nobody & Co. (2020)",
    minutes=1,
    variants={
        f"{activation}/{rule}": TrainConfig(model=MLP(activation=activation), rule=RULES[rule]())
        for activation in ("tanh", "relu")
        for rule in ("backprop", "direct_feedback_alignment", "shallow")
    },
    seeds=(0, 1, 2),
    expected=(Expected("tanh/backprop", "test error", 2.0, 0.1, "table 1", "memory, unverified"),),
    name="made_up",
    header="A <made-up> recipe.\n\nPaper: x\nCommand: y\nTime: z\nExpect: w\n    more\n\nBody.",
)
FINAL_ERROR = {"backprop": 2.0, "direct_feedback_alignment": 3.0, "shallow": 8.0}


def record(
    recipe: Recipe,
    variant: str,
    seed: int,
    errors: Sequence[float],
    alignment: Mapping[str, float] | None = None,
) -> RunRecord:
    """A run with these test errors, %, after epochs 1, 2, ...; 2 s and one more for each seed."""
    config = recipe.variants[variant]
    return RunRecord(
        recipe=recipe.name,
        variant=variant,
        rule=rule_name(config.rule),
        seed=seed,
        num_params=1234,
        num_steps=len(errors),
        wall_seconds=2.0 + seed,
        config={**to_dict(config), "seed": seed},
        environment={"commit": "0123456789ab", "jax": "0.0"},
        curve=tuple(
            evaluation(step, error, alignment or {}) for step, error in enumerate(errors, start=1)
        ),
    )


def evaluation(step: int, error: float, alignment: Mapping[str, float]) -> Evaluation:
    """One step is one epoch and one second; the training error is half of the test error."""
    sites = {f"gradient_alignment/{site}": value for site, value in alignment.items()}
    return Evaluation(
        step=step,
        epoch=float(step),
        train_loss=0.5,
        train_accuracy=1 - error / 200,
        test_loss=0.7,
        test_accuracy=1 - error / 100,
        metrics=sites | {"wall_seconds": float(step)},
    )


class Result(NamedTuple):
    """As much of a run's result as a sweep looks at."""

    record: RunRecord


def together(made: Callable[[TrainConfig], Result]) -> Callable[..., list[Result]]:
    """What stands in for a sweep's `fit_together`: a run has what `made` says of its configuration."""

    def fit_together(configs: Sequence[TrainConfig], *, run_dirs: Any, **options: Any):
        del options
        (config,), (folder,) = configs, run_dirs
        opened = RunDirectory.open(folder, config, resume=True, overwrite=False)
        with contextlib.closing(opened) as directory:
            result = made(config)
            directory.finish(result.record)
        return [result]

    return fit_together


def records() -> list[RunRecord]:
    """All runs of `RECIPE`; the last error is base + 0.1 place + 0.07 seed (place + 1), %."""
    found = []
    for seed in RECIPE.seeds:
        for place, variant in enumerate(RECIPE.variants):
            rule = variant.split("/")[1]
            final = FINAL_ERROR[rule] + 0.1 * place + 0.07 * seed * (place + 1)
            aligned = {"layer_0": 0.2 + 0.01 * seed, "layer_1": 0.5} if "direct" in rule else {}
            found.append(record(RECIPE, variant, seed, (20.0, final), aligned))
    return found
