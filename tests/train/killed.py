"""Trains under several rules, each in a process of its own, and kills each at a random moment.

`python -m tests.train.killed FOLDER RULE ...` leaves `FOLDER/RULE` as SIGKILL left it. One process
imports everything and forks before JAX has started its threads, so a run costs no second import.
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
from tests.train import small

NUM_EPOCHS = 10
UNFINISHED = ".orbax-checkpoint-tmp"


def config(rule: str) -> TrainConfig:
    """A checkpoint every epoch; one rule measures its sites too."""
    measured = 16 if rule == "direct_feedback_alignment" else 0
    return small.config(rule, num_epochs=NUM_EPOCHS, alignment_examples=measured)


def main(folder: pathlib.Path, *rules: str) -> None:
    """Kills one run after another; the moments are random, and the same every time.

    Every other run dies when it has written a checkpoint but for its name, the rest wherever they
    are.
    """
    chance = random.Random(0)
    for number, rule in enumerate(rules):
        whole = chance.randrange(1, NUM_EPOCHS // 2)
        victim = os.fork()
        if victim == 0:
            if number % 2 == 0:
                die_while_writing(whole + 1)
            fit(config(rule), run_dir=folder / rule, progress=False)
            os._exit(0)
        if number % 2:
            wait_for(folder / rule / "checkpoints", whole * small.STEPS_PER_EPOCH)
            time.sleep(chance.uniform(0, 0.1))
            os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"{rule} ended with {status} before it was killed")


def die_while_writing(checkpoint: int) -> None:
    """Kills this process as it is about to rename the temporary folder of its n-th checkpoint."""
    seen = itertools.count(1)

    def watch(event, arguments):
        if event == "os.rename":
            source = pathlib.Path(os.fsdecode(arguments[0]))
            if source.parent.name == "checkpoints" and next(seen) == checkpoint:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def wait_for(checkpoints: pathlib.Path, step: int) -> None:
    """Returns once there is a whole checkpoint of this step or a later one."""
    deadline = time.monotonic() + 300
    while latest(checkpoints) < step:
        if time.monotonic() > deadline:
            raise SystemExit(f"no checkpoint at step {step} in {checkpoints}")
        time.sleep(0.005)


def latest(checkpoints: pathlib.Path) -> int:
    """The step of the newest whole checkpoint, 0 if there is none."""
    names = [path.name for path in checkpoints.glob("*") if path.name.isdecimal()]
    return max(map(int, names), default=0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of forking, which is safe until JAX has a backend
    jax.config.update("jax_num_cpu_devices", 8)
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
