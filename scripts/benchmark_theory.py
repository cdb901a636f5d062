"""Speed of the shallow theory against plain NumPy, side by side in one process.

`python scripts/benchmark.py theory [--rounds 5] [--output FILE]`

In each round both versions do the same work, in turns: `solve` 1,000 trajectories of the equations
of motion under `vmap` (NumPy: one after the other, a few of them), `simulate` online learning of
many runs at once (NumPy: one run, a few steps). NumPy's versions are written as one writes them,
with arrays over units and inputs.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import side_by_side
from scipy import special

from dfa_jax import theory
from dfa_jax.train import records
from dfa_jax.train.cli import Parser
from dfa_jax.train.process import prepare_process

RATE, DIM, STEP_SIZE = 0.2, 500, 0.5
NUM_STARTS, LAST_TIME = 1000, 50.0
NUM_RUNS, NUM_STEPS = 256, 2000
V_TEACHER, FEEDBACK = np.ones(2), np.array([1.0, -0.6])


def main(arguments: list[str]) -> None:
    """Prints the ratios' median and quartiles; appends them to a file if asked."""
    parser = Parser(prog="benchmark.py theory", description="Shallow theory against NumPy.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse(arguments)
    prepare_process()
    with jax.enable_x64(True):
        found = {
            "solve, trajectories a second": compare(options.rounds, *solvers()),
            "simulate, steps a second": compare(options.rounds, *simulators()),
        }
    print(f"{options.rounds} rounds; {records.environment()}")
    for name, numbers in found.items():
        print(
            f"{name:<30} {numbers['ours']:12.0f}   NumPy {numbers['numpy']:10.1f}   ratio"
            f" {side_by_side.shown(numbers, 1)}"
        )
    side_by_side.append(options.output, theory=found)


def compare(rounds: int, ours: Callable[[], int], plain: Callable[[], int]) -> dict[str, float]:
    """Units of work a second of both, in turns; each callable returns how many it did."""
    ours()  # compiles
    speeds = np.array([[speed(ours), speed(plain)] for _ in range(rounds)])
    return {
        "ours": float(np.median(speeds[:, 0])),
        "numpy": float(np.median(speeds[:, 1])),
        **side_by_side.quartiles(speeds[:, 0] / speeds[:, 1]),
    }


def speed(work: Callable[[], int]) -> float:
    """Units of work a second."""
    start = time.perf_counter()
    number = work()
    return number / (time.perf_counter() - start)


def starts(number: int) -> Any:
    """Overlaps of random networks, stacked."""
    return jax.vmap(
        lambda key: theory.from_weights(
            theory.draw_weights(key, DIM, v_teacher=V_TEACHER, feedback=FEEDBACK)
        )
    )(jax.random.split(jax.random.key(0), number))


def solvers() -> tuple[Callable[[], int], Callable[[], int]]:
    """1,000 trajectories at once, and a few of the same one by one with Runge and Kutta's steps."""
    setup = theory.TeacherStudent(learning_rate=RATE, second_learning_rate=RATE)
    times = np.array([0.0, LAST_TIME])
    op0 = starts(NUM_STARTS)
    solve = jax.jit(jax.vmap(lambda op: theory.solve(op, setup, times, step_size=STEP_SIZE)))

    def ours() -> int:
        jax.block_until_ready(solve(op0))
        return NUM_STARTS

    few = [tuple(np.asarray(leaf[i]) for leaf in (op0.Q, op0.R, op0.v)) for i in range(3)]

    def plain() -> int:
        for i, y in enumerate(few):
            runge_kutta(y, np.asarray(op0.T[i]))
        return len(few)

    return ours, plain


def runge_kutta(y: tuple, T: np.ndarray) -> tuple:
    """The classical method of order 4 with `STEP_SIZE`, from 0 to `LAST_TIME`."""

    def moved(y, dy, h):
        return tuple(a + h * b for a, b in zip(y, dy, strict=True))

    h = STEP_SIZE
    for _ in range(round(LAST_TIME / h)):
        k1 = velocity(y, T)
        k2 = velocity(moved(y, k1, h / 2), T)
        k3 = velocity(moved(y, k2, h / 2), T)
        k4 = velocity(moved(y, k3, h), T)
        mean = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True)]
        y = moved(y, mean, h)
    return y


def velocity(y: tuple, T: np.ndarray) -> tuple:
    """The equations of motion of erf students under direct feedback, over all units at once."""
    Q, R, v = y
    K, F = len(v), FEEDBACK
    C = np.block([[Q, R], [R.T, T]])
    u, q = np.concatenate([-v, V_TEACHER]), 1 + np.diag(C)
    i, a, b = np.ix_(range(K), range(len(C)), range(len(C)))
    L3 = q[i] * q[b] - C[i, b] ** 2
    I3 = 2 / np.pi * (C[a, b] * q[i] - C[i, a] * C[i, b]) / (np.sqrt(L3) * q[i])
    Z = I3 @ u
    i, k, a, b = np.ix_(range(K), range(K), range(len(C)), range(len(C)))
    ik, ia, ib, ka, kb, ab = C[i, k], C[i, a], C[i, b], C[k, a], C[k, b], C[a, b]
    L4 = q[i] * q[k] - ik**2
    L0 = L4 * ab - ka * kb * q[i] - ia * ib * q[k] + ik * (ia * kb + ib * ka)
    L1 = L4 * q[a] - ka**2 * q[i] - ia**2 * q[k] + 2 * ik * ia * ka
    L2 = L4 * q[b] - kb**2 * q[i] - ib**2 * q[k] + 2 * ik * ib * kb
    I4 = 4 / np.pi**2 * np.arcsin(np.clip(L0 / np.sqrt(L1 * L2), -1, 1)) / np.sqrt(L4)
    I2 = 2 / np.pi * np.arcsin(C[:K] / np.sqrt(np.outer(q[:K], q)))
    drift = F[:, None] * Z[:, :K]
    dQ = RATE * (drift + drift.T) + RATE**2 * np.outer(F, F) * (I4 @ u @ u)
    return dQ, RATE * F[:, None] * Z[:, K:], RATE * I2 @ u


def simulators() -> tuple[Callable[[], int], Callable[[], int]]:
    """Many runs at once through order parameters, and one run with its weights."""
    setup = theory.TeacherStudent(learning_rate=RATE, second_learning_rate=RATE)
    keys, op0 = jax.random.split(jax.random.key(1), NUM_RUNS), starts(NUM_RUNS)
    times = np.array([0.0, NUM_STEPS / DIM])
    simulate = jax.jit(jax.vmap(lambda key, op: theory.simulate(key, setup, op, DIM, times)))

    def ours() -> int:
        jax.block_until_ready(simulate(keys, op0))
        return NUM_RUNS * NUM_STEPS

    def plain() -> int:
        random = np.random.default_rng(0)
        w, teacher = random.normal(size=(2, DIM)), random.normal(size=(2, DIM))
        v = random.normal(size=2)
        for _ in range(NUM_STEPS):
            x = random.normal(size=DIM)
            fields = w @ x / DIM**0.5
            g = special.erf(fields / 2**0.5)
            error = V_TEACHER @ special.erf(teacher @ x / (2 * DIM) ** 0.5) - v @ g
            slope = (2 / np.pi) ** 0.5 * np.exp(-(fields**2) / 2)
            w += np.outer(RATE / DIM**0.5 * error * FEEDBACK * slope, x)
            v += RATE / DIM * error * g
        return NUM_STEPS

    return ours, plain
