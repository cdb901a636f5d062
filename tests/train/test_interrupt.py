"""Stops that are asked for, full disks and losses that are not finite: nothing is lost.

Oracle: exact equivalence with the run that was left alone.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dfa_jax import errors
from dfa_jax.optim import Optimizer
from dfa_jax.train import compiled, directory, fit, interrupt, loop, run, tensorboard
from dfa_jax.train.loop import fit_together
from tests import helpers
from tests.train import small
from tests.train.test_resume import ROOTS

CONFIG = small.config("direct_feedback_alignment")


@pytest.fixture(scope="module")
def straight():
    return fit(CONFIG, progress=False)


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(n, signal)`: the process gets the signal while the n-th dispatch is under way."""

    def prepare(number, what=signal.SIGTERM):
        run_steps, calls = loop.run_steps, []

        def stop(*args, **options):
            calls.append(None)
            if len(calls) == number:
                os.kill(os.getpid(), what)
            return run_steps(*args, **options)

        monkeypatch.setattr(loop, "run_steps", stop)

    return prepare


def assert_goes_on(run_dir, straight):
    """Resumed, it is the run that was left alone, in every bit of its state and its curve. Nothing goes
    on from there, so it writes no checkpoints, which cost more than the steps."""
    resumed = fit(CONFIG, run_dir=run_dir, resume=True, save_seconds=np.inf, progress=False)
    helpers.assert_identical(small.plain(resumed.state), small.plain(straight.state))
    curve = small.without_time(straight.record.curve)
    assert small.without_time(resumed.record.curve) == curve
    lines = (run_dir / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [point["step"] for point in curve]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_stop_between_evaluations_loses_nothing(tmp_path, straight, stop_at, capfd, number):
    """Oracle: the run left alone. The losses since the last evaluation are part of what is kept, or
    the next point of the curve would be another mean; so is the state of the step that is named."""
    stop_at(number)
    with pytest.raises(SystemExit) as stopped, interrupt.listen("train.py", "go on"):
        fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    assert stopped.value.code == 0
    said = capfd.readouterr().err
    assert "train.py: SIGTERM" in said
    (step,) = re.findall(r"stopped after step (\d+) of 12; the state is saved; go on", said)
    assert (tmp_path / "run" / "checkpoints" / step).exists()
    assert not interrupt.requested()
    assert_goes_on(tmp_path / "run", straight)


def test_a_stop_in_a_branch_that_decays(tmp_path, monkeypatch):
    """Oracle: the run left alone. A branch may take long; the state it began from is saved, and the
    evaluation made again."""
    config = small.config(optimizer=Optimizer(), decay_fraction=0.5)
    straight = fit(config, progress=False)
    run_steps, calls = compiled.run_steps, []

    def stop(state, *args, **options):
        if int(state.step) == 8 and not calls:
            calls.append(None)
            os.kill(os.getpid(), signal.SIGTERM)
        return run_steps(state, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "run_steps", stop)
        patch.setattr(run, "STEPS_PER_DISPATCH", 1)
        with pytest.raises(SystemExit), interrupt.listen("train.py", "go on"):
            fit(config, run_dir=tmp_path / "run", progress=False)
    resumed = fit(
        config, run_dir=tmp_path / "run", resume=True, save_seconds=np.inf, progress=False
    )
    helpers.assert_identical(small.plain(resumed.state), small.plain(straight.state))
    ours, theirs = (small.without_time(r.record.curve) for r in (resumed, straight))
    assert ours == theirs


def test_ctrl_c_is_a_stop_of_its_own_exit_code(tmp_path, straight, stop_at):
    """Documented contract: 130, as shells have it, and nothing lost either."""
    stop_at(3, signal.SIGINT)
    with pytest.raises(SystemExit) as stopped, interrupt.listen("train.py", "go on"):
        fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    assert stopped.value.code == 130
    assert_goes_on(tmp_path / "run", straight)


def test_the_second_signal_kills():
    """Documented contract: who asks twice does not want to wait."""
    program = (
        "import os, signal\n"
        "from dfa_jax.train import interrupt\n"
        "with interrupt.listen('x', 'go on'):\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_stop_of_runs_together(tmp_path, monkeypatch):
    """Oracle: the same two left alone."""
    members = [dataclasses.replace(CONFIG, seed=seed) for seed in (0, 1)]
    whole = fit_together(members, progress=False)
    folders = [tmp_path / name for name in "ab"]
    together, calls = loop.run_steps_together, []

    def stop(*args, **options):
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(None)
        return together(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_steps_together", stop)
        with pytest.raises(SystemExit), interrupt.listen("sweep.py", "go on"):
            fit_together(members, run_dirs=folders, progress=False)
    again = fit_together(
        members, run_dirs=folders, resume=True, save_seconds=np.inf, progress=False
    )
    for first, second in zip(whole, again, strict=True):
        helpers.assert_identical(small.plain(first.state), small.plain(second.state))
        curve = small.without_time(first.record.curve)
        assert small.without_time(second.record.curve) == curve


def test_without_a_directory_a_stop_says_that_nothing_is_kept(stop_at, capfd):
    """Documented contract."""
    stop_at(2)
    with pytest.raises(SystemExit), interrupt.listen("train.py", "go on"):
        fit(CONFIG, progress=False)
    assert "nothing was kept of this run" in capfd.readouterr().err


def test_a_long_wait_for_an_evaluation_is_saved(tmp_path, straight, monkeypatch):
    """Oracle: the run left alone, killed after checkpoints that belong to no evaluation."""
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(loop, "STEPS_PER_DISPATCH", 1)
    saved, save = [], loop.Run.save

    def die(run):
        save(run)
        saved.append(int(run.state.step))
        if saved[-1] % small.STEPS_PER_EPOCH and saved[-1] > small.STEPS_PER_EPOCH:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "save", die)
        with pytest.raises(KeyboardInterrupt):
            fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    assert saved[-1] % small.STEPS_PER_EPOCH
    assert_goes_on(tmp_path / "run", straight)


def test_pace_follows_the_machine():
    """Documented contract: up while dispatches are short, down when one is long."""
    pace = loop.Pace(100)
    assert pace.steps == 1
    for _ in range(9):
        pace.took(0.01)
    assert pace.steps == 100
    for expected in (50, 25):
        pace.took(3.0)
        assert pace.steps == expected
    pace.took(1.0)
    assert pace.steps == 25


def test_a_loss_that_is_not_finite_is_placed_and_the_state_before_kept(tmp_path, monkeypatch):
    """Oracle: a batch of NaN at a known step. The run stops there, says so, and the last state that
    was finite is the last checkpoint's, bit by bit."""
    indices, dataset = loop.EpochShuffle.indices, CONFIG.data.load()
    poisoned = dataset.train.inputs.copy()
    poisoned[63] = np.nan
    bad = dataset._replace(train=dataset.train._replace(inputs=poisoned))
    monkeypatch.setattr(type(CONFIG.data), "load", lambda self: bad)

    def rows(self, start, number):
        found = np.minimum(indices(self, start, number), 62)
        for step in range(start, start + number):
            if step == 10:
                found[step - start, 0] = 63
        return found

    monkeypatch.setattr(loop.EpochShuffle, "indices", rows)
    with pytest.raises(errors.DivergedError) as caught:
        fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    assert "the loss is nan at step 10; the state of step 8 is kept" in str(caught.value)
    kept = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    assert {int(path.name) for path in kept} == {4, 8}
    assert len((tmp_path / "run" / "curve.jsonl").read_text().splitlines()) == 2


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """Oracle: absence. A step's loss is that before its update, so the last step of a run can spoil
    the state and leave no trace in its loss."""
    config = dataclasses.replace(CONFIG, optimizer=Optimizer("sgd", learning_rate=3e38))
    with pytest.raises(errors.DivergedError):
        fit(config, run_dir=tmp_path / "run", progress=False)
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)`: no file may grow beyond, as on a disk that is full."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


WRITES = {  # who writes, after which step the disk is full then, and what is whole
    "a point of the curve": (directory.RunDirectory, "append", 12, 8),
    "TensorBoard's point": (tensorboard, "append", 12, 8),
    "a checkpoint": (loop.Run, "save", 12, 8),
    "the record": (directory.RunDirectory, "finish", 12, 12),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, straight, monkeypatch, small_disk, name):
    """Oracle: the run left alone. Whatever is written when the disk is full, the message says what to
    do, and once there is room the run goes on from the checkpoint before."""
    owner, function, full, kept = WRITES[name]
    write, before = getattr(owner, function), resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = itertools.count(1)

    def fill(*arguments):
        if next(calls) * small.STEPS_PER_EPOCH == full or function == "finish":
            small_disk(16)
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, fill)
        with pytest.raises(errors.InputError) as caught:
            fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written" in str(caught.value)
    assert f"step {kept} is whole: make room there " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert_goes_on(tmp_path / "run", straight)


@pytest.fixture
def small_mount(tmp_path):
    """A file system of four megabytes, where mounting is permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place):
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def remount(place, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (fill, lambda place: (place / "filler").unlink()),
        (lambda place: remount(place, "ro"), lambda place: remount(place, "rw")),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_no_more(small_mount, straight, monkeypatch, spoil, mend):
    """Oracle: the run left alone. The system itself refuses; the message, and what is kept, as above."""
    record_point = loop.Run.record_point

    def record(run, step):
        if step == 12:
            spoil(small_mount)
        record_point(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "record_point", record)
        # Its open file would not let us mount the disk anew.
        patch.setattr(directory.RunDirectory, "_acquire", lambda _: None)
        with pytest.raises(
            errors.InputError, match="cannot be written .*step 8 is whole"
        ) as caught:
            fit(CONFIG, run_dir=small_mount / "run", progress=False)
    assert len(str(caught.value).splitlines()) == 1
    print(caught.value)
    mend(small_mount)
    assert_goes_on(small_mount / "run", straight)


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_does_so_in_seconds(tmp_path):
    """Documented contract, of a real process in the middle of a run that would take an hour: exit code
    0 within 15 seconds (a preempted machine has 30), and a checkpoint of the step that it names."""
    changes = json.dumps({"num_epochs": 100_000, "eval_every": 5})
    command = [sys.executable, "-m", "tests.train.member", str(tmp_path / "run"), "1", changes]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, ROOTS))}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not directory.RunDirectory(tmp_path / "run").latest_step():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert time.monotonic() - begun < 15
    step = int(re.search(r"stopped after step (\d+) of 400000; the state is saved; go on", said)[1])
    assert directory.RunDirectory(tmp_path / "run").latest_step() == step
