"""A recipe: which runs make a paper's table or figure, and what the paper found."""

import dataclasses
import pathlib
import runpy
from collections.abc import Mapping
from typing import Any, Literal

from dfa_jax.errors import InputError, unknown
from dfa_jax.train.config import TrainConfig

BASELINE = "backprop"
"""The rule that the others are compared with."""

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"

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
        name: path under `configs/` without the suffix; `load` sets it.
        header: the file's docstring; `load` sets it.
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


def names() -> list[str]:
    """All recipes, by path under `configs/` without the suffix."""
    paths = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.py"))
    return sorted(path.with_suffix("").as_posix() for path in paths)


def load(name: str) -> Recipe:
    """The `RECIPE` of a file under `configs/`, with its name and header.

    Raises:
        InputError: there is no such file, or it holds no recipe.

    >>> load("quickstart").name
    'quickstart'
    """
    module = run_file(name)
    found = module.get("RECIPE")
    if not isinstance(found, Recipe):
        raise InputError(f"configs/{plain(name)}.py defines no RECIPE; see configs/quickstart.py")
    return dataclasses.replace(found, name=plain(name), header=(module["__doc__"] or "").strip())


def load_config(name: str) -> TrainConfig:
    """The `CONFIG` of a file under `configs/`: what `scripts/train.py NAME` trains.

    Raises:
        InputError: there is no such file, or it holds no configuration.
    """
    found = run_file(name).get("CONFIG")
    if not isinstance(found, TrainConfig):
        raise InputError(f"configs/{plain(name)}.py defines no CONFIG; see configs/quickstart.py")
    return found


def run_file(name: str) -> dict[str, Any]:
    """What a file defines; `configs/NAME.py`, as a shell completes it, is understood too."""
    if plain(name) not in names():
        raise InputError(unknown("recipe", plain(name), names()))
    return runpy.run_path(str(CONFIGS / f"{plain(name)}.py"))


def plain(name: str) -> str:
    """A recipe's name without the folder and the suffix."""
    return name.removeprefix("configs/").removesuffix(".py")
