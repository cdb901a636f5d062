"""Runs what a recipe's records lack, one appended record a run.

A run has a directory, `unfinished/` beside the records, until it is on record: stopped, it goes on
from its last checkpoint.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable, Sequence

import jax

from dfa_jax.errors import DivergedError, InputError
from dfa_jax.report import bar as bars
from dfa_jax.report import plan, tuning
from dfa_jax.report.bar import Bar
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.series import test_error
from dfa_jax.report.text import duration
from dfa_jax.train import loop, records
from dfa_jax.train.config import TrainConfig, rule_name, to_dict
from dfa_jax.train.directory import RunDirectory
from dfa_jax.train.records import RunRecord

UNFINISHED = "unfinished"
"""The folder of runs that are not on record yet, beside the records."""

SAVE_SECONDS = 30.0  # many runs are shorter


def run(
    recipe: Recipe,
    path: pathlib.Path,
    *,
    data_dir: pathlib.Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = bars.say,
    progress: bool = False,
) -> list[RunRecord]:
    """Makes the runs that `path` does not hold yet, and goes on with one that was stopped.

    Args:
        recipe: what to run, as `catalogue.load` gives it.
        path: the records, JSON lines.
        data_dir: where data sets are, in place of the configurations' own.
        overwrite: replace runs whose configuration has changed, rather than refuse.
        say: receives one line a run.
        progress: show a bar over the steps of all that is missing.

    Returns:
        The recipe's records, old and new.

    Raises:
        InputError: a recorded or unfinished run has another configuration and `overwrite` is not
            set; another process makes it.
    """
    bar = Bar(recipe, path, data_dir, shown=progress)
    with bar.steps:
        return _run(recipe, path, data_dir, overwrite, say, bar)


def _run(
    recipe: Recipe,
    path: pathlib.Path,
    data_dir: pathlib.Path | None,
    overwrite: bool,
    say: Callable[[str], None],
    bar: Bar,
) -> list[RunRecord]:
    if recipe.tuning:
        recipe = tuned(recipe, path.with_name(tuning.FILE), data_dir, overwrite, say, bar)
    if overwrite:
        drop_outdated(recipe, path)
    held = plan.matching(recipe, records.read_runs(path))
    done = {(record.variant, record.seed) for record in held}
    todo = [one for one in plan.plan(recipe) if (one.variant, one.seed) not in done]
    total = len(plan.plan(recipe))
    for place, one in enumerate(todo):
        folder = path.parent / UNFINISHED / one.name
        record = train(recipe, one.variant, one.config, folder, data_dir, overwrite, bar)
        keep(path, record, folder)
        held.append(record)
        left = duration(seconds_left(todo[place + 1 :], held))
        say(f"[{total - len(todo) + place + 1}/{total}] {describe(record)}; {left} left")
    return plan.matching(recipe, held)


def train(
    recipe: Recipe,
    variant: str,
    config: TrainConfig,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    overwrite: bool,
    bar: Bar,
) -> RunRecord:
    """One run of a recipe, or the rest of the one in its folder."""
    config_here, directory = plan.located(config, data_dir), RunDirectory(folder)
    bar.begin(f"{variant}, seed {config.seed}", config)
    again = not directory.latest_step() or (overwrite and _is_other(directory, config_here))
    result = loop.fit(
        config_here,
        run_dir=folder,
        resume=not again,
        overwrite=again,
        save_seconds=SAVE_SECONDS,
        progress=bar.steps,
    )
    # The recipe's configuration: where data lay is no part of a result.
    config_record = to_dict(config)
    return dataclasses.replace(
        result.record, recipe=recipe.name, variant=variant, config=config_record
    )


def _is_other(directory: RunDirectory, config: TrainConfig) -> bool:
    """Whether the run that is there has another configuration, or a damaged one."""
    try:
        return bool(directory.changes(config))
    except InputError:
        return True


def keep(path: pathlib.Path, record: RunRecord, folder: pathlib.Path) -> None:
    """Puts a run on record, which then needs its folder no more."""
    records.append(path, record)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # others are unfinished
        os.removedirs(folder.parent)


def tuned(
    recipe: Recipe,
    path: pathlib.Path,
    data_dir: pathlib.Path | None,
    overwrite: bool,
    say: Callable[[str], None],
    bar: Bar,
) -> Recipe:
    """The recipe at the best learning rates, after the trials that `path` does not hold yet."""
    if overwrite:
        drop_outdated(tuning.grid(recipe), path)

    def trial(label: str, config: TrainConfig) -> RunRecord:
        started = time.perf_counter()
        folder = path.parent / UNFINISHED / "trials" / label
        try:
            record = train(recipe, label, config, folder, data_dir, overwrite, bar)
            score = tuning.score(config, record)
            shown = f"loss {score:.4f}" if is_text(record) else f"error {score:.2f} %"
            found = f"validation {shown}"
        except DivergedError:
            record = diverged(recipe, label, config, time.perf_counter() - started)
            found = "diverged"
        keep(path, record, folder)
        jax.clear_caches()  # see `sweep.work`; no later trial has this program
        say(f"{label}, rate {config.optimizer.learning_rate:g}: {found}")
        return record

    return tuning.settled(recipe, tuning.search(recipe, tuning.read(recipe, path.parent), trial))


def diverged(recipe: Recipe, variant: str, config: TrainConfig, seconds: float) -> RunRecord:
    """The record of a trial whose loss is no longer finite: it has no curve."""
    return RunRecord(
        recipe=recipe.name,
        variant=variant,
        rule=rule_name(config.rule),
        seed=config.seed,
        num_params=0,
        num_steps=0,
        wall_seconds=seconds,
        config=to_dict(config),
        environment=records.environment(),
        curve=(),
    )


def describe(record: RunRecord) -> str:
    """One run in a few words."""
    loss, error = record.final.test_loss, test_error(record.final)
    found = f"test loss {loss:.4f}" if is_text(record) else f"test error {error:.2f} %"
    return f"{record.variant}, seed {record.seed}: {found} in {duration(record.wall_seconds)}"


def is_text(record: RunRecord) -> bool:
    """Whether a language model was trained, of which the loss says more than the error."""
    return "context" in record.config["data"]


def seconds_left(todo: Sequence[plan.Planned], held: Sequence[RunRecord]) -> float:
    """Duration of the rest, from each variant's last run, which compiled least; else their mean."""
    last = {record.variant: record.wall_seconds for record in held}
    anything = statistics.fmean(last.values())
    return sum(last.get(one.variant, anything) for one in todo)


def drop_outdated(recipe: Recipe, path: pathlib.Path) -> None:
    """Rewrites the records without those of another configuration."""
    held = records.read_runs(path)
    outdated = {id(record) for record in plan.outdated(recipe, held)}
    if outdated:
        records.rewrite(path, [record for record in held if id(record) not in outdated])
