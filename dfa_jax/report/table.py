"""The table of a recipe: ours, the differences from backpropagation, and the published numbers."""

import dataclasses
from collections.abc import Sequence

from dfa_jax.report import series
from dfa_jax.report.recipe import BASELINE, Expected, Quantity, Recipe, group_of
from dfa_jax.report.statistics import Difference, Summary, paired_difference, summarise
from dfa_jax.train.records import RunRecord

MIN_SEEDS = 3  # with fewer, the interval is so wide that it would contain almost any number

HEADINGS = (
    "variant", "test error, %", "minus backprop", "train error, %", "published, %", "verdict", "s / run"
)  # fmt: skip
CAPTION = (
    "Mean ± half of the 95 % interval (Student's t) over n seeds. *Minus backprop*: paired by seed,"
    " with the p-value of the paired t test. *Train error*: over the last evaluation interval's"
    " training batches. A published number is *reproduced* if the two intervals overlap."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        variant: its label.
        group: what stands before the last "/", "" if nothing does.
        rule: the learning rule's registered name.
        test: test error, %.
        train: training error, %.
        difference: of the test error from backpropagation's in the same group; None for that one.
        published: numbers to compare with.
        seconds: wall time of a run.
    """

    variant: str
    group: str
    rule: str
    test: Summary
    train: Summary
    difference: Difference | None
    published: tuple[Expected, ...]
    seconds: Summary

    def measured(self, quantity: Quantity) -> Summary:
        """Our value of a published quantity."""
        return {"test error": self.test, "train error": self.train}[quantity]


def rows(recipe: Recipe, records: Sequence[RunRecord]) -> list[Row]:
    """One row per variant that has runs, in the recipe's order."""
    by_variant: dict[str, list[RunRecord]] = {}
    for record in records:
        by_variant.setdefault(record.variant, []).append(record)
    return [
        _row(recipe, variant, by_variant) for variant in recipe.variants if variant in by_variant
    ]


def _row(recipe: Recipe, variant: str, by_variant: dict[str, list[RunRecord]]) -> Row:
    runs = by_variant[variant]
    group = group_of(variant)
    baseline = by_variant.get(f"{group}/{BASELINE}" if group else BASELINE, [])
    return Row(
        variant=variant,
        group=group,
        rule=runs[0].rule,
        test=summarise([series.test_error(run.final) for run in runs]),
        train=summarise([series.train_error(run.final) for run in runs]),
        difference=None if runs is baseline else _difference(runs, baseline),
        published=tuple(number for number in recipe.expected if number.variant == variant),
        seconds=summarise([run.wall_seconds for run in runs]),
    )


def _difference(runs: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> Difference | None:
    errors = [{run.seed: series.test_error(run.final) for run in side} for side in (runs, baseline)]
    return paired_difference(*errors)


def gap(ours: Summary, number: Expected) -> float:
    """Ours minus the published value, in percentage points."""
    return ours.mean - number.value


def is_reproduced(ours: Summary, number: Expected) -> bool:
    """Whether the 95 % interval of ours meets the source's interval, from at least three seeds."""
    reach = (ours.half_width or 0.0) + (number.tolerance or 0.0)
    return ours.num_seeds >= MIN_SEEDS and abs(gap(ours, number)) <= reach


def verdict(row: Row, number: Expected) -> str:
    """A published number against ours, in words."""
    ours = row.measured(number.quantity)
    if ours.num_seeds < MIN_SEEDS:
        return f"{ours.num_seeds} of at least {MIN_SEEDS} seeds, gap {gap(ours, number):+.2f}"
    found = "reproduced" if is_reproduced(ours, number) else "not reproduced"
    return f"{found}, gap {gap(ours, number):+.2f}"


def format_summary(summary: Summary, digits: int = 2) -> str:
    """`1.60 ± 0.06 (n = 5)`, or without the interval for one seed."""
    spread = "" if summary.half_width is None else f" ± {summary.half_width:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread} (n = {summary.num_seeds})"


def format_difference(difference: Difference | None) -> str:
    """`+0.14 ± 0.05, p = 0.002`."""
    if difference is None:
        return "–"
    spread = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    return f"{difference.mean:+.2f}{spread}{format_p(difference.p_value)}"


def format_p(p_value: float | None) -> str:
    """`, p = 0.002`; nothing where there is no test."""
    if p_value is None:
        return ""
    return ", p < 0.001" if p_value < 0.001 else f", p = {p_value:.{2 if p_value > 0.1 else 3}f}"


def format_published(number: Expected) -> str:
    """Value and provenance, always together: `1.60 ± 0.06 (memory, unverified)`."""
    spread = "" if number.tolerance is None else f" ± {number.tolerance:.2f}"
    quantity = "" if number.quantity == "test error" else f"{number.quantity} "
    return f"{quantity}{number.value:.2f}{spread} ({number.provenance})"


def format_seconds(seconds: float) -> str:
    """A duration to two digits or so.

    >>> format_seconds(3.21), format_seconds(75), format_seconds(4000)
    ('3.2 s', '1 min 15 s', '1 h 7 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts under `HEADINGS`."""
    return (
        row.variant,
        format_summary(row.test),
        format_difference(row.difference),
        format_summary(row.train),
        "; ".join(format_published(number) for number in row.published) or "–",
        "; ".join(verdict(row, number) for number in row.published) or "–",
        f"{row.seconds.mean:.1f}",
    )


def markdown(recipe: Recipe, table: Sequence[Row]) -> str:
    """The table as Markdown, with caption and sources."""
    lines = [HEADINGS, ["---"] + ["---:"] * (len(HEADINGS) - 1), *map(cells, table)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = [f"# {recipe.title}", body, CAPTION, sources(recipe)]
    return "\n\n".join(part for part in parts if part) + "\n"


def sources(recipe: Recipe) -> str:
    """Where the published numbers stand; "" if there are none."""
    found = dict.fromkeys(number.source for number in recipe.expected)
    return f"Published numbers: {'; '.join(found)}." if found else ""
