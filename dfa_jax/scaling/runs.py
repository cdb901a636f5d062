"""One evaluated point of a training curve, and what a set of them must satisfy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dfa_jax.errors import InputError, unknown


class Run(NamedTuple):
    """A network's loss after so many tokens: one point of one training curve.

    Points that agree in `arm`, `size` and `seed` are one curve; they differ in tokens, and their
    deviations from a law are correlated.

    Attributes:
        arm: the learning rule, or what else is compared.
        size: name of the rung of the ladder of sizes.
        num_params: N, parameters, by the study's convention.
        num_tokens: D, tokens seen.
        flops: C, FLOPs spent, by the study's convention.
        loss: nats per token, of held-out text.
        seed: of the run.
    """

    arm: str
    size: str
    num_params: int
    num_tokens: int
    flops: float
    loss: float
    seed: int

    @property
    def curve(self) -> tuple[str, str, int]:
        """What the points of one training curve share."""
        return self.arm, self.size, self.seed


def check(runs: Sequence[Run]) -> None:
    """Refuses an empty set and numbers that have no logarithm.

    Raises:
        InputError: names the run, the field, its value.
    """
    if not runs:
        raise InputError("there are no runs; expected at least one evaluated point")
    for run in runs:
        for name in ("num_params", "num_tokens", "flops", "loss"):
            value = getattr(run, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"{name} is {value} in arm '{run.arm}', size '{run.size}', seed {run.seed}"
                    f" after {run.num_tokens} tokens; expected a finite positive number: leave"
                    " diverged points out"
                )


def of_arm(runs: Sequence[Run], arm: str) -> list[Run]:
    """The runs of one arm.

    Raises:
        InputError: there are none.
    """
    found = [run for run in runs if run.arm == arm]
    if not found:
        raise InputError(unknown("arm", arm, dict.fromkeys(run.arm for run in runs)))
    return found


def curve_indices(runs: Sequence[Run]) -> Int[np.ndarray, " points"]:
    """Which training curve each point lies on, numbered as they come."""
    numbers = {curve: i for i, curve in enumerate(dict.fromkeys(run.curve for run in runs))}
    return np.array([numbers[run.curve] for run in runs])
