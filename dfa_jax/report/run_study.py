"""A study of training runs: what a recipe trains, drawn and judged in the paper's own terms.

A `Recipe` alone compares test errors. Here the runs' records go to functions of the file that asks
more of them: a law fitted through many runs, norms along a run.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.shrink import shrink
from dfa_jax.report.style import Theme
from dfa_jax.train.records import RunRecord


@dataclasses.dataclass(frozen=True)
class RunStudy:
    """What to train, how to draw it, and what it should show.

    Attributes:
        title: one line.
        paper: its citation.
        minutes: duration of all runs, measured on two cores.
        runs: what is trained.
        draw: makes the figure from the runs that are in.
        findings: compares what came with what was expected; needs all runs. Either may be a
            `functools.partial` that says how many bootstrap samples it draws, as `num_samples`.
        shares: another study whose runs and records these are; "" for its own.
        rate_doubt: why the learning rates are not established, a sentence; then no finding is
            judged, and table and figure say so. "" if they are.
        name: path under `configs/` without the suffix; `catalogue.load` sets it.
        header: the file's docstring; `catalogue.load` sets it.
    """

    title: str
    paper: str
    minutes: float
    runs: Recipe
    draw: Callable[[Sequence[RunRecord], Theme], Figure]
    findings: Callable[[Sequence[RunRecord]], Sequence[Finding]]
    shares: str = ""
    rate_doubt: str = ""
    name: str = ""
    header: str = ""

    @property
    def source(self) -> str:
        """The folder under `results/` whose records it reads."""
        return self.shares or self.name

    @property
    def recipe(self) -> Recipe:
        """What is trained, under the name of the folder where its records are."""
        return dataclasses.replace(self.runs, name=self.source)

    @property
    def needed(self) -> list[str]:
        """All runs, by name."""
        return [
            f"{variant}, seed {seed}" for seed in self.runs.seeds for variant in self.runs.variants
        ]

    def only(self, pattern: str) -> "RunStudy":
        """The study with those variants alone whose labels match a glob pattern.

        Raises:
            InputError: there are none.
        """
        return dataclasses.replace(self, runs=self.runs.only(pattern))

    def with_seeds(self, count: int) -> "RunStudy":
        """The study with seeds 0, 1, ..., count - 1."""
        return dataclasses.replace(self, runs=self.runs.with_seeds(count))

    def shrink(self) -> "RunStudy":
        """The study with small runs, and two bootstrap samples in place of many."""
        draw, findings = _shrunk(self.draw), _shrunk(self.findings)
        return dataclasses.replace(self, runs=shrink(self.runs), draw=draw, findings=findings)

    def results(self, held: Sequence[RunRecord]) -> Sequence[RunRecord]:
        """What `draw` and `findings` get: the records themselves."""
        return held

    @staticmethod
    def label(record: RunRecord) -> str:
        """Which run it is."""
        return f"{record.variant}, seed {record.seed}"


def _shrunk(function: Callable[..., Any]) -> Callable[..., Any]:
    """With two bootstrap samples, if it is bound to a number of them."""
    if isinstance(function, functools.partial) and "num_samples" in function.keywords:
        return functools.partial(function, num_samples=2)
    return function
