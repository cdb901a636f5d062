"""Times: what is asked for, and running until then."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int32

from dfa_jax.errors import InputError


def check_times(times: Any) -> None:
    """Refuses times that do not ascend from 0 or later; traced ones pass."""
    if isinstance(times, Tracer):
        return
    values = np.asarray(times)
    if values.ndim != 1 or len(values) < 2 or values[0] < 0 or not np.all(np.diff(values) > 0):
        raise InputError(
            f"times are {values}; expected two or more ascending numbers from 0 on, in steps per"
            " input dimension"
        )


def log_times(first: float, last: float, number: int) -> np.ndarray:
    """0, then times evenly spaced on a logarithmic axis.

    >>> log_times(1.0, 100.0, 4).tolist()
    [0.0, 1.0, 10.0, 100.0]
    """
    return np.concatenate([[0.0], np.geomspace(first, last, number - 1)])


def steps_at(times: Any, dim: int) -> Int32[Array, " time"]:
    """Steps until each time: `round(t D)`."""
    return jnp.asarray(np.round(np.asarray(times) * dim).astype(np.int32))


def run_until(
    step: Callable[[Array, Any], Any],
    state: Any,
    steps: Int32[Array, " time"],
    report: Callable[[Any], Any],
) -> Any:
    """`report(state)` after each of these numbers of steps; `step` maps (number, state)."""

    def until(carry: tuple[Any, Array], end: Array):
        state, start = carry
        state = jax.lax.fori_loop(start, end, step, state)
        return (state, end), report(state)

    _, found = jax.lax.scan(until, (state, jnp.zeros((), jnp.int32)), steps)
    return found
