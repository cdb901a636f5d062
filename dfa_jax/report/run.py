"""Runs what a recipe's records lack, one appended record a run.

A run has a directory, `unfinished/` beside the records, until it is on record: stopped, it goes on
from its last checkpoint.
"""

import contextlib
import dataclasses
import os
import pathlib
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
from dfa_jax.train import interrupt, loop, records
from dfa_jax.train.config import TrainConfig, rule_name, to_dict
from dfa_jax.train.directory import OpenElsewhereError, RunDirectory
from dfa_jax.train.interrupt import Interrupted
from dfa_jax.train.records import RunRecord

UNFINISHED = "unfinished"
"""The folder of runs that are not on record yet, beside the records."""

SAVE_SECONDS = 30.0  # many runs are shorter
POLL_SECONDS = 2.0


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

    A run that another process makes is left to it, and taken up in the end if it is missing then.

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
            set.
        Interrupted: the process was asked to stop.
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
    todo, passed = plan.plan(recipe), 0
    while todo:
        one = todo.pop(0)
        # Read anew for each run: other processes may make runs of the same recipe.
        held = plan.matching(recipe, records.read_runs(path))
        if one not in plan.missing(recipe, held):
            continue
        folder = path.parent / UNFINISHED / one.name
        try:
            record = train(recipe, one.variant, one.config, folder, data_dir, overwrite, bar)
        except OpenElsewhereError as error:
            todo.append(one)
            passed += 1
            if passed >= len(todo):  # in a row: there is nothing else to do
                wait(f"{error}; this one waits" if passed == len(todo) else "", say)
            continue
        passed = 0
        keep(path, one.config, record, folder)
        say(progress(recipe, [*held, record]))
    return plan.matching(recipe, records.read_runs(path))


def progress(recipe: Recipe, held: Sequence[RunRecord]) -> str:
    """How many runs are on record, what the last one gave, and how long the others may take."""
    total, todo = len(plan.plan(recipe)), plan.missing(recipe, held)
    left = duration(seconds_left(todo, held))
    return f"[{total - len(todo)}/{total}] {describe(held[-1])}; {left} left"


def wait(why: str, say: Callable[[str], None]) -> None:
    """Lets other processes work; says why, if anything.

    Raises:
        Interrupted: the process was asked to stop.
    """
    if why:
        say(why)
    time.sleep(POLL_SECONDS)
    if interrupt.requested():
        raise Interrupted("stopped while it waited for another process")


def on_record(path: pathlib.Path, variant: str, config: TrainConfig) -> RunRecord | None:
    """The run of this label, configuration and seed in a file of records, if it is there."""
    held = (
        record
        for record in records.read_runs(path)
        if (record.variant, record.seed) == (variant, config.seed)
        and not plan.changes(config, record)
    )
    return next(held, None)


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
    directory.clear_unbegun()
    again = bool(overwrite and directory.latest_step() and _is_other(directory, config_here))
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


def keep(
    path: pathlib.Path, config: TrainConfig, record: RunRecord, folder: pathlib.Path
) -> RunRecord:
    """Puts a run on record, which then needs its folder no more; unless another process has by now.

    Returns:
        The one that is on record.
    """
    with records.edit(path) as file:
        if (held := on_record(path, record.variant, config)) is None:
            file.append(record)
    RunDirectory(folder).remove()
    with contextlib.suppress(OSError):  # others are unfinished
        os.removedirs(folder.parent)
    return held or record


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
        folder, why = path.parent / UNFINISHED / "trials" / label, ""
        while not (record := on_record(path, label, config)):
            started = time.perf_counter()
            try:
                record = train(recipe, label, config, folder, data_dir, overwrite, bar)
            except DivergedError:
                record = diverged(recipe, label, config, time.perf_counter() - started)
            except OpenElsewhereError as error:  # which rate is next depends on it
                wait("" if why else (why := f"{error}; this one waits"), say)
                continue
            record = keep(path, config, record, folder)
            jax.clear_caches()  # see `sweep.work`; no later trial has this program
            say(f"{label}, rate {config.learning_rate:g}: {judged(config, record)}")
            break
        return record

    return tuning.settled(recipe, tuning.search(recipe, tuning.read(recipe, path.parent), trial))


def judged(config: TrainConfig, trial: RunRecord) -> str:
    """What a trial is judged by, in words."""
    if not trial.curve:
        return "diverged"
    score = tuning.score(config, trial)
    return f"validation loss {score:.4f}" if by_loss(trial) else f"validation error {score:.2f} %"


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
    found = f"test loss {loss:.4f}" if by_loss(record) else f"test error {error:.2f} %"
    return f"{record.variant}, seed {record.seed}: {found} in {duration(record.wall_seconds)}"


def by_loss(record: RunRecord) -> bool:
    """Whether the loss says more than the error: of language models, and where there is none."""
    return "context" in record.config["data"] or record.final.test_accuracy is None


def seconds_left(todo: Sequence[plan.Planned], held: Sequence[RunRecord]) -> float:
    """Duration of the rest, from each variant's last run, which compiled least; else their mean."""
    last = {record.variant: record.wall_seconds for record in held}
    anything = statistics.fmean(last.values())
    return sum(last.get(one.variant, anything) for one in todo)


def drop_outdated(recipe: Recipe, path: pathlib.Path) -> None:
    """Rewrites the records without those of another configuration."""
    with records.edit(path) as file:
        held = records.read_runs(path)
        outdated = {id(record) for record in plan.outdated(recipe, held)}
        if outdated:
            file.replace(record for record in held if id(record) not in outdated)
