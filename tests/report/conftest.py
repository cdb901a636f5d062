"""The made-up recipe and its records; imported late, since jaxtyping's hook comes first."""

import jax
import pytest


@pytest.fixture(autouse=True)
def clear_caches():
    """JAX's own. Nothing is forgotten in these tests, or each of their short jobs would compile anew."""
    real = jax.clear_caches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "clear_caches", lambda: None)
        yield real


@pytest.fixture
def recipe():
    from tests.report import made_up

    return made_up.RECIPE


@pytest.fixture
def records():
    from tests.report import made_up

    return made_up.records()
