"""Which runs a recipe needs, and which of them its records already hold."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from dfa_jax.errors import InputError
from dfa_jax.report.recipe import Recipe
from dfa_jax.train import config as configs
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import RunRecord

RECORDS = "records.jsonl"
"""A recipe's runs, in its folder under the results."""

REMEDY = "--overwrite replaces them"


class Planned(NamedTuple):
    """One run of a recipe."""

    variant: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Where its directory is, below the one that it is kept in while it is made."""
        return f"runs/{self.variant}/seed_{self.seed}"


def plan(recipe: Recipe) -> list[Planned]:
    """All runs in order: seed by seed, variants in the recipe's order, so a stop leaves balance."""
    return [
        Planned(variant, seed, dataclasses.replace(config, seed=seed))
        for seed in recipe.seeds
        for variant, config in recipe.variants.items()
    ]


def located(config: TrainConfig, data_dir: pathlib.Path | None) -> TrainConfig:
    """The configuration with its data elsewhere on disk."""
    if data_dir is None or not hasattr(config.data, "data_dir"):
        return config
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, data_dir=str(data_dir))
    )


def missing(recipe: Recipe, held: Sequence[RunRecord]) -> list[Planned]:
    """The runs that are not among these, in the order of the plan."""
    done = {(record.variant, record.seed) for record in held}
    return [one for one in plan(recipe) if (one.variant, one.seed) not in done]


def changes(config: TrainConfig, record: RunRecord) -> list[str]:
    """The settings in which a recorded run differs; its seed is none, nor is its mesh."""
    return configs.run_changes(record.config, dataclasses.replace(config, seed=record.seed))


def outdated(recipe: Recipe, records: Sequence[RunRecord]) -> list[RunRecord]:
    """Records of the recipe's variants that another configuration made."""
    return [
        record
        for record in records
        if record.variant in recipe.variants and changes(recipe.variants[record.variant], record)
    ]


def matching(
    recipe: Recipe, records: Sequence[RunRecord], *, remedy: str = REMEDY
) -> list[RunRecord]:
    """One record per variant and seed, in the order of the recipe's variants, then by seed.

    Raises:
        InputError: a record of a variant was made with another configuration; the remedy is told.
    """
    old = outdated(recipe, records)
    if old:
        differences = "; ".join(changes(recipe.variants[old[0].variant], old[0])[:4])
        raise InputError(
            f"{len(old)} recorded runs of '{recipe.name}' have another configuration, the first"
            f" '{old[0].variant}' seed {old[0].seed} ({differences}); {remedy}"
        )
    order = {variant: place for place, variant in enumerate(recipe.variants)}
    found = {(order[r.variant], r.seed): r for r in records if r.variant in order}
    return [found[place] for place in sorted(found)]
