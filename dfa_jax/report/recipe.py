"""A recipe: which runs make a paper's table or figure, and what the paper found."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Literal

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
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.py"))


def load(name: str) -> Recipe:
    """The recipe of a file under `configs/`; `configs/NAME.py` is understood too.

    Raises:
        InputError: there is no such file, or it holds no recipe.
    """
    name = name.removeprefix("configs/").removesuffix(".py")
    if name not in names():
        raise InputError(unknown("recipe", name, names()))
    return load_file(CONFIGS / f"{name}.py", name)


def load_file(path: pathlib.Path, name: str) -> Recipe:
    """The recipe of any file: its `RECIPE`, with its name and header."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"{path.name} defines no RECIPE of type Recipe; see configs/quickstart.py")
    return dataclasses.replace(recipe, name=name, header=(module.__doc__ or "").strip())
