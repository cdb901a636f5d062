"""A sweep that is gathered and taken up in another folder: no job is lost or done twice.

Oracle: `report.run`, which knows of no folder, and the bytes of what was gathered before. Nothing is
trained: errors are a function of the rate, and too high a rate diverges.
"""

import contextlib
import dataclasses
import math
import shutil
import threading

import pytest

from dfa_jax.data import ImageData
from dfa_jax.errors import DivergedError, InputError
from dfa_jax.report import catalogue, gathering, progress, run, sweep, tuning
from dfa_jax.report.plan import RECORDS
from dfa_jax.train import loop
from dfa_jax.train import records as files
from dfa_jax.train.config import to_dict
from tests.report import made_up, sweepers
from tests.test_bad_input import script

RECIPE = sweepers.recipe()
BEST, TOO_HIGH = 4e-3, 1e-2  # next to the first rate of the trials, and two above


def made(config):
    """What stands for a run; its error is lowest at the best rate."""
    rate = config.optimizer.learning_rate
    if rate > TOO_HIGH:
        raise DivergedError("the loss is no longer finite")
    error = 5.0 + 10 * abs(math.log(rate / BEST)) + config.seed
    found = made_up.record(RECIPE, "digits/backprop", config.seed, (20.0, error))
    return made_up.Result(dataclasses.replace(found, config=to_dict(config)))


@pytest.fixture(autouse=True)
def training(monkeypatch):
    """What stands in for it, alone and in a sweep."""

    monkeypatch.setattr(sweep, "fit_together", made_up.together(made))
    monkeypatch.setattr(loop, "fit", lambda config, **options: made(config))


@pytest.fixture
def alone(tmp_path):
    """The records of `report.run`."""
    run.run(RECIPE, tmp_path / "alone" / RECORDS, say=str)
    return tmp_path / "alone"


@pytest.fixture
def kept(tmp_path):
    """The records of a sweep that has ended; its folder is gone."""
    sweep.work(RECIPE, tmp_path / "gone", say=str)
    gathering.gather(RECIPE, tmp_path / "gone", tmp_path / "kept")
    shutil.rmtree(tmp_path / "gone")
    return tmp_path / "kept"


def contents(results):
    """The bytes of the records, by file."""
    return {path.name: path.read_bytes() for path in results.glob("*.jsonl")}


def timeless(path):
    """Records without the seconds that a trial took to diverge."""
    return [dataclasses.replace(record, wall_seconds=0.0) for record in files.read_runs(path)]


def rewritten(path, change):
    """Puts other records into a file."""
    with files.edit(path) as file:
        file.replace([change(record) for record in files.read_runs(path)])


def work(folder, stop_after=None):
    """The jobs that a worker does before it is stopped."""
    said = []

    def say(line):
        said.append(line.split(":")[0])
        if len(said) == stop_after:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sweep.work(RECIPE, folder, say=say)
    return said


@pytest.mark.parametrize("lost_after", [1, 4, 8])
def test_a_sweep_goes_on_in_another_folder(tmp_path, alone, lost_after):
    """Exact equivalence: gathered at any time, lost, and taken up; the records are those of one
    process. One of six trials and four runs diverges. The second folder does what the first had not.
    """
    results = tmp_path / "results"
    first = work(tmp_path / "first", lost_after)
    gathering.gather(RECIPE, tmp_path / "first", results)
    shutil.rmtree(tmp_path / "first")
    assert sorted(gathering.adopt(RECIPE, tmp_path / "second", results)) == sorted(first)
    second = work(tmp_path / "second")
    assert len(first + second) == len({*first, *second}) == 10
    assert gathering.gather(RECIPE, tmp_path / "second", results) == []
    assert timeless(results / RECORDS) == timeless(alone / RECORDS)
    found, expected = (timeless(folder / tuning.FILE) for folder in (results, alone))
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert sum(not trial.curve for trial in found) == 2


def test_gathered_from_an_emptier_folder_nothing_changes(tmp_path, kept):
    """Invariant: bytes. The folder has everything then, and the status shows it."""
    before = contents(kept)
    assert gathering.gather(RECIPE, tmp_path / "folder", kept) == []
    assert contents(kept) == before
    assert not sweep.survey(RECIPE, tmp_path / "folder").open
    assert gathering.adopt(RECIPE, tmp_path / "folder", kept) == []
    for line in progress.status(RECIPE, tmp_path / "folder").splitlines()[1:3]:
        assert line.split()[1:6] == ["0.005", "3", "2", "of", "2"]


def test_many_adopt_at_once(tmp_path, kept):
    """Invariant: each job is adopted once, by anyone; all return when nothing is left to be adopted."""
    found = []

    def adopt():
        adopted = gathering.adopt(RECIPE, tmp_path / "folder", kept)
        found.append((adopted, sweep.survey(RECIPE, tmp_path / "folder").open))

    threads = [threading.Thread(target=adopt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    adopted = [name for names, _ in found for name in names]
    assert len(adopted) == len(set(adopted)) == 10
    assert [left for _, left in found] == [[]] * 4


def test_a_job_in_other_hands_is_not_adopted(tmp_path, kept):
    """Invariant: nothing is written into the directory where another works; the record is kept."""
    folder, name = tmp_path / "folder", "runs/digits/backprop/seed_0"
    sweep.open_folder(RECIPE, folder)
    before = {tuple(sorted(lines.splitlines())) for lines in contents(kept).values()}
    with sweep.lock(folder, name):
        adopted = gathering.adopt(RECIPE, folder, kept)
        gathering.gather(RECIPE, folder, kept)
    assert len(adopted) == 9
    assert not (folder / name).exists()
    assert {tuple(sorted(lines.splitlines())) for lines in contents(kept).values()} == before


def test_what_is_done_here_stays(tmp_path, kept):
    """Invariant: a job that the folder has done is not replaced by a record from elsewhere."""
    before = contents(kept)
    gathering.adopt(RECIPE, tmp_path / "folder", kept)
    rewritten(kept / RECORDS, lambda record: dataclasses.replace(record, num_params=7))
    assert gathering.adopt(RECIPE, tmp_path / "folder", kept) == []
    gathering.gather(RECIPE, tmp_path / "folder", kept)
    assert contents(kept) == before


def test_records_of_another_configuration_are_refused(tmp_path, kept):
    """Documented contract: what differs, and what to do; neither folder nor records change."""
    before = contents(kept)
    data = ImageData(num_train=32, num_test=24)
    other = dataclasses.replace(RECIPE.variants["digits/backprop"], data=data)
    recipe = dataclasses.replace(RECIPE, variants=RECIPE.variants | {"digits/backprop": other})
    for attempt in (gathering.adopt, gathering.gather):
        with pytest.raises(InputError, match=r"num_train: 64 -> 32.*remove them from .*kept, or"):
            attempt(recipe, tmp_path / "folder", kept)
    assert contents(kept) == before
    assert not sweep.survey(recipe, tmp_path / "folder").done


def test_runs_at_another_rate_are_refused(tmp_path, kept):
    """Documented contract: a run is at the rate that the trials say, as in `reproduce.py`."""

    def at_another_rate(record):
        optimizer = record.config["optimizer"] | {"learning_rate": 0.123}
        return dataclasses.replace(record, config=record.config | {"optimizer": optimizer})

    rewritten(kept / RECORDS, at_another_rate)
    with pytest.raises(InputError, match=r"4 recorded runs.*learning_rate: 0\.123 -> 0\.005"):
        gathering.adopt(RECIPE, tmp_path / "folder", kept)


def test_no_record_is_dropped(tmp_path, kept):
    """Invariant: runs whose trials are lost, other seeds and other variants stay on record."""
    (kept / tuning.FILE).unlink()
    first = files.read_runs(kept / RECORDS)[0]
    for change in ({"seed": 17}, {"variant": "digits/of_old"}):
        files.append(kept / RECORDS, dataclasses.replace(first, **change))
    before = contents(kept)
    assert gathering.adopt(RECIPE, tmp_path / "folder", kept) == []
    assert gathering.gather(RECIPE, tmp_path / "folder", kept) == []
    assert contents(kept) == before


def test_the_script_gathers_and_adopts(tmp_path, monkeypatch, capsys):
    """Documented contract: `--gather` runs nothing; a second folder has what is on record."""
    monkeypatch.setattr(catalogue, "load", lambda name: dataclasses.replace(RECIPE, name=name))
    results = tmp_path / "results" / "sweep"
    options = ["sweep", "--results-dir", str(results.parent), "--sweep-dir"]
    script("sweep")([*options, str(tmp_path / "first"), "--gather"])
    assert contents(results) == {}
    work(tmp_path / "first", 7)
    script("sweep")([*options, str(tmp_path / "first"), "--gather"])
    assert len(b"".join(contents(results).values()).splitlines()) == 7
    capsys.readouterr()
    script("sweep")([*options, str(tmp_path / "second")])
    adopted, *done, gathered = capsys.readouterr().out.splitlines()
    assert adopted == f"7 jobs are on record in {results}"
    assert len(done) == 3
    assert gathered == f"records in {results}; diverged: none"
    assert len(b"".join(contents(results).values()).splitlines()) == 10
