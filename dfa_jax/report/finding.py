"""What was expected, what came, and whether they agree."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dfa_jax.report.statistics import summarise

Verdict = Literal["reproduced", "not reproduced", "rate not established"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of a study's table.

    Attributes:
        claim: what is compared, in words.
        expected: the number or relation, in words.
        source: how it is known: a theorem, the paper, a plot, or a measurement by somebody else.
        found: what our runs gave.
        holds: whether they agree.
        rate_established: whether the runs had learning rates that were found to be good; without,
            nothing follows from them.
    """

    claim: str
    expected: str
    source: str
    found: str
    holds: bool
    rate_established: bool = True

    @property
    def verdict(self) -> Verdict:
        """In a word."""
        if not self.rate_established:
            return "rate not established"
        return "reproduced" if self.holds else "not reproduced"


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
    """`7 of 8 expectations met.`, and how many cannot be judged.

    >>> one = Finding("a", "b", "c", "d", holds=True)
    >>> summary([one, dataclasses.replace(one, rate_established=False)])
    '1 of 1 expectations met; 1 not judged: rate not established.'
    """
    verdicts = [finding.verdict for finding in findings]
    met, open_ = verdicts.count("reproduced"), verdicts.count("rate not established")
    parts = [f"{met} of {len(verdicts) - open_} expectations met"] if open_ < len(verdicts) else []
    if open_:
        unit = "" if parts else "expectations "
        parts.append(f"{open_} {unit}not judged: rate not established")
    return f"{'; '.join(parts)}."
