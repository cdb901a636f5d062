"""A recipe: which runs make a paper's table or figure, and what the paper found."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from dfa_jax.errors import InputError, select, unknown
from dfa_jax.train.config import TrainConfig

_NEVER = 1e6  # epochs between evaluations, of which the last step is always one
_MOST_WARMUP = 0.9  # of a trial
BASELINE = "backprop"
"""The registered name of the rule that the others are compared with."""

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
class Order:
    """Which of two variants has the lower test error, according to a source.

    Attributes:
        better: the variant with the lower error.
        worse: the other one.
        source: where that stands.
    """

    better: str
    worse: str
    source: str


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How each variant gets its learning rate before its runs, see `report.tuning`.

    From the variant's own rate on, neighbours of the best rate so far are tried until both are
    known: by the error, or the loss of text, on a validation split cut from the training set.

    Attributes:
        num_validation: training examples, or tokens of text, set aside in a trial.
        num_epochs: length of a trial, passes over the training set; or
        fraction: its length over that of the run, whose warm-up it keeps.
        factor: between neighbouring rates.
        seed: of all trials.
    """

    num_validation: int
    num_epochs: float = 0.0
    fraction: float = 0.0
    factor: float = 3.0
    seed: int = 0

    def __post_init__(self):
        lengths = (self.num_epochs, self.fraction)
        if not (self.factor > 1 and min(lengths) == 0 < max(lengths) and self.num_validation > 0):
            raise InputError(
                f"tuning has factor {self.factor}, num_epochs {self.num_epochs}, fraction"
                f" {self.fraction}, num_validation {self.num_validation}; expected a factor above"
                " 1, a positive num_validation, and one of the lengths positive"
            )

    def shorten(self, config: TrainConfig) -> TrainConfig:
        """The run made as short as a trial; a fraction of it is its own beginning."""
        if self.num_epochs:
            return dataclasses.replace(
                config, num_epochs=self.num_epochs, num_tokens=0, eval_every=self.num_epochs
            )
        warmup = min(_MOST_WARMUP, config.optimizer.warmup_fraction / self.fraction)
        return dataclasses.replace(
            config,
            num_epochs=self.fraction * config.num_epochs,
            num_tokens=round(self.fraction * config.num_tokens),
            eval_every=_NEVER,
            optimizer=dataclasses.replace(config.optimizer, warmup_fraction=round(warmup, 4)),
        )


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
        orders: which variant should be better than which.
        tuning: how learning rates are found; None for those of the variants.
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
    orders: tuple[Order, ...] = ()
    tuning: Tuning | None = None
    figure: Literal["learning_curves", "depth"] = "learning_curves"
    name: str = ""
    header: str = ""

    def __post_init__(self):
        if not self.variants or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"recipe '{self.title}' has {len(self.variants)} variants and seeds {self.seeds};"
                " expected at least one variant, and seeds that differ"
            )
        for variant in self.compared:
            if variant not in self.variants:
                raise InputError(unknown("variant", variant, self.variants))

    @property
    def source(self) -> str:
        """The folder under `results/` that has its records; a study may read another's."""
        return self.name

    @property
    def compared(self) -> list[str]:
        """The variants that numbers and orders are about."""
        ordered = [variant for order in self.orders for variant in (order.better, order.worse)]
        return [*(number.variant for number in self.expected), *ordered]

    def only(self, pattern: str) -> "Recipe":
        """The recipe with those variants alone whose labels match a glob pattern.

        Raises:
            InputError: there are none.
        """
        kept = select("variant", pattern, self.variants)
        return dataclasses.replace(
            self,
            variants={label: self.variants[label] for label in kept},
            expected=tuple(number for number in self.expected if number.variant in kept),
            orders=tuple(o for o in self.orders if {o.better, o.worse} <= set(kept)),
        )

    def with_seeds(self, count: int) -> "Recipe":
        """The recipe with seeds 0, 1, ..., count - 1."""
        if count < 1:
            raise InputError(f"{count} seeds; expected at least 1")
        return dataclasses.replace(self, seeds=tuple(range(count)))


def expected_errors(
    numbers: Mapping[str, tuple[float, float]], source: str, provenance: Provenance
) -> tuple[Expected, ...]:
    """Test and train errors, %, by variant, from a source that gives no intervals.

    >>> [one.quantity for one in expected_errors({"a": (2.0, 0.0)}, "table 1", "paper table")]
    ['test error', 'train error']
    """
    return tuple(
        Expected(variant, quantity, value, None, source, provenance)
        for variant, errors in numbers.items()
        for quantity, value in zip(get_args(Quantity), errors, strict=True)
    )


def orders(pairs: Iterable[tuple[str, str]], source: str, *, group: str = "") -> tuple[Order, ...]:
    """Orders of the better and the worse variant of each pair, which may lie in one group.

    >>> orders([("a", "b")], "table 1", group="tanh")[0].better
    'tanh/a'
    """
    within = f"{group}/" if group else ""
    return tuple(Order(within + better, within + worse, source) for better, worse in pairs)


def group_of(variant: str) -> str:
    """What stands before the last "/" of a label.

    >>> group_of("tanh/backprop"), group_of("backprop")
    ('tanh', '')
    """
    return variant.rpartition("/")[0]


def label_of(variant: str) -> str:
    """What stands behind the last "/" of a label; it has a colour and marker of its own.

    >>> label_of("tanh/backprop"), label_of("backprop")
    ('backprop', 'backprop')
    """
    return variant.rpartition("/")[2]
