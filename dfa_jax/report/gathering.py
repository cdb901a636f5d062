"""From a sweep's folder to the records that are kept, and back into another folder.

A folder is lost with its machine; records are kept, in git for instance. So a sweep that is
gathered now and then loses no more than the jobs that have not ended, and the runs that diverged,
which have no record.
"""

import contextlib
import pathlib
from collections.abc import Sequence

from dfa_jax.report import plan, sweep, tuning
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.sweep import Job, Survey
from dfa_jax.train import records
from dfa_jax.train.directory import RunDirectory
from dfa_jax.train.records import RunRecord


def adopt(recipe: Recipe, folder: pathlib.Path, results: pathlib.Path) -> list[str]:
    """Takes over into a sweep's folder the jobs that are on record and not done there.

    Args:
        recipe: as `sweep.work` has it.
        folder: the sweep's.
        results: where `gather` wrote the records, from this folder or another one.

    Returns:
        The jobs that were adopted.

    Raises:
        InputError: a trial or a run on record was made with another configuration, or the folder
            serves another grid.
    """
    sweep.open_folder(recipe, folder)
    adopted: list[str] = []
    with sweep.lock(folder, "adoption"):  # or one would train what another is about to adopt
        # Trials tell which ones are next, and in the end the rates of the runs.
        while found := _adopt_open(recipe, folder, results):
            adopted += found
    return adopted


def _adopt_open(recipe: Recipe, folder: pathlib.Path, results: pathlib.Path) -> list[str]:
    """Finishes the open jobs that are on record."""
    seen = sweep.survey(recipe, folder)
    known = _on_record(recipe, seen, results)
    return [
        job.name
        for job in seen.open
        if (record := known.get((job.variant, job.config.seed))) and _finish(folder, job, record)
    ]


def _on_record(
    recipe: Recipe, seen: Survey, results: pathlib.Path
) -> dict[tuple[str, int], RunRecord]:
    """Trials, and runs of the variants whose rate is known, by label and seed."""
    remedy = f"remove them from {results}, or choose another --results-dir"
    found: list[RunRecord] = []
    if recipe.tuning:
        held = records.read_runs(results / tuning.FILE)
        found += tuning.matching(recipe, held, remedy=remedy)
        recipe = tuning.settled(recipe, seen.trials)
    held = [one for one in records.read_runs(results / plan.RECORDS) if one.variant in seen.settled]
    found += plan.matching(recipe, held, remedy=remedy)
    return {(record.variant, record.seed): record for record in found}


def _finish(folder: pathlib.Path, job: Job, record: RunRecord) -> bool:
    """Writes the record into the job's directory, unless somebody works on it or has done it."""
    import filelock  # of an extra

    path, lock = folder / job.name, sweep.lock(folder, job.name)
    with contextlib.suppress(filelock.Timeout), lock.acquire(blocking=False):
        if RunDirectory(path).record() is None:
            opened = RunDirectory.open(path, job.config, resume=True, overwrite=False)
            with contextlib.closing(opened) as directory:
                directory.finish(record)
            return True
    return False


def gather(recipe: Recipe, folder: pathlib.Path, results: pathlib.Path) -> list[str]:
    """Writes the jobs that are done as the recipe's records, in the recipe's order.

    What is on record already is adopted first, and nothing is dropped: a record that is not this
    sweep's, of another seed for instance, stays, behind the others. A run that diverged has no
    result, and is left out.

    Returns:
        The runs that diverged.

    Raises:
        InputError: as `adopt`.
    """
    adopt(recipe, folder, results)
    with sweep.lock(folder, "gathering"):  # of two workers that end at once
        seen = sweep.survey(recipe, folder)
        results.mkdir(parents=True, exist_ok=True)
        _keep(results / tuning.FILE, seen.trials)
        _keep(results / plan.RECORDS, [record for record in seen.runs.values() if record.curve])
    return [job.name for job, record in seen.runs.items() if not record.curve]


def _keep(path: pathlib.Path, found: Sequence[RunRecord]) -> None:
    """Writes these records, and behind them the others of the file; no file for none."""
    if not found and not path.exists():
        return
    own = {(record.variant, record.seed) for record in found}
    with records.edit(path) as file:
        held = records.read_runs(path)
        file.replace([*found, *(one for one in held if (one.variant, one.seed) not in own)])
