"""What a recipe's test leaves behind: its programs are thrown away, its runs kept."""

import jax
import pytest


@pytest.fixture(autouse=True)
def forget_programs():
    """Compiled programs of dozens of recipes in one process would exhaust its memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def trained():
    """Runs by kind: shrunk recipes have many in common, and one of each kind is trained."""
    return {}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One folder for all: studies that share cases, or runs, make them once."""
    return tmp_path_factory.mktemp("results")
