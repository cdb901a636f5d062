"""Curves over seeds, ready to draw: records in, arrays out."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dfa_jax.report.statistics import Summary, summarise
from dfa_jax.train.records import Evaluation, RunRecord

ALIGNMENT = "gradient_alignment/"
"""Prefix of the metric that holds a site's gradient alignment, a cosine."""


class Series(NamedTuple):
    """Mean and 95 % interval along an axis.

    Attributes:
        x: where, `[point]`.
        mean: over seeds, `[point]`.
        low, high: ends of the interval, `[point]`; equal to the mean for a single seed.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def from_summaries(points: Iterable[tuple[float, Summary]]) -> Series:
    """A series of summarised points, in order of x."""
    table = [(x, summary.mean, *summary.interval) for x, summary in sorted(points)]
    return Series(*np.array(table, float).reshape(-1, 4).T)


def over_epochs(
    runs: Sequence[RunRecord], quantity: Callable[[Evaluation], float | None]
) -> Series:
    """A quantity of the evaluations against epochs; points where it is absent are left out."""
    values: dict[float, list[float]] = {}
    for run in runs:
        for evaluation in run.curve:
            value = quantity(evaluation)
            if value is not None and np.isfinite(value):
                values.setdefault(evaluation.epoch, []).append(value)
    return from_summaries((epoch, summarise(found)) for epoch, found in values.items())


def test_error(evaluation: Evaluation) -> float:
    """Test error, %; the test loss where there is no accuracy."""
    return _error(evaluation.test_accuracy, evaluation.test_loss)


def train_error(evaluation: Evaluation) -> float:
    """As `test_error`, over the training batches since the previous evaluation."""
    return _error(evaluation.train_accuracy, evaluation.train_loss)


def _error(accuracy: float | None, loss: float) -> float:
    return loss if accuracy is None else 100 * (1 - accuracy)


def has_errors(runs: Iterable[RunRecord]) -> bool:
    """Whether every run has an accuracy; else losses stand where errors would."""
    return all(e.test_accuracy is not None for run in runs for e in run.curve)


def final_train_error(run: RunRecord) -> float:
    """Training error at the end of a run, %, or loss.

    Over the last evaluation interval's batches; where that is a remainder, shorter than half of the
    one before, over both.
    """
    ends = [0, *(evaluation.step for evaluation in run.curve)]
    steps = np.diff(ends)
    errors = [train_error(evaluation) for evaluation in run.curve]
    if len(steps) > 1 and 2 * steps[-1] < steps[-2]:
        return float(np.average(errors[-2:], weights=steps[-2:]))
    return errors[-1]


def probe_error(evaluation: Evaluation) -> float | None:
    """Test error of a linear classifier fitted to the features, %, where there was one."""
    accuracy = evaluation.metrics.get("probe_test_accuracy")
    return None if accuracy is None else 100 * (1 - accuracy)


def alignment(evaluation: Evaluation) -> dict[str, float]:
    """Gradient alignment by site."""
    found = evaluation.metrics.items()
    return {name.removeprefix(ALIGNMENT): v for name, v in found if name.startswith(ALIGNMENT)}


def mean_alignment(evaluation: Evaluation) -> float:
    """Gradient alignment, mean over sites."""
    return float(np.mean(list(alignment(evaluation).values())))


def aligned_sites(runs: Sequence[RunRecord]) -> list[str]:
    """Sites with a finite gradient alignment anywhere, in the order of their names.

    Numbers in names count by value, so numbered layers are in forward order (records are not: what
    comes out of a compiled function is sorted by letters).
    """
    sites: set[str] = set()
    for run in runs:
        for evaluation in run.curve:
            sites |= {s for s, value in alignment(evaluation).items() if np.isfinite(value)}
    return sorted(sites, key=lambda site: [part.zfill(9) for part in re.split(r"(\d+)", site)])
