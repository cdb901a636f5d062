"""What programs cost, side by side: memory and FLOPs from compilation, times taken in turns."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax.errors import InputError


class Program(NamedTuple):
    """A function and its arguments as `jax.ShapeDtypeStruct`s, in any trees."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def measure(
    programs: Mapping[str, Program],
    rounds: int = 0,
    *,
    bytes_to_run: float = float("inf"),
    num_labels: int = 10,
) -> dict[str, np.ndarray]:
    """Memory and FLOPs of every program, and the times of those that fit.

    In each round every program runs once, in a random order: a machine that slows down slows all of
    them, so ratios are to be taken within a round. One round before them does not count.

    Args:
        programs: by name.
        rounds: 0 for compilation alone.
        bytes_to_run: programs that need more beside their arguments are compiled only.
        num_labels: integers among the arguments lie below it.

    Returns:
        `megabytes`, `[program]`: what the compiled program needs beside its arguments;
        `gigaflops`, `[program]`, as XLA counts them, a loop's body once;
        `seconds`, `[program, round]`, NaN where a program was not run.

    Raises:
        InputError: there is no program, or a negative number of rounds.
    """
    if not programs or rounds < 0:
        raise InputError(
            f"{len(programs)} programs and {rounds} rounds; expected at least one program, and 0"
            " rounds for compilation alone, or more"
        )
    megabytes, gigaflops, running = [], [], {}
    for name, (function, shapes) in programs.items():
        compiled: Any = jax.jit(function).lower(*shapes).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        megabytes.append(temporary / 1e6)
        gigaflops.append(compiled.cost_analysis().get("flops", 0.0) / 1e9)
        if rounds and temporary <= bytes_to_run:
            running[name] = compiled, filled(shapes, num_labels)
    times = in_turns(running, rounds)
    absent = np.full(rounds, np.nan)
    return {
        "megabytes": np.array(megabytes),
        "gigaflops": np.array(gigaflops),
        "seconds": np.stack([times.get(name, absent) for name in programs]),
    }


def in_turns(
    running: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of every function with its arguments, `[round]`, by name."""
    times: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(-1, rounds):  # the first round is not counted
        for name in random.Random(turn).sample(list(running), len(running)):
            function, values = running[name]
            start = time.perf_counter()
            jax.block_until_ready(function(*values))
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def ratios(seconds: np.ndarray, base: int = 0) -> np.ndarray:
    """Median and quartiles of the times over those of program `base` in the same round.

    `[program, round]` to `[program, 3]`: median, first and third quartile; NaN where a program was
    not run.

    >>> ratios(np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 8.0]]))[1].tolist()
    [2.0, 1.5, 2.5]
    """
    return np.quantile(seconds / seconds[base], [0.5, 0.25, 0.75], axis=1).T


def filled(shapes: Any, num_labels: int = 10) -> Any:
    """Small random numbers, or labels, of these shapes; the same ones each time."""
    generator = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return generator.integers(0, num_labels, leaf.shape).astype(leaf.dtype)
        return (0.05 * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.device_put(jax.tree.map(fill, shapes))
