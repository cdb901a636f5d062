"""Trains under several rules, each in a process of its own, and kills each at a random moment.

`python -m tests.train.killed FOLDER RULE ...` leaves `FOLDER/RULE` as SIGKILL left it. One process imports
everything and forks before JAX has started its threads, so a run costs no second import.
"""

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
from tests.train import small

NUM_EPOCHS = 10
UNFINISHED = "*.orbax-checkpoint-tmp*"


def config(rule: str) -> TrainConfig:
    """A checkpoint every epoch; one rule measures its sites too."""
    measured = 16 if rule == "direct_feedback_alignment" else 0
    return small.config(rule, num_epochs=NUM_EPOCHS, alignment_examples=measured)


def main(folder: pathlib.Path, *rules: str) -> None:
    """Kills one run after another; the moments are random, and the same every time."""
    chance = random.Random(0)
    for rule in rules:
        victim = os.fork()
        if victim == 0:
            fit(config(rule), run_dir=folder / rule, progress=False)
            os._exit(0)
        wait_for_the_moment(folder / rule / "checkpoints", chance)
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"{rule} ended with {status} before it was killed")


def wait_for_the_moment(checkpoints: pathlib.Path, chance: random.Random) -> None:
    """Some checkpoints in; then either at once, as one is being written, or a little later."""
    earliest = chance.randrange(1, NUM_EPOCHS // 2) * small.STEPS_PER_EPOCH
    while_writing = chance.random() < 0.6
    deadline = time.monotonic() + 120
    while latest(checkpoints) < earliest or (
        while_writing and not list(checkpoints.glob(UNFINISHED))
    ):
        if time.monotonic() > deadline:
            raise SystemExit(f"no checkpoint at step {earliest} in {checkpoints}")
        time.sleep(0.001)
    time.sleep(0 if while_writing else chance.uniform(0, 0.1))


def latest(checkpoints: pathlib.Path) -> int:
    """The step of the newest whole checkpoint, 0 if there is none."""
    names = [path.name for path in checkpoints.glob("*") if path.name.isdecimal()]
    return max(map(int, names), default=0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of forking, which is safe until JAX has a backend
    jax.config.update("jax_num_cpu_devices", 8)
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
