"""Where the numbers of a page come from: environment, settings, single runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dfa_jax.report.series import final_train_error, test_error
from dfa_jax.train.config import flatten
from dfa_jax.train.records import RunRecord


def facts(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Seeds, commit, versions and device; several values where runs differ."""
    environments = [{"seeds": str(record.seed), **record.environment} for record in records]
    return merged(environments)


def settings(configs: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Recorded configurations by dotted name; several values where they differ."""
    return merged(
        {
            name: json.dumps(value).strip('"')
            for name, value in flatten(config).items()
            if name != "seed"
        }
        for config in configs
    )


def merged(tables: Iterable[dict[str, str]]) -> list[tuple[str, str]]:
    """Every name with its different values, in order of appearance.

    >>> merged([{"seed": "0", "rule": "shallow"}, {"seed": "1", "rule": "shallow"}])
    [('seed', '0, 1'), ('rule', 'shallow')]
    """
    found: dict[str, dict[str, None]] = {}
    for table in tables:
        for name, value in table.items():
            found.setdefault(name, {})[value or "unknown"] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


RUN_HEADINGS = (
    "variant",
    "seed",
    "test error, %",
    "train error, %",
    "test loss, nats",
    "parameters",
    "steps",
    "seconds",
    "commit",
)


def run_cells(record: RunRecord) -> tuple[str, ...]:
    """One run, under `RUN_HEADINGS`."""
    final, errors = record.final, ("-", "-")
    if final.test_accuracy is not None:
        errors = (f"{test_error(final):.2f}", f"{final_train_error(record):.2f}")
    return (
        record.variant,
        str(record.seed),
        *errors,
        f"{final.test_loss:.4f}",
        f"{record.num_params:,}",
        f"{record.num_steps:,}",
        f"{record.wall_seconds:.1f}",
        record.environment.get("commit") or "unknown",
    )
