"""`--overwrite`: one run is whole at every moment, the old one until the new one has been evaluated.

Oracle: the bytes of the old run, and of the new one. A misspelt option used to cost the old run's
checkpoints, hours of training, before it was refused.
"""

import dataclasses
import functools
import itertools
import os
import shutil
import signal

import jax.numpy as jnp
import pytest

from dfa_jax import errors
from dfa_jax.optim import Optimizer
from dfa_jax.train import Evaluation, aside, checkpoint, fit, interrupt, loop
from dfa_jax.train.loop import fit_together
from tests.train import small
from tests.train.test_directory import claim, contents

CONFIG = small.config()
POINT = Evaluation(4, 1.0, 0.5, 0.5, 0.5, 0.5, {})


def fill(path, what):
    """A folder with a file, and a link."""
    (path / "checkpoints" / "4").mkdir(parents=True)
    (path / "checkpoints" / "4" / "state").write_text(f"weights of {what}")
    (path / "link").symlink_to("checkpoints")


class Killed(BaseException):
    """Nothing more happens in this process."""


@pytest.fixture
def dies(monkeypatch):
    """`dies(n, function, ...)`: the process dies before its n-th change of the disk; whether it did.

    What a tuple holds is done as it is, and not counted.
    """

    def run(number, *functions):
        left = [number]

        def cut(change):
            def attempt(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return change(*arguments, **options)

            return attempt

        for function in functions:
            if isinstance(function, tuple):
                function[0]()
                continue
            with monkeypatch.context() as patch:
                for name in ("rename", "mkdir", "rmdir", "unlink"):
                    patch.setattr(os, name, cut(getattr(os, name)))
                try:
                    function()
                except Killed:
                    return True
        return False

    return run


@pytest.mark.parametrize(
    ("is_evaluated", "end"),
    [(False, aside.put_back), (True, aside.drop), (True, aside.put_back)],
    ids=["fails", "runs", "fails at its first checkpoint"],
)
def test_a_kill_at_any_moment_leaves_a_whole_run(tmp_path, dies, is_evaluated, end):
    """Every change of the disk, from setting aside to the end, is one where the process dies; so is
    every change of the start after it, which mends. The next one finds a whole run."""
    run, old, new = (tmp_path / name for name in ("run", "old", "new"))
    for folder in (old, new):
        fill(folder, folder.name)
    (old / "curve.jsonl").write_text("{}\n")
    if is_evaluated:
        (new / "curve.jsonl").write_text("{}\n")
    whole = [contents(old), contents(new)][: 1 + is_evaluated]
    write = functools.partial(shutil.copytree, new, run, dirs_exist_ok=True, symlinks=True)
    replace = [lambda: aside.set_aside(run), (write,), lambda: end(run)]
    for first in itertools.count():
        was_killed = True
        for second in itertools.count():
            shutil.copytree(old, run, symlinks=True)
            was_killed = dies(first, *replace)
            was_killed_again = dies(second, lambda: aside.settle(run))
            aside.settle(run)
            assert contents(run) in whole, (first, second)
            assert (run / "link").is_symlink()
            assert not aside.is_begun(run)
            shutil.rmtree(run)
            if not was_killed_again:
                break
        if not was_killed:
            break
    assert first > 6


@pytest.fixture
def run(tmp_path):
    """A run directory with something in every file, and its bytes."""
    path = tmp_path / "run"
    claim(path).close()
    (path / "notes.txt").write_text("the user's own")
    (path / "curve.jsonl").write_text("{}\n{}\n")
    (path / "checkpoints" / "8").mkdir(parents=True)
    (path / "checkpoints" / "8" / "state").write_text("weights")
    return path, contents(path)


def steps(loss):
    """What stands in for the compiled steps: all but the first have this loss."""

    def run_steps(state, data, order, number, *others, **options):
        del data, order, number, others, options
        return state, {"loss": jnp.full(100, loss).at[0].set(1), "accuracy": jnp.zeros(100)}

    return run_steps


def no_room(*arguments, **options):
    raise MemoryError("Out of memory allocating 64000000000000 bytes.")


def stopped(*arguments, **options):
    raise KeyboardInterrupt


def full_disk(self, evaluation):
    raise OSError(28, "No space left on device")


FAULTS = {  # the configuration, what stands in for the steps, and the error
    "misspelt option": (
        {"optimizer": Optimizer(frozen=("layer_9",))},
        stopped,
        (errors.InputError, "'layer_9'; did you mean 'layer_"),
    ),
    "endless": (
        {"num_epochs": 1e15},
        stopped,
        (errors.InputError, "makes 4e.15 steps; expected f"),
    ),
    "too wide": ({}, no_room, (MemoryError, "Out of memory")),
    "diverges": ({}, steps(jnp.inf), (errors.DivergedError, "the loss is inf at step [123]")),
    "Ctrl-C": ({}, stopped, (KeyboardInterrupt, None)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_old_run_is_back_after_a_fault(run, monkeypatch, name):
    """Bit by bit, whatever went wrong before the first evaluation; and the directory is free again."""
    path, before = run
    changes, stand_in, (error, message) = FAULTS[name]
    monkeypatch.setattr(loop, "run_steps", stand_in)
    with pytest.raises(error, match=message):
        fit(dataclasses.replace(CONFIG, **changes), run_dir=path, overwrite=True, progress=False)
    assert contents(path) == before
    claim(path, resume=True).close()


def test_what_can_be_told_before_is_refused_before(tmp_path, monkeypatch):
    """Documented contract: a misspelt option makes no directory, and moves none."""
    monkeypatch.setattr(loop.Files, "open", no_room)
    frozen = dataclasses.replace(CONFIG, optimizer=Optimizer(frozen=("layer_9",)))
    with pytest.raises(errors.InputError, match="layer_9"):
        fit(frozen, run_dir=tmp_path / "run", progress=False)


def test_a_stop_before_the_first_evaluation(run, monkeypatch, capfd):
    """Documented contract: the message says which run there is now, and does not advise `--resume`."""
    path, before = run

    def stop(*arguments, **options):
        if not interrupt.requested():
            os.kill(os.getpid(), signal.SIGTERM)
        return steps(0.5)(*arguments, **options)

    monkeypatch.setattr(loop, "run_steps", stop)
    with pytest.raises(SystemExit), interrupt.listen("train.py", "go on with --resume"):
        fit(CONFIG, run_dir=path, overwrite=True, progress=False)
    assert contents(path) == before
    *_, back, said = capfd.readouterr().err.splitlines()
    assert back == f"{path}: {aside.BACK}"
    assert said.endswith(
        "before the first evaluation: the run that was there is kept; the same command begins again"
    )


def evaluated(monkeypatch, fails_at):
    """Points are written without measuring; the one of the run of this call fails."""
    calls = []

    def record_point(run, step):
        calls.append(step)
        if len(calls) == fails_at:
            raise errors.DivergedError("the test loss is nan")
        run.files.add(dataclasses.replace(POINT, step=step))
        run.since = step

    monkeypatch.setattr(loop.Run, "record_point", record_point)


def test_the_new_run_stays_once_it_has_been_evaluated(run, monkeypatch):
    """Documented contract: what fails then is the new run, whose curve is kept; of the old one, nothing."""
    path, _ = run
    monkeypatch.setattr(loop, "run_steps", steps(0.5))
    evaluated(monkeypatch, fails_at=2)
    with pytest.raises(errors.DivergedError):
        fit(CONFIG, run_dir=path, overwrite=True, progress=False)
    left = {name.split("/")[0] for name in contents(path)}
    assert left == {"config.json", "curve.jsonl", "tensorboard"}
    assert (path / "curve.jsonl").read_text().count("\n") == 1


def test_of_runs_together_all_come_back(run, tmp_path, monkeypatch):
    """Invariant: bytes. The first one has been evaluated when the second one fails."""
    path, before = run
    shutil.copytree(path, tmp_path / "other")
    monkeypatch.setattr(loop, "_dispatch", lambda runs, *_: [steps(0.5)(None, *[None] * 3)[1]] * 2)
    evaluated(monkeypatch, fails_at=2)
    with pytest.raises(errors.DivergedError):
        fit_together(
            [dataclasses.replace(CONFIG, seed=seed) for seed in (0, 1)],
            run_dirs=[path, tmp_path / "other"],
            overwrite=True,
            progress=False,
        )
    assert contents(path) == contents(tmp_path / "other") == before


def test_a_kill_is_mended_at_the_next_start(run, capsys):
    """Documented contract: whatever the flags; one line says it, and the usual refusals follow."""
    path, before = run
    claim(path, overwrite=True)  # never closed
    with pytest.raises(errors.InputError, match="holds a run already"):
        claim(path)
    assert capsys.readouterr().err == f"{path}: {aside.BACK}\n"
    assert contents(path) == before
    claim(path, overwrite=True).append(POINT)  # and dies before its checkpoint is written
    with pytest.raises(errors.InputError, match="holds a run already"):
        claim(path)
    assert capsys.readouterr().err == f"{path}: {aside.BACK}\n"
    assert contents(path) == before
    claim(path, overwrite=True).append(POINT)
    (path / "checkpoints" / "4").mkdir(parents=True)
    directory = claim(path, resume=True)
    assert "is deleted; the new one was evaluated and saved" in capsys.readouterr().err
    assert set(contents(path)) == {"config.json", "curve.jsonl"}
    directory.close()
    assert not capsys.readouterr().err


def test_what_cannot_begin_moves_nothing_for_good(run, monkeypatch):
    """Invariant: bytes, where the disk is full just after the old run was set aside."""
    path, before = run
    monkeypatch.setattr("dfa_jax.train.directory._write", full_disk)
    with pytest.raises(errors.InputError, match="cannot be used .No space left"):
        claim(path, overwrite=True)
    assert contents(path) == before


def test_what_is_in_the_way_is_named(run):
    """Documented contract: both places, and that one of them is to be moved."""
    path, _ = run
    (path / ".overwritten.moving").mkdir()
    (path / ".overwritten.moving" / "curve.jsonl").write_text("{}\n")
    with pytest.raises(errors.InputError, match=r"run/curve.jsonl is in the way of .*move one of"):
        claim(path, resume=True)


def test_a_checkpoint_that_cannot_be_written_says_what_becomes_of_the_old_run(run):
    """Documented contract: to go on would be to go on with another run."""
    path, _ = run
    directory = claim(path, overwrite=True)
    with checkpoint.Checkpoints(directory.checkpoints, CONFIG) as checkpoints:
        said = str(checkpoints.not_written("the checkpoint of step 4", "full"))
    assert "comes back: make room there or let it be written to, and begin again" in said
    directory.close()
