"""The table of a recipe: ours, the differences from backpropagation, and the published numbers."""

import dataclasses
import statistics
from collections.abc import Sequence

from dfa_jax.report import series, text
from dfa_jax.report.recipe import BASELINE, Expected, Quantity, Recipe, group_of
from dfa_jax.report.statistics import Difference, Summary, paired_difference, summarise
from dfa_jax.train.records import RunRecord

HEADINGS = (
    "variant",
    "n",
    "test error, %",
    "minus backprop",
    "train error, %",
    "published, %",
    "verdict",
    "s / run",
)
CAPTION = (
    "Mean ± half of the 95 % interval (Student's t) over n seeds, all on the same test set."
    " *Minus backprop*: paired by seed, with the p-value of the paired t test. *Train error*: over"
    " the last evaluation interval's training batches. *s / run*: median."
)
ON_VERDICTS = "A published number is *reproduced* if its interval and ours overlap."


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
        seconds: wall time of a run, the median, since a first run compiles.
    """

    variant: str
    group: str
    rule: str
    test: Summary
    train: Summary
    difference: Difference | None
    published: tuple[Expected, ...]
    seconds: float

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
        seconds=statistics.median(run.wall_seconds for run in runs),
    )


def _difference(runs: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> Difference | None:
    errors = [{run.seed: series.test_error(run.final) for run in side} for side in (runs, baseline)]
    return paired_difference(*errors)


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts under `HEADINGS`."""
    verdicts = [text.verdict(row.measured(number.quantity), number) for number in row.published]
    return (
        row.variant,
        str(row.test.num_seeds),
        text.summary(row.test),
        text.difference(row.difference),
        text.summary(row.train),
        "; ".join(text.published(number) for number in row.published) or text.NOTHING,
        "; ".join(verdicts) or text.NOTHING,
        f"{row.seconds:.1f}",
    )


def grid(table: Sequence[Row]) -> list[tuple[str, ...]]:
    """Headings, then a line per row; columns in which no row has anything are left out."""
    lines = [cells(row) for row in table]
    kept = [i for i in range(len(HEADINGS)) if any(line[i] != text.NOTHING for line in lines)]
    return [tuple(line[i] for i in kept) for line in (HEADINGS, *lines)]


def markdown(recipe: Recipe, table: Sequence[Row]) -> str:
    """The table as Markdown, with its caption."""
    headings, *lines = ["| " + " | ".join(line) + " |" for line in grid(table)]
    rule = "| --- |" + " ---: |" * (headings.count("|") - 2)
    body = "\n".join([headings, rule, *lines])
    return f"# {recipe.title}\n\n{body}\n\n{caption(recipe)}\n"


def caption(recipe: Recipe) -> str:
    """How to read the table, and where the published numbers stand."""
    sources = "; ".join(dict.fromkeys(number.source for number in recipe.expected))
    return f"{CAPTION} {ON_VERDICTS} Published numbers: {sources}." if sources else CAPTION
