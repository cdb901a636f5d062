"""Numbers in words: the same in the table, on the page and in progress lines."""

from dfa_jax.report.recipe import Expected
from dfa_jax.report.statistics import Difference, Summary

NOTHING = "-"
MIN_SEEDS = 3  # with fewer, the interval is so wide that it would contain almost any number


def summary(found: Summary) -> str:
    """`1.60 ± 0.06`, or without the interval for one seed."""
    spread = "" if found.half_width is None else f" ± {found.half_width:.2f}"
    return f"{found.mean:.2f}{spread}"


def difference(found: Difference | None) -> str:
    """`+0.14 ± 0.05, p = 0.002`."""
    if found is None:
        return NOTHING
    spread = "" if found.half_width is None else f" ± {found.half_width:.2f}"
    return f"{found.mean:+.2f}{spread}{p_value(found.p_value)}"


def p_value(value: float | None) -> str:
    """`, p = 0.002`; nothing where there is no test."""
    if value is None:
        return ""
    return ", p < 0.001" if value < 0.001 else f", p = {value:.{2 if value > 0.1 else 3}f}"


def published(number: Expected) -> str:
    """Value and provenance, always together: `1.60 ± 0.06 (memory, unverified)`."""
    spread = "" if number.tolerance is None else f" ± {number.tolerance:.2f}"
    quantity = "" if number.quantity == "test error" else f"{number.quantity} "
    return f"{quantity}{number.value:.2f}{spread} ({number.provenance})"


def duration(seconds: float) -> str:
    """A duration to two digits or so.

    >>> duration(3.21), duration(75), duration(4000)
    ('3.2 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def gap(ours: Summary, number: Expected) -> float:
    """Ours minus the published value, in percentage points."""
    return ours.mean - number.value


def is_reproduced(ours: Summary, number: Expected) -> bool:
    """Whether the 95 % interval of ours meets the source's interval, from at least three seeds."""
    reach = (ours.half_width or 0.0) + (number.tolerance or 0.0)
    return ours.num_seeds >= MIN_SEEDS and abs(gap(ours, number)) <= reach


def verdict(ours: Summary, number: Expected) -> str:
    """A published number against ours, in words."""
    if ours.num_seeds < MIN_SEEDS:
        return f"{ours.num_seeds} of at least {MIN_SEEDS} seeds, gap {gap(ours, number):+.2f}"
    found = "reproduced" if is_reproduced(ours, number) else "not reproduced"
    return f"{found}, gap {gap(ours, number):+.2f}"
