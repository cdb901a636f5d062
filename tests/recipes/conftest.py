"""What every recipe's test leaves behind is thrown away."""

import jax
import pytest


@pytest.fixture(autouse=True)
def forget_programs():
    """Compiled programs of dozens of recipes in one process would exhaust its memory maps."""
    yield
    jax.clear_caches()
