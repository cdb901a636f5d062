"""Sweeps with several workers at once, which are killed at random and replaced; or one of two processes.

`python -m tests.report.sweepers FOLDER KILLS` leaves finished sweeps in `FOLDER/0`, `FOLDER/1`, ..., as
many as the kills were spread over, with every line that a worker said in `said`; with `joined` for a
number, one sweep in `FOLDER` by one worker. One process imports everything and forks before JAX has
started its threads, so a worker costs no second import.
"""

import dataclasses
import itertools
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
from dfa_jax.train import hosts
from tests.train import meeting, small

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


def one() -> Recipe:
    """The first rule and seed of the recipe alone."""
    (label, config), *_ = recipe().variants.items()
    return recipe(variants={label: config}, seeds=(0,))


def main(folder: pathlib.Path, kills: int) -> None:
    """One sweep after another, until all workers were killed that should be."""
    chance, begun = random.Random(0), time.monotonic()
    for number in itertools.count():
        workers = {start(folder / str(number), recipe()) for _ in range(WORKERS)}
        if number == 0 and kills:
            while not (folder / "0" / "said").exists():
                time.sleep(0.01)
            span = time.monotonic() - begun
        while workers:
            if kills:
                time.sleep(chance.uniform(0, span))
                os.kill(chance.choice(sorted(workers)), signal.SIGKILL)
            ended, status = os.wait()
            workers.remove(ended)
            if os.WIFSIGNALED(status):
                kills -= 1
                print(f"sweep {number}: worker killed, {kills} to come")
                workers.add(start(folder / str(number), recipe()))
            elif status:
                raise SystemExit(f"a worker ended with {status}")
        if not kills:
            break


def joined(folder: pathlib.Path) -> None:
    """The sweep of `one`, by a worker of two processes with four devices each."""
    jax.config.update("jax_num_cpu_devices", 4)
    for environment in meeting.environments(2):
        start(folder, one(), environment)
    for _ in range(2):
        _, status = os.wait()
        if status:
            raise SystemExit(f"a process ended with {status}")


def start(folder: pathlib.Path, swept: Recipe, environment: dict[str, str] | None = None) -> int:
    """A new worker's process, or one of them."""
    if worker := os.fork():
        return worker
    hosts.join(environment or {})
    folder.mkdir(parents=True, exist_ok=True)
    sweep.POLL_SECONDS = 0.05
    said = folder / "said"

    def say(line: str) -> None:
        if hosts.is_first():
            with said.open("a") as file:
                file.write(f"{os.getpid()} {line}\n")

    sweep.work(swept, folder, say=say)
    if environment:
        jax.distributed.shutdown()  # none may find the other gone
    os._exit(0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of forking, which is safe until JAX has a backend
    jax.config.update("jax_num_cpu_devices", 8)
    place, number = pathlib.Path(sys.argv[1]), sys.argv[2]
    joined(place) if number == "joined" else main(place, int(number))
