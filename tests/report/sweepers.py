"""Sweeps with several workers at once, which are killed at random and replaced.

`python -m tests.report.sweepers FOLDER KILLS` leaves the finished sweep in `FOLDER`, and every line
that a worker said in `FOLDER/said`. One process imports everything and forks before JAX has started
its threads, so a worker costs no second import.
"""

import dataclasses
import os
import pathlib
import random
import signal
import sys
import time
import warnings

import jax
import sklearn.datasets  # noqa: F401  two seconds, here once for all workers

from dfa_jax.report import sweep
from dfa_jax.report.recipe import Recipe, Tuning
from tests.train import small

WORKERS = 2
RULES = ("backprop", "direct_feedback_alignment")


def recipe(**changes) -> Recipe:
    """Two rules, two seeds, and a search for their rates, some ten jobs of half a second."""
    return dataclasses.replace(
        Recipe(
            title="A sweep",
            paper="none",
            minutes=1,
            variants={f"digits/{rule}": small.config(rule, num_epochs=3) for rule in RULES},
            seeds=(0, 1),
            tuning=Tuning(num_epochs=1, num_validation=16),
            name="sweep",
        ),
        **changes,
    )


def main(folder: pathlib.Path, kills: int) -> None:
    """Keeps workers running until all are content; kills one of them now and then."""
    chance = random.Random(0)
    workers = {start(folder) for _ in range(WORKERS)}
    while workers:
        if kills:
            time.sleep(chance.uniform(0.2, 1.5))
            victim = chance.choice(sorted(workers))
            os.kill(victim, signal.SIGKILL)
            kills -= 1
        ended, status = os.wait()
        workers.remove(ended)
        if os.WIFSIGNALED(status):
            workers.add(start(folder))
        elif status:
            raise SystemExit(f"a worker ended with {status}")


def start(folder: pathlib.Path) -> int:
    """A new worker's process."""
    if worker := os.fork():
        return worker
    sweep.POLL_SECONDS = 0.05
    said = folder / "said"

    def say(line: str) -> None:
        with said.open("a") as file:
            file.write(f"{os.getpid()} {line}\n")

    sweep.work(recipe(), folder, say=say)
    os._exit(0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of forking, which is safe until JAX has a backend
    jax.config.update("jax_num_cpu_devices", 8)
    where = pathlib.Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    main(where, int(sys.argv[2]))
