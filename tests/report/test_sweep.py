"""Many workers on one folder: nothing is lost, nothing is done twice, and the records are the same.

Oracle: one worker that is left alone, and `report.run`, which knows nothing of folders and locks.
"""

import dataclasses
import json
import os
import threading

import jax
import numpy as np
import pytest

from dfa_jax.data import ImageData
from dfa_jax.errors import InputError
from dfa_jax.report import gathering, run, sweep, tuning
from dfa_jax.train import compiled, loop
from dfa_jax.train import records as files
from tests.report import sweepers
from tests.train import small
from tests.train.test_resume import started

KILLS = int(os.environ.get("DFA_JAX_TEST_KILLS", "2"))
UNTUNED = sweepers.recipe(tuning=None)


def timeless(path):
    """The records of a file without what a machine and a moment put into them."""
    found = []
    for record in files.read_runs(path):
        curve = small.without_time(record.curve)
        found.append(
            (record.recipe, record.variant, record.seed, record.num_steps, record.config, curve)
        )
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The recipe as `report.run` makes it: a folder with records and trials."""
    folder = tmp_path_factory.mktemp("alone")
    run.run(sweepers.recipe(), folder / "records.jsonl", say=str)
    return folder


def workers(folder, kills):
    """Two workers in processes of their own, until the sweep is done, or the sweeps over which the kills
    were spread; what the workers of each said."""
    print(killings := started("tests.report.sweepers", folder, kills))
    assert len(killings.splitlines()) == kills
    return {
        one: [line.split(" ", 1) for line in (one / "said").read_text().splitlines()]
        for one in folder.iterdir()
    }


def check_same(folder, alone):
    """Gathered records and trials are those of the run without a sweep; trials in any order."""
    results = folder / "results"
    assert gathering.gather(sweepers.recipe(), folder, results) == []
    assert timeless(results / "records.jsonl") == timeless(alone / "records.jsonl")
    found, expected = (timeless(path / tuning.FILE) for path in (results, alone))
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.nightly  # those that are killed share them too
def test_two_workers_share_the_jobs(tmp_path, alone):
    """Invariant: every job is said once, by either worker; the records are those of one process."""
    ((folder, said),) = workers(tmp_path, kills=0).items()
    jobs = [line.split(":")[0] for _, line in said]
    assert len(jobs) == len(set(jobs))
    assert {worker for worker, _ in said} != {said[0][0]}
    check_same(folder, alone)


@pytest.mark.slow
def test_processes_that_are_one_worker(tmp_path, alone):
    """Oracle: one process, up to the order of float32 sums; the rates that trials gave, exactly. Every
    job is said once, by the first process."""
    started("tests.report.sweepers", tmp_path, "joined")
    said = [line.split(" ")[1] for line in (tmp_path / "said").read_text().splitlines()]
    assert len(said) == len(set(said))
    one, results = sweepers.one(), tmp_path / "results"
    assert gathering.gather(one, tmp_path, results) == []
    (label,) = one.variants
    for name in (tuning.FILE, "records.jsonl"):
        expected = [
            found for found in timeless(alone / name) if found[1].startswith(label) and not found[2]
        ]
        ours = sorted(timeless(results / name), key=str)
        for found, sure in zip(ours, sorted(expected, key=str), strict=True):
            assert found[:-1] == sure[:-1]
            losses = [[point["test_loss"] for point in curve] for curve in (found[-1], sure[-1])]
            np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_killed_workers_lose_and_repeat_nothing(tmp_path, alone):
    """Exact equivalence: SIGKILLs at random moments, workers replaced. Jobs are resumed from their
    checkpoints by whoever comes next, and the records are bit for bit those of one process."""
    for folder, said in workers(tmp_path, kills=KILLS).items():
        jobs = [line.split(":")[0] for _, line in said]
        assert len(jobs) == len(set(jobs))
        check_same(folder, alone)


def test_a_job_in_other_hands_is_left_alone(tmp_path):
    """Invariant: while another holds the lock of a job, the worker does the others and waits."""
    sweep.open_folder(UNTUNED, tmp_path)
    first = sweep.survey(UNTUNED, tmp_path).open[0]
    lock, said, others_done = sweep.lock(tmp_path, first.name), [], threading.Event()
    lock.acquire()

    def say(line):
        said.append(line.split(":")[0])
        if len(said) == 3:  # all but the one that is held
            others_done.set()

    thread = threading.Thread(target=lambda: sweep.work(UNTUNED, tmp_path, say=say), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "POLL_SECONDS", 0.05)
        thread.start()
        assert others_done.wait(timeout=120)
        lock.release()
        thread.join(timeout=120)
    assert not thread.is_alive()
    assert said[3] == first.name
    assert len(set(said)) == 4


def test_a_stopped_job_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    """Oracle: the steps, counted. Begun again, a job would have the same records, and a long one that
    is stopped often would never end; so each of its twelve steps is taken once."""
    label = "digits/backprop"
    recipe = dataclasses.replace(UNTUNED, variants={label: UNTUNED.variants[label]}, seeds=(0,))
    run_steps, taken, stops = loop.run_steps, [], [8]

    def steps(state, data, order, number, *others, **options):
        begin = int(state.step)
        if begin in stops:
            stops.remove(begin)
            raise KeyboardInterrupt
        taken.extend(range(begin, begin + number))
        return run_steps(state, data, order, number, *others, **options)

    monkeypatch.setattr(loop, "run_steps", steps)
    with pytest.raises(KeyboardInterrupt):
        sweep.work(recipe, tmp_path, say=str)
    assert not sweep.work(recipe, tmp_path, say=str).open
    assert taken == list(range(12))


@pytest.mark.slow
def test_together_trains_what_is_alike(tmp_path, monkeypatch):
    """Invariant: jobs that differ in their seed go into one program, two at a time here; the records
    are those of `fit`, up to rounding, which a test of `fit_together` bounds."""
    sizes = []

    def watched(members, **options):
        sizes.append(len(members))
        return loop.fit_together(members, **options)

    monkeypatch.setattr(sweep, "fit_together", watched)
    seen = sweep.work(UNTUNED, tmp_path, together=2, say=str)
    assert sizes == [2, 2]
    assert len(seen.done) == 4


@pytest.mark.slow
def test_programs_of_earlier_jobs_are_forgotten(tmp_path, monkeypatch, clear_caches):
    """Invariant: a worker never holds the steps of more than one job: two programs, by the layout of
    the state that they start from."""
    held = []
    monkeypatch.setattr(jax, "clear_caches", clear_caches)
    jax.clear_caches()  # of the tests before

    def say(_):
        held.append(compiled.run_steps._cache_size())

    sweep.work(UNTUNED, tmp_path, say=say)
    assert len(held) == 4
    assert max(held) <= 2


def test_a_diverged_run_is_left_out_and_named(tmp_path):
    """Oracle: a rate of 1e38. The other jobs go on; nobody tries it again; no record has a NaN."""
    wild = {
        label: dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, name="sgd", learning_rate=rate)
        )
        for rate, (label, config) in zip((1e-2, 1e38), UNTUNED.variants.items(), strict=True)
    }
    recipe = dataclasses.replace(UNTUNED, variants=wild, seeds=(0,))
    said = []
    sweep.work(recipe, tmp_path, together=2, say=said.append)
    again = sweep.work(recipe, tmp_path, say=said.append)
    assert not again.open
    assert len(said) == 2
    assert "lower --optimizer.learning-rate" in said[1]
    bad = gathering.gather(recipe, tmp_path, tmp_path / "results")
    assert bad == ["runs/digits/direct_feedback_alignment/seed_0"]
    (kept,) = files.read_runs(tmp_path / "results" / "records.jsonl")
    assert kept.variant == "digits/backprop"


def test_another_grid_is_refused(tmp_path):
    """Documented contract: names what differs; nothing in the folder changes."""
    sweep.open_folder(UNTUNED, tmp_path)
    sweep.open_folder(UNTUNED, tmp_path)
    other = dataclasses.replace(UNTUNED, seeds=(0, 1, 2))
    with pytest.raises(InputError, match=r"another grid \(seeds: \[0, 1\] -> \[0, 1, 2\]\)"):
        sweep.work(other, tmp_path)
    fewer = dataclasses.replace(
        UNTUNED.variants["digits/backprop"], data=ImageData(num_train=32, num_test=24)
    )
    other = dataclasses.replace(UNTUNED, variants=UNTUNED.variants | {"digits/backprop": fewer})
    with pytest.raises(InputError, match=r"digits/backprop\.data\.num_train: 64 -> 32"):
        sweep.work(other, tmp_path)


def test_other_grid_than_the_first_process_has(tmp_path, monkeypatch):
    """Documented contract: refused where it differs, before a job is looked for that is not there. What
    the first of several processes finds is put in the place of another's."""
    grid = sweep.open_folder(UNTUNED, tmp_path)
    monkeypatch.setattr(sweep.hosts, "from_first", lambda function: grid)
    other = dataclasses.replace(UNTUNED, seeds=(0, 1, 2))
    with pytest.raises(InputError, match=r"than process 0 \(seeds: \[0, 1\] -> \[0, 1, 2\]\)"):
        sweep.work(other, tmp_path)


def test_a_younger_setting_is_no_other_grid(tmp_path):
    """Invariant: a field that the library gained since, at its default, keeps the folder usable."""
    sweep.open_folder(UNTUNED, tmp_path)
    grid = json.loads((tmp_path / "grid.json").read_text())
    for config in grid["variants"].values():
        del config["decay_fraction"]
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    sweep.open_folder(UNTUNED, tmp_path)
    config = UNTUNED.variants["digits/backprop"]
    config = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, schedule="constant"),
        decay_fraction=0.1,
    )
    other = dataclasses.replace(UNTUNED, variants=UNTUNED.variants | {"digits/backprop": config})
    with pytest.raises(InputError, match="another grid"):
        sweep.open_folder(other, tmp_path)


def test_damage_is_named(tmp_path):
    """Documented contract: the file, and what to do."""
    sweep.open_folder(UNTUNED, tmp_path)
    job = sweep.survey(UNTUNED, tmp_path).open[0]
    record = tmp_path / job.name / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    with pytest.raises(InputError, match=r"record\.json is damaged .* delete it to make it again"):
        sweep.survey(UNTUNED, tmp_path)
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(InputError, match=r"grid\.json is damaged"):
        sweep.open_folder(UNTUNED, tmp_path)
    with pytest.raises(InputError, match="cannot be used"):
        sweep.open_folder(UNTUNED, record)


def test_gathered_twice_is_the_same(tmp_path):
    """Invariant: bytes of the records; and the grid is JSON."""
    recipe = dataclasses.replace(UNTUNED, seeds=(0,))
    sweep.work(recipe, tmp_path, say=str)
    gathering.gather(recipe, tmp_path, tmp_path / "results")
    first = (tmp_path / "results" / "records.jsonl").read_bytes()
    gathering.gather(recipe, tmp_path, tmp_path / "results")
    assert (tmp_path / "results" / "records.jsonl").read_bytes() == first
    assert json.loads((tmp_path / "grid.json").read_text())["seeds"] == [0]
