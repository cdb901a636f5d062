"""A recipe: which runs make a paper's table or figure, and what the paper found."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from dfa_jax.errors import InputError, unknown
from dfa_jax.train.config import TrainConfig

BASELINE = "backprop"
"""The rule that the others are compared with."""

Provenance = Literal[
    "paper abstract", "paper table", "second-hand", "memory, unverified", "own measurement"
]
"""How a number reached this repository; printed beside the number wherever it appears."""

Quantity = Literal["test error", "train error"]
"""What was measured at the end of training, in per cent."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """A number to compare with.

    Attributes:
        variant: the recipe's variant that it belongs to.
        quantity: what was measured.
        value: in per cent.
        tolerance: the source's own interval, +- in per cent; None if it gives none.
        source: where it stands, e.g. "Nøkland 2016, table 1".
        provenance: how it was read there.
    """

    variant: str
    quantity: Quantity
    value: float
    tolerance: float | None
    source: str
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to run and how to show it.

    Attributes:
        title: one line.
        paper: its citation, or "none".
        minutes: the whole recipe's duration, measured on two cores.
        variants: configurations by label, "rule" or "group/rule", cheap ones first.
        seeds: each variant runs once a seed.
        expected: numbers to compare with.
        figure: name of the figure in `report.figure.FIGURES`.
        name: path under `configs/` without the suffix; `catalogue.load` sets it.
        header: the file's docstring; `catalogue.load` sets it.
    """

    title: str
    paper: str
    minutes: float
    variants: Mapping[str, TrainConfig]
    seeds: tuple[int, ...]
    expected: tuple[Expected, ...] = ()
    figure: Literal["learning_curves", "depth"] = "learning_curves"
    name: str = ""
    header: str = ""

    def __post_init__(self):
        if not self.variants or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"recipe '{self.title}' has {len(self.variants)} variants and seeds {self.seeds};"
                " expected at least one variant, and seeds that differ"
            )
        for number in self.expected:
            if number.variant not in self.variants:
                raise InputError(unknown("variant", number.variant, self.variants))

    def with_seeds(self, count: int) -> "Recipe":
        """The recipe with seeds 0, 1, ..., count - 1."""
        if count < 1:
            raise InputError(f"{count} seeds; expected at least 1")
        return dataclasses.replace(self, seeds=tuple(range(count)))


def group_of(variant: str) -> str:
    """What stands before the last "/" of a label.

    >>> group_of("tanh/backprop"), group_of("backprop")
    ('tanh', '')
    """
    return variant.rpartition("/")[0]
