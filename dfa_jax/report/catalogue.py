"""Which recipes there are, and what their files hold."""

import dataclasses
import pathlib
import runpy
from typing import Any

from dfa_jax.errors import InputError, unknown
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.study import Study
from dfa_jax.train.config import TrainConfig

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def names() -> list[str]:
    """All recipes, by path under `configs/` without the suffix."""
    paths = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.py"))
    return sorted(path.with_suffix("").as_posix() for path in paths)


def load(name: str) -> Recipe | Study | RunStudy:
    """The `RECIPE` of a file under `configs/`, with its name and header.

    Raises:
        InputError: there is no such file, or it holds no recipe.

    >>> load("quickstart").name
    'quickstart'
    """
    module = run_file(name)
    found = module.get("RECIPE")
    if not isinstance(found, Recipe | Study | RunStudy):
        raise InputError(f"configs/{plain(name)}.py defines no RECIPE; see configs/quickstart.py")
    return dataclasses.replace(found, name=plain(name), header=(module["__doc__"] or "").strip())


def load_runs(name: str) -> Recipe:
    """The training runs of a recipe: itself, or those that a study reads.

    Raises:
        InputError: there is no such file, or it has none.
    """
    found = load(name)
    if isinstance(found, RunStudy):
        return found.recipe
    if isinstance(found, Recipe):
        return found
    raise InputError(f"'{name}' has no training runs to share out; use scripts/reproduce.py")


def load_study(name: str) -> Study:
    """The study of a file under `configs/`, for another that shares its cases.

    Raises:
        InputError: there is no such file, or it holds a recipe of training runs.
    """
    found = load(name)
    if not isinstance(found, Study):
        raise InputError(f"configs/{plain(name)}.py is no study, whose cases could be shared")
    return found


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
