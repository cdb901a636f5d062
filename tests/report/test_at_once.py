"""Several processes make records of one recipe: nothing is lost, nothing is there twice.

Oracle: what each of them put on record, counted. Another process is played by what stands in for
training, which leaves behind what that one would have by then.
"""

import contextlib
import dataclasses
import multiprocessing
import threading

import pytest

from dfa_jax.errors import InputError
from dfa_jax.report import gathering, plan, run, study, tuning
from dfa_jax.train import RunRecord, loop, records
from dfa_jax.train.directory import OpenElsewhereError, RunDirectory
from tests.report import made_up, sweepers


def made(seed, variant="x"):
    return RunRecord("r", variant, "backprop", seed, 1, 1, 1.0, {}, {}, ())


@pytest.fixture
def training(monkeypatch):
    """`training(recipe, before)`: `before(label, config)` is called, then the run is there; the labels.

    Several variants of `recipe` may be like each other; its folder says which one is trained.
    """

    def prepare(recipe, before):
        trained = []

        def fit(config, *, run_dir, **options):
            del options
            label = str(run_dir).split("/unfinished/")[1]
            before(label)
            trained.append(label)
            found = made_up.record(recipe, next(iter(recipe.variants)), config.seed, (5.0,))
            return loop.Result(dataclasses.replace(found, recipe="", variant=""), None, None)

        monkeypatch.setattr(loop, "fit", fit)
        monkeypatch.setattr(run, "POLL_SECONDS", 0.0)
        return trained

    return prepare


def put(recipe, path, variant, seed):
    """Another process puts a run on record."""
    records.append(path, made_up.record(recipe, variant, seed, (6.0,)))


def labels(path):
    return [(record.variant, record.seed) for record in records.read_runs(path)]


def test_what_another_process_did_meanwhile_is_done(recipe, training, tmp_path):
    """Exact: while the first run is made, another process ends that one and the next two."""
    path, said = tmp_path / plan.RECORDS, []
    planned = [(one.variant, one.seed) for one in plan.plan(recipe)]

    def before(label):
        if label == "runs/tanh/backprop/seed_0":
            for variant, seed in planned[:3]:
                put(recipe, path, variant, seed)

    trained = training(recipe, before)
    found = run.run(recipe, path, say=said.append)
    assert len(trained) == 1 + len(planned) - 3
    assert labels(path) == planned
    assert sorted((one.variant, one.seed) for one in found) == sorted(planned)
    assert found[0].final.test_accuracy == pytest.approx(0.94)  # the one that was first on record
    assert said[1].startswith("[4/18]")


def test_a_run_that_another_process_makes_is_left_to_it(recipe, training, tmp_path):
    """Exact: it is taken up when nothing else is left; one is on record by then, the other one is
    free, as its process was killed."""
    path, said, asked = tmp_path / plan.RECORDS, [], []
    busy = ["runs/tanh/backprop/seed_0", "runs/tanh/shallow/seed_0"]

    def before(label):
        asked.append(label)
        if label in busy:
            if asked.count(label) == 2 and label == busy[0]:
                put(recipe, path, "tanh/backprop", 0)
            if asked.count(label) <= 2:
                raise OpenElsewhereError(f"run directory {label} is open in another process")

    trained = training(recipe, before)
    run.run(recipe, path, say=said.append)
    assert trained == [one.name for one in plan.plan(recipe) if one.name not in busy] + busy[1:]
    assert len(labels(path)) == len(set(labels(path))) == 18
    (waited,) = [line for line in said if "waits" in line]
    assert "open in another process" in waited


def test_a_trial_that_another_process_makes_is_waited_for(training, tmp_path):
    """Exact: which rate is next depends on it; it is taken from the records."""
    recipe, path, asked = sweepers.recipe(seeds=(0,)), tmp_path / plan.RECORDS, []
    grid, first = tuning.grid(recipe), "digits/backprop@+0"

    def before(label):
        asked.append(label)
        if asked == [f"trials/{first}"]:
            raise OpenElsewhereError("open in another process")
        if len(asked) == 2:
            put(grid, path.with_name(tuning.FILE), first, 0)

    training(grid, before)
    run.run(recipe, path, say=str)
    trials = labels(path.with_name(tuning.FILE))
    assert len(trials) == len(set(trials)) >= 3
    assert asked[:2] == [f"trials/{first}"] * 2


def test_a_real_directory_that_is_open_elsewhere(recipe, training, tmp_path):
    """Documented contract of `RunDirectory.clear_unbegun` and `remove`: not a byte of it changes."""
    folder = tmp_path / run.UNFINISHED / "runs" / "a"
    held = RunDirectory.open(folder, recipe.variants["tanh/backprop"], resume=True, overwrite=False)
    (folder / "curve.jsonl").write_text("{}\n")
    with contextlib.closing(held):
        with pytest.raises(OpenElsewhereError):
            RunDirectory(folder).clear_unbegun()
        RunDirectory(folder).remove()
        assert {one.name for one in folder.iterdir()} == {"config.json", "curve.jsonl", ".lock"}
    RunDirectory(folder).clear_unbegun()
    assert {one.name for one in folder.iterdir()} == {".lock"}
    RunDirectory(folder).remove()
    assert not folder.exists()


@dataclasses.dataclass(frozen=True)
class Number:
    """A case that another process may end while it is computed."""

    value: int

    def run(self):
        for path, record in OTHERS.pop(self.value, ()):
            records.append(path, record)
        return {"value": [self.value]}

    def shrunk(self):
        return self


OTHERS = {}


def test_cases_of_a_study(tmp_path):
    """Exact: as for runs; a case of another configuration is replaced by `overwrite` alone."""
    path = tmp_path / "records.jsonl"
    cases = {name: Number(value) for value, name in enumerate("abc")}
    made_of = study.Study("t", "p", 1, cases, print, print, name="numbers")
    study.run(made_of, tmp_path / "alone.jsonl", say=str)
    OTHERS[0] = [(path, record) for record in study.read(tmp_path / "alone.jsonl")[:2]]
    said = []
    study.run(made_of, path, say=said.append)
    assert [record.case for record in study.read(path)] == ["a", "b", "c"]
    assert [line.split(":")[0] for line in said] == ["[1/3] a", "[3/3] c"]
    changed = dataclasses.replace(made_of, cases=cases | {"b": Number(7)})
    with pytest.raises(InputError, match="value: 1 -> 7"):
        study.run(changed, path, say=str)
    study.run(changed, path, overwrite=True, say=str)
    assert [(r.case, r.results["value"]) for r in study.read(path)] == [
        ("a", [0]),
        ("c", [2]),
        ("b", [7]),
    ]


def test_gathering_waits_for_what_is_being_appended(tmp_path):
    """Exact: between its reading and its replacing nobody appends; a record that came before stays."""
    path = tmp_path / plan.RECORDS
    records.append(path, made(0, "theirs"))
    thread = threading.Thread(target=gathering._keep, args=(path, [made(0, "ours")]))
    with records.edit(path) as file:
        thread.start()
        thread.join(timeout=0.1)
        assert thread.is_alive()
        file.append(made(1, "theirs"))
    thread.join(timeout=60)
    assert labels(path) == [("ours", 0), ("theirs", 0), ("theirs", 1)]


def write_many(path, name, number):
    for seed in range(number):
        records.append(path, made(seed, name))


def gather_until(path, done):
    while not done.wait(0.1):
        gathering._keep(path, [made(seed, "gathered") for seed in range(10)])


def read_until(path, done, failed):
    """Whole records and no fewer than before, whatever the others do."""
    most = 0
    while not done.wait(0.05):
        try:
            number = len(records.read_runs(path))
            assert number >= most
        except BaseException:
            failed.set()
            raise
        most = number


@pytest.mark.slow
@pytest.mark.parametrize("each", [200, pytest.param(2_000, marks=pytest.mark.nightly)])
def test_eight_processes_at_once(tmp_path, each):
    """Invariant: five append so many records each, one gathers and two read; all are there, once."""
    path, context = tmp_path / plan.RECORDS, multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "dfa_jax.report.gathering"])
    done, failed = context.Event(), context.Event()
    writers = [context.Process(target=write_many, args=(path, name, each)) for name in "abcde"]
    others = [
        context.Process(target=gather_until, args=(path, done)),
        *(context.Process(target=read_until, args=(path, done, failed)) for _ in range(2)),
    ]
    for process in writers + others:
        process.start()
    for process in writers:
        process.join()
    done.set()
    for process in others:
        process.join()
    assert [process.exitcode for process in writers + others] == [0] * 8
    assert not failed.is_set()
    found = labels(path)
    assert len(found) == len(set(found)) == 5 * each + 10
