"""Every study of cases runs shrunk from first case to page."""

import pytest

from dfa_jax.report.study import Study
from tests.recipes.shrunk import check_page, of_kind, whole


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.parametrize("name", whole(of_kind(Study)))
def test_shrunk_study_runs_to_its_page(name, results):
    """Oracle: invariant; every case is on record, every finding in the table and on the page."""
    check_page(name, results)
