"""What the benchmarks share: ratios of times taken in turns, and the line they leave behind."""

import json
import pathlib
from typing import Any

import numpy as np

from dfa_jax.train import records


def quartiles(ratios: np.ndarray) -> dict[str, float]:
    """Median and quartiles of the ratios, one a round."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "ratio": round(float(middle), 4),
        "first_quartile": round(float(low), 4),
        "third_quartile": round(float(high), 4),
    }


def shown(found: dict[str, float], digits: int = 3) -> str:
    """`0.734 [0.701, 0.760]`."""
    middle, low, high = (
        f"{found[name]:.{digits}f}" for name in ("ratio", "first_quartile", "third_quartile")
    )
    return f"{middle} [{low}, {high}]"


def append(path: pathlib.Path | None, **row: Any) -> None:
    """Adds a line of JSON with the environment to a file, if one was asked for."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"environment": records.environment(), **row}) + "\n")
