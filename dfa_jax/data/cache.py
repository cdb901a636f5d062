"""Decoded arrays kept between runs, because decoding 70,000 images takes half a minute."""

import contextlib
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np


def cached_arrays(name: str, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays under `name` from the user's cache, or else from `build`, which then fills it.

    The cache never fails a run: a file that cannot be read is built again, and a folder that cannot
    be written is left alone. `name` must change whenever what `build` returns would.
    """
    path = cache_directory() / f"{name}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        arrays = build()
    with contextlib.suppress(OSError):  # read-only or full: only the next run is slower
        _write(path, arrays)
    return arrays


def cache_directory() -> pathlib.Path:
    """`$XDG_CACHE_HOME/dfa_jax`, by default `~/.cache/dfa_jax`."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(root) / "dfa_jax"


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Through a temporary file: another process sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(name, path)
    finally:
        pathlib.Path(name).unlink(missing_ok=True)
