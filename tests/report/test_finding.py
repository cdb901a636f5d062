"""Which findings hold."""

import pytest

from dfa_jax.report import finding


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([1.0, 2.0, 3.0], False),  # 2 +- 2.48: the interval of three seeds is wide
        ([1.9, 2.0, 2.1], True),  # 2 +- 0.25
        ([-1.9, -2.0, -2.1], False),
        ([0.1], True),  # a single seed has no interval
        ([0.0], False),
    ],
)
def test_positive(values, holds):
    """Oracle: Student's t interval by hand, `t = 4.303` for three values."""
    assert finding.positive("difference", values, "own").holds is holds
