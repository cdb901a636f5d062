"""Prepared TFDS sets for every test of this folder; imports no `dfa_jax`."""

import functools

import numpy as np
import pytest

from tests import prepared


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """An empty cache for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache" / "dfa_jax"


@pytest.fixture
def write_set(tmp_path):
    """`write_set(splits)` prepares `{split: (images, labels)}` and returns the data directory."""
    return functools.partial(prepared.write, tmp_path / "sets")


@pytest.fixture
def tiny():
    """Splits of random 4x4 images with distinct pixels, 20 to train on and 7 to test on."""
    draw = np.random.default_rng(0)
    return {
        split: (
            draw.integers(0, 256, (num, 4, 4, 1), dtype=np.uint8),
            np.arange(num, dtype=np.int32) % 3,
        )
        for split, num in {"train": 20, "test": 7}.items()
    }


@pytest.fixture
def write_texts(tmp_path):
    """`write_texts({split: documents})` prepares a set `tale` and returns the data directory."""
    return functools.partial(prepared.write_texts, tmp_path / "sets")
