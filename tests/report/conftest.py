"""The made-up recipe and its records; imported late, since jaxtyping's hook comes first."""

import pytest


@pytest.fixture
def recipe():
    from tests.report import made_up

    return made_up.RECIPE


@pytest.fixture
def records():
    from tests.report import made_up

    return made_up.records()
