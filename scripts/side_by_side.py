"""What the benchmarks share: ratios of times taken in turns, and the line they leave behind."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dfa_jax.report import cost
from dfa_jax.train import loop, records
from dfa_jax.types import Batch


class Taker:
    """A network that takes the same steps again and again, as the trainer takes them.

    Args:
        program: rule, network and optimiser.
        data: the examples.
        order: which of them make each step, `[step, batch]`.
    """

    def __init__(self, program: loop.Program, data: Batch, order: np.ndarray):
        self.program, self.data, self.order = program, jax.device_put(data), order
        example = jax.tree.map(lambda a: a[: order.shape[1]], self.data)
        self.state = loop.draw_state(jax.random.key(0), None, example, program=program)

    def __call__(self) -> float:
        """The mean loss of the steps."""
        number = len(self.order)
        self.state, noted = loop.run_steps(
            self.state, self.data, self.order, number, program=self.program
        )
        jax.block_until_ready(self.state)
        return float(noted["loss"].mean())


def in_turns(
    takers: Mapping[str, Callable[[], Any]], rounds: int, base: str
) -> dict[str, dict[str, float]]:
    """Lets everyone run in each round, after one round that does not count.

    Returns:
        By name: the median in milliseconds, and the ratios to `base` within each round.
    """
    seconds = cost.in_turns({name: (taker, ()) for name, taker in takers.items()}, rounds)
    return {
        name: {
            "milliseconds": round(1e3 * float(np.median(times)), 3),
            **quartiles(times / seconds[base]),
        }
        for name, times in seconds.items()
    }


def quartiles(ratios: np.ndarray) -> dict[str, float]:
    """Median and quartiles of the ratios, one a round."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "ratio": round(float(middle), 4),
        "first_quartile": round(float(low), 4),
        "third_quartile": round(float(high), 4),
    }


def shown(found: dict[str, float], digits: int = 3) -> str:
    """`0.734 [0.701, 0.760]`."""
    middle, low, high = (
        f"{found[name]:.{digits}f}" for name in ("ratio", "first_quartile", "third_quartile")
    )
    return f"{middle} [{low}, {high}]"


def append(path: pathlib.Path | None, **row: Any) -> None:
    """Adds a line of JSON with the environment to a file, if one was asked for."""
    if path is None:
        return
    records.append(path, {"environment": records.environment(), **row})
