"""What was expected, what came, and whether they agree."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfa_jax.report.statistics import summarise


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of a study's table.

    Attributes:
        claim: what is compared, in words.
        expected: the number or relation, in words.
        source: how it is known: a theorem, the paper, a plot, or a measurement by somebody else.
        found: what our runs gave.
        holds: whether they agree.
    """

    claim: str
    expected: str
    source: str
    found: str
    holds: bool


def near(
    claim: str, values: Any, expected: float, tolerance: float, source: str, digits: int = 3
) -> Finding:
    """A mean over seeds, whose 95 % interval must meet `expected +- tolerance`."""
    found = summarise(_floats(values))
    gap = abs(found.mean - expected)
    return Finding(
        claim,
        f"{expected:.{digits}f} ± {tolerance:.{digits}f}",
        source,
        shown(values, digits),
        gap <= tolerance + (found.half_width or 0.0),
    )


def at_least(claim: str, values: Any, bound: float, source: str, digits: int = 3) -> Finding:
    """Every value reaches a bound."""
    holds = min(_floats(values)) >= bound
    return Finding(claim, f"at least {bound:g}", source, _range(values, digits), holds)


def at_most(claim: str, values: Any, bound: float, source: str, digits: int = 3) -> Finding:
    """No value exceeds a bound."""
    holds = max(_floats(values)) <= bound
    return Finding(claim, f"at most {bound:g}", source, _range(values, digits), holds)


def positive(claim: str, values: Any, source: str, digits: int = 3) -> Finding:
    """A mean over seeds, such as a paired difference, whose 95 % interval lies above 0."""
    low, _ = summarise(_floats(values)).interval
    return Finding(claim, "above 0", source, shown(values, digits), low > 0)


def count(claim: str, flags: Any, needed: int, source: str) -> Finding:
    """How many of several cases show something, and how many must."""
    flags = [bool(flag) for flag in np.ravel(flags)]
    expected = f"{needed} of {len(flags)}"
    return Finding(claim, expected, source, f"{sum(flags)} of {len(flags)}", sum(flags) >= needed)


def shown(values: Any, digits: int = 3) -> str:
    """`0.207 ± 0.004 (n = 5)`, or the number itself where there is one.

    >>> shown([1.0, 2.0, 3.0], digits=1), shown(0.5)
    ('2.0 ± 2.5 (n = 3)', '0.500')
    """
    found = summarise(_floats(values))
    if found.half_width is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ± {found.half_width:.{digits}f} (n = {found.num_seeds})"


def _range(values: Any, digits: int) -> str:
    numbers = _floats(values)
    if len(numbers) == 1:
        return f"{numbers[0]:.{digits}f}"
    return f"{min(numbers):.{digits}f} to {max(numbers):.{digits}f} (n = {len(numbers)})"


def _floats(values: Any) -> list[float]:
    return [float(value) for value in np.ravel(values)]


def summary(findings: Sequence[Finding]) -> str:
    """`7 of 8 expectations met.`"""
    met = sum(finding.holds for finding in findings)
    return f"{met} of {len(findings)} expectations met."
