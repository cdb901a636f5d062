"""A sweep: a recipe's runs as independent jobs, shared out among any number of processes.

They meet in one folder, on one machine or on several. Every job has a folder and a lock of its own;
the system lets go of a lock when its process dies, however it dies, and whoever takes the job up
next goes on from its last checkpoint. Trials of learning rates are jobs too: which one is next is a
function of those that are done, so all workers come to the same answer. A folder is lost with its
machine; what it has done is kept, and taken up elsewhere, by `report.gathering`.

Processes that are one run (`train.hosts`) are one worker, whose first process takes jobs for all.

| path | holds |
| --- | --- |
| `grid.json` | what the sweep runs; a folder serves one grid alone |
| `trials/VARIANT@STEP/` | a trial of a learning rate, as `train.directory` keeps a run |
| `runs/VARIANT/seed_N/` | a run, likewise |
| `locks/` | one file a job |
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from dfa_jax.errors import DivergedError, InputError, require
from dfa_jax.report import plan, tuning
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run import diverged
from dfa_jax.train import hosts
from dfa_jax.train.config import TrainConfig, run_changes, to_dict
from dfa_jax.train.directory import RunDirectory, check_path
from dfa_jax.train.loop import differences, fit_together
from dfa_jax.train.records import RunRecord

if TYPE_CHECKING:
    import filelock

POLL_SECONDS = 2.0
_GRID = "grid.json"


class Job(NamedTuple):
    """One training run of a sweep.

    Attributes:
        name: where its folder is under the sweep's.
        variant: the label of its record.
        config: what it trains.
    """

    name: str
    variant: str
    config: TrainConfig

    def __hash__(self) -> int:
        return hash(self.name)  # a module of one's own may have fields that do not hash

    @property
    def is_trial(self) -> bool:
        """Whether it is a trial of a learning rate."""
        return self.name.startswith("trials/")


class Survey(NamedTuple):
    """What a sweep's folder holds, as far as it is known which jobs there will be.

    Attributes:
        done: the jobs that have ended, with their records.
        open: the jobs that can be run now, in the order in which they should be.
        settled: the variants whose learning rate is known.
    """

    done: dict[Job, RunRecord]
    open: list[Job]
    settled: list[str]

    @property
    def trials(self) -> list[RunRecord]:
        """The records of the trials that are done, in the grid's order."""
        return [record for job, record in self.done.items() if job.is_trial]

    @property
    def runs(self) -> dict[Job, RunRecord]:
        """The runs that are done, those that diverged among them, in the recipe's order."""
        return {job: record for job, record in self.done.items() if not job.is_trial}


def open_folder(recipe: Recipe, folder: pathlib.Path) -> dict[str, Any]:
    """Makes the folder, or joins the workers that are there.

    Returns:
        The grid that it serves.

    Raises:
        InputError: the folder serves another grid, or cannot be written to.
    """
    require("train", "a sweep", "filelock")
    check_path(folder)
    grid = json.loads(json.dumps(_grid(recipe)))
    try:
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        with lock(folder, _GRID).acquire(timeout=60):
            path = folder / _GRID
            if not path.exists():
                draft = path.with_suffix(".draft")
                draft.write_text(json.dumps(grid, indent=1) + "\n")
                os.replace(draft, path)
                return grid
            held = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{folder / _GRID} is damaged ({error}); choose another folder") from error
    except NotImplementedError as error:  # what filelock raises
        raise InputError(f"{folder} is on a file system without locks; choose another") from error
    except OSError as error:
        raise InputError(
            f"sweep folder {folder} cannot be used ({error.strerror}); choose a folder that can be"
            " written to"
        ) from error
    if found := _differences(held, recipe):
        raise InputError(
            f"{folder} holds a sweep of another grid ({found[0]}); choose another folder, or go"
            " back to its recipe"
        )
    return held


def _grid(recipe: Recipe) -> dict:
    """What makes two sweeps the same."""
    return {
        "recipe": recipe.name,
        "seeds": list(recipe.seeds),
        "tuning": to_dict(recipe.tuning),
        "variants": {label: to_dict(config) for label, config in recipe.variants.items()},
    }


def _differences(held: dict, recipe: Recipe) -> list[str]:
    """Where a stored grid differs; a setting that is younger than it had its default then."""
    old, new = ({**grid, "variants": list(grid["variants"])} for grid in (held, _grid(recipe)))
    found = [
        f"{name}: {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]
    ]
    if found:
        return found
    return [
        f"{label}.{change}"
        for label, config in recipe.variants.items()
        for change in run_changes(held["variants"][label], config)
    ]


def survey(recipe: Recipe, folder: pathlib.Path) -> Survey:
    """Reads what is done, and tells which jobs can be run."""
    done: dict[Job, RunRecord] = {}
    waiting: list[Job] = []
    settled = list(recipe.variants)
    if recipe.tuning:
        trials, waiting = _trials(recipe, folder)
        done |= trials
        unsettled = {job.variant.rpartition("@")[0] for job in waiting}
        settled = [variant for variant in recipe.variants if variant not in unsettled]
        recipe = tuning.settled(recipe, list(trials.values()))
    for one in plan.plan(recipe):
        if one.variant in settled:
            job = Job(one.name, one.variant, one.config)
            if record := _record(folder, job, recipe.name):
                done[job] = record
            else:
                waiting.append(job)
    return Survey(done, waiting, settled)


def _trials(recipe: Recipe, folder: pathlib.Path) -> tuple[dict[Job, RunRecord], list[Job]]:
    """The trials that are done, and the next one of each variant whose rate is not yet known."""
    done, waiting = {}, []
    for label in tuning.labels(recipe):
        if record := RunDirectory(folder / _trial_name(label)).record():
            job = _trial(recipe, label)
            done[job] = _named(record, job, recipe.name)
    for variant, found in tuning.errors(recipe, list(done.values())).items():
        if (step := tuning.next_step(found)) is not None:
            waiting.append(_trial(recipe, f"{variant}@{step:+d}"))
    return done, waiting


def _trial_name(label: str) -> str:
    return f"trials/{label}"


def _trial(recipe: Recipe, label: str) -> Job:
    assert recipe.tuning
    config = dataclasses.replace(tuning.trial(recipe, label), seed=recipe.tuning.seed)
    return Job(_trial_name(label), label, config)


def _record(folder: pathlib.Path, job: Job, recipe: str) -> RunRecord | None:
    """What the job's folder says that it found, under the recipe's names."""
    found = RunDirectory(folder / job.name).record()
    return found and _named(found, job, recipe)


def _named(record: RunRecord, job: Job, recipe: str) -> RunRecord:
    return dataclasses.replace(
        record, recipe=recipe, variant=job.variant, config=to_dict(job.config)
    )


def work(
    recipe: Recipe,
    folder: pathlib.Path,
    *,
    together: int = 1,
    data_dir: pathlib.Path | None = None,
    say: Callable[[str], None] = print,
) -> Survey:
    """Takes one open job after another, until none is left anywhere.

    Args:
        recipe: what to run, as `catalogue.load` gives it.
        folder: the sweep's, shared with the other workers.
        together: train up to so many jobs at once that differ in seed or rate alone.
        data_dir: where data sets are, in place of the configurations' own.
        say: receives one line a job.

    Returns:
        What the folder holds in the end.

    Raises:
        InputError: the folder serves another grid, or a job cannot be run here.
    """
    if found := _differences(hosts.from_first(lambda: open_folder(recipe, folder)), recipe):
        raise InputError(
            f"process {jax.process_index()} sweeps another grid than process 0 ({found[0]}); give"
            " all the same recipe"
        )
    left = True
    while left:
        with _claimed(recipe, folder, together) as (jobs, left):
            for line in _run(recipe, jobs, folder, data_dir) if jobs else ():
                say(line)
        # Kept, compiled programs of some sixty jobs use up the memory maps of a process.
        jax.clear_caches()
        if left and not jobs:
            time.sleep(POLL_SECONDS)  # what is open is in other hands
    return survey(recipe, folder)


@contextlib.contextmanager
def _claimed(
    recipe: Recipe, folder: pathlib.Path, together: int
) -> Iterator[tuple[list[Job], bool]]:
    """Jobs that are ours inside the block, and whether any was open.

    The first process takes them; the others may not see the newest trials yet, and are told rates.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> tuple[list[tuple[str, float | None]], bool]:
            waiting = survey(recipe, folder).open
            jobs = _take(waiting, folder, together, stack)
            return [(job.name, job.config.learning_rate) for job in jobs], bool(waiting)

        told, left = hosts.from_first(claim)
        yield [_job(recipe, *one) for one in told], left


def _take(
    waiting: Sequence[Job], folder: pathlib.Path, together: int, stack: contextlib.ExitStack
) -> list[Job]:
    """The first job that nobody works on, with others like it, until the stack is closed."""
    import filelock  # of an extra

    jobs: list[Job] = []
    for job in waiting:
        if len(jobs) == together:
            break
        if jobs and not _alike(jobs[0], job, folder):
            continue
        own = lock(folder, job.name)
        with contextlib.suppress(filelock.Timeout):
            own.acquire(blocking=False)
            stack.callback(own.release)
            # It may have been done between the survey and the lock.
            if RunDirectory(folder / job.name).record() is None:
                jobs.append(job)
    return jobs


def _job(recipe: Recipe, name: str, rate: float | None) -> Job:
    """The job of this name, at the rate that its trials gave it, if it has one."""
    if name.startswith("trials/"):
        return _trial(recipe, name.removeprefix("trials/"))
    (one,) = [one for one in plan.plan(recipe) if one.name == name]
    config = one.config if rate is None else tuning.at_rate(one.config, rate)
    return Job(name, one.variant, config)


def _alike(first: Job, second: Job, folder: pathlib.Path) -> bool:
    """Whether two jobs can take their steps together; they must stand at the same one."""
    steps = {RunDirectory(folder / job.name).latest_step() for job in (first, second)}
    return len(steps) == 1 and not differences(first.config, second.config)


def lock(folder: pathlib.Path, name: str) -> "filelock.FileLock":
    """A job's lock; the system lets go of it when the process that holds it ends."""
    import filelock  # of an extra

    return filelock.FileLock(folder / "locks" / (name.replace("/", "__") + ".lock"))


def _run(
    recipe: Recipe, jobs: Sequence[Job], folder: pathlib.Path, data_dir: pathlib.Path | None
) -> Iterator[str]:
    """Trains the jobs to their end; a line for each."""
    started = time.perf_counter()
    try:
        results = fit_together(
            [plan.located(job.config, data_dir) for job in jobs],
            run_dirs=[folder / job.name for job in jobs],
            resume=True,
            progress=False,
        )
    except DivergedError as error:
        if len(jobs) > 1:  # who it was is found one by one
            for job in jobs:
                yield from _run(recipe, [job], folder, data_dir)
            return
        (job,) = jobs
        seconds = time.perf_counter() - started
        record = diverged(recipe, job.variant, job.config, seconds)
        hosts.from_first(lambda: RunDirectory(folder / job.name).finish(record))
        yield f"{job.name}: {error}"
        return
    for job, result in zip(jobs, results, strict=True):
        loss, seconds = result.record.final.test_loss, result.record.wall_seconds
        yield f"{job.name}: test loss {loss:.4f} in {seconds:.0f} s"
