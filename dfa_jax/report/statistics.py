"""Means over seeds with intervals, and paired differences between variants."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
SIGNIFICANT = 0.01
"""The p-value below which a difference is called one."""


class Summary(NamedTuple):
    """Mean of a quantity over seeds.

    Attributes:
        mean: in the quantity's unit.
        half_width: half of the 95 % interval of the mean; None for a single seed.
        num_seeds: how many values went in.
    """

    mean: float
    half_width: float | None
    num_seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval; the mean itself twice for a single seed."""
        half_width = self.half_width or 0.0
        return self.mean - half_width, self.mean + half_width


class Difference(NamedTuple):
    """A variant minus its baseline on the seeds that both have.

    Attributes:
        mean: mean difference, in the quantity's unit.
        half_width: half of its 95 % interval; None for a single pair.
        p_value: of the two-sided paired t test; None for a single pair or differences all equal.
        num_seeds: pairs.
    """

    mean: float
    half_width: float | None
    p_value: float | None
    num_seeds: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and Student's t interval, `t_{0.975, n-1} s / sqrt(n)`.

    >>> summarise([1.0, 2.0, 3.0])
    Summary(mean=2.0, half_width=2.484..., num_seeds=3)
    """
    import scipy.stats  # slow to import

    count = len(values)
    if count == 0:
        raise ValueError("no values to summarise; expected one per seed")
    mean = float(np.mean(values))
    if count == 1:
        return Summary(mean, None, 1)
    quantile = float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return Summary(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(count), count)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """Compares two variants seed by seed; None if no seed is in both.

    Args:
        values: the variant's, by seed.
        baseline: those of the variant that it is compared with.

    >>> paired_difference({0: 1.5, 1: 2.5, 2: 3.8}, {0: 1.0, 1: 2.0, 2: 3.0}).p_value
    0.02...
    """
    import scipy.stats  # slow to import

    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        return None
    ours, theirs = [values[seed] for seed in shared], [baseline[seed] for seed in shared]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, half_width, count = summarise(differences)
    # Equal differences leave the t statistic undefined; scipy would answer 0 or nan with a warning.
    spread = len(set(differences)) > 1
    p_value = float(scipy.stats.ttest_rel(ours, theirs).pvalue) if spread else None
    return Difference(mean, half_width, p_value, count)
