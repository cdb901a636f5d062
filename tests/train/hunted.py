"""Runs that are killed at random moments and taken up again, until so many processes have died.

`python -m tests.train.hunted FOLDER KILLS` leaves finished runs in `FOLDER/0`, `FOLDER/1`, ..., as many
as the kills were spread over, and prints where each kill struck. One process imports everything and
forks before JAX has started its threads, so a life costs no second import.
"""

import itertools
import os
import pathlib
import random
import signal
import sys
import time
import warnings

import jax
import sklearn.datasets  # noqa: F401  two seconds, here once for all runs

from dfa_jax.train import TrainConfig, fit
from tests.train import killed, small


def config(kills: int, number: int = 0) -> TrainConfig:
    """A run long enough for the kills, with a checkpoint every epoch; sites are measured too."""
    epochs = 15 * kills + 5
    rule = "direct_feedback_alignment"
    return small.config(rule, num_epochs=epochs, seed=number, alignment_examples=16)


def main(folder: pathlib.Path, kills: int) -> None:
    """Every life ends at a moment between its start and twice the time to the first checkpoint."""
    chance, left = random.Random(0), kills
    begun = time.monotonic()
    live(folder / "first", config(0))
    span = 2 * (time.monotonic() - begun)
    for number in itertools.count():
        run = folder / str(number)
        while not live(run, config(kills, number), chance.uniform(0, span) if left else None):
            left -= 1
            step = killed.latest(run / "checkpoints")
            print(f"run {number}: killed, newest checkpoint of step {step}, {left} to come")
        if not left:
            break


def live(run: pathlib.Path, what: TrainConfig, seconds: float | None = None) -> bool:
    """Whether a process that takes the run up ended it before it was killed."""
    child = os.fork()
    if child == 0:
        fit(what, run_dir=run, resume=True, progress=False)
        os._exit(0)
    deadline = time.monotonic() + (600 if seconds is None else seconds)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    if status == 0 or (seconds is not None and os.WIFSIGNALED(status)):
        return status == 0
    raise SystemExit(f"{run} ended with {status}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of forking, which is safe until JAX has a backend
    jax.config.update("jax_num_cpu_devices", 8)
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
