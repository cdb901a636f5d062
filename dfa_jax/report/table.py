"""The table of a recipe: ours, the differences from backpropagation, and the published numbers."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from dfa_jax.report import series, text
from dfa_jax.report.recipe import (
    BASELINE,
    Expected,
    Order,
    Quantity,
    Recipe,
    group_of,
    label_of,
)
from dfa_jax.report.statistics import (
    SIGNIFICANT,
    Difference,
    Summary,
    paired_difference,
    summarise,
)
from dfa_jax.train.records import RunRecord

HEADINGS = (
    "variant",
    "rate",
    "n",
    "test error, %",
    "minus backprop",
    "train error, %",
    "probe error, %",
    "published, %",
    "verdict",
    "s / run",
)
CAPTION = (
    "Mean ± half of the 95 % interval (Student's t) over n seeds, all on the same test set."
    " *Minus backprop*: paired by seed, with the p-value of the paired t test. *Train error*: over"
    " the last evaluation interval's training batches (a remainder with the interval before it)."
    " *s / run*: median."
)
ORDER_HEADINGS = ("order", "source", "difference of test errors", "verdict")
ON_ORDERS = "An order is *reproduced* if the paired difference is below zero at p < 0.01."
ON_TUNING = (
    "*Rate*: the learning rate with the lowest error on validation examples cut from the training"
    " set, the test set unseen; every trial is in tuning.jsonl beside the records."
)
ON_PROBES = (
    "These runs learn without labels: *test error* and *train error* are of a linear readout that"
    " is learned beside the run, *probe error* of one fitted to the features in the end."
)
ON_VERDICTS = "A published number is *reproduced* if its interval and ours overlap."


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        variant: its label.
        group: what stands before the last "/", "" if nothing does.
        rule: the learning rule's registered name.
        test: test error, %, or loss, where a run has no accuracy.
        train: training error, %, or loss, likewise.
        difference: of `test` from backpropagation's in the same group; None for that one.
        published: numbers to compare with.
        rate: the learning rate, where it was tuned.
        probe: test error, %, of a linear classifier fitted to the last features, where one was.
        seconds: wall time of a run, the median, since a first run compiles.
        quantity: what `test` and `train` are, `error` or `loss`.
    """

    variant: str
    group: str
    rule: str
    test: Summary
    train: Summary
    difference: Difference | None
    published: tuple[Expected, ...]
    seconds: float
    rate: float | None = None
    probe: Summary | None = None
    quantity: str = "error"

    @property
    def label(self) -> str:
        """What the recipe calls the rule."""
        return label_of(self.variant)

    def measured(self, quantity: Quantity) -> Summary:
        """Our value of a published quantity."""
        return {"test error": self.test, "train error": self.train}[quantity]


def rows(recipe: Recipe, records: Sequence[RunRecord]) -> list[Row]:
    """One row per variant that has runs, in the recipe's order."""
    by_variant = _by_variant(records)
    return [
        _row(recipe, variant, by_variant) for variant in recipe.variants if variant in by_variant
    ]


def _by_variant(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.variant, []).append(record)
    return found


def _row(recipe: Recipe, variant: str, by_variant: dict[str, list[RunRecord]]) -> Row:
    runs = by_variant[variant]
    group = group_of(variant)
    baseline = next(
        (
            of_variant
            for variant, of_variant in by_variant.items()
            if group_of(variant) == group and of_variant[0].rule == BASELINE
        ),
        [],
    )
    return Row(
        variant=variant,
        group=group,
        rule=runs[0].rule,
        test=summarise([series.test_error(run.final) for run in runs]),
        train=summarise([series.final_train_error(run) for run in runs]),
        difference=None if runs is baseline else _difference(runs, baseline),
        published=tuple(number for number in recipe.expected if number.variant == variant),
        seconds=statistics.median(run.wall_seconds for run in runs),
        probe=_probe(runs),
        rate=runs[0].config["optimizer"]["learning_rate"] if recipe.tuning else None,
        quantity="error" if series.has_errors(runs) else "loss",
    )


def _probe(runs: Sequence[RunRecord]) -> Summary | None:
    found = [series.probe_error(run.final) for run in runs]
    known = [error for error in found if error is not None]
    return summarise(known) if known else None


def _difference(runs: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> Difference | None:
    errors = [{run.seed: series.test_error(run.final) for run in side} for side in (runs, baseline)]
    return paired_difference(*errors)


class OrderRow(NamedTuple):
    """What became of an order: the better variant's test error minus the worse one's, by seed."""

    order: Order
    difference: Difference

    @property
    def verdict(self) -> str:
        """Whether chance would make such a difference in one of a hundred repetitions."""
        if self.difference.p_value is None or self.difference.p_value >= SIGNIFICANT:
            return "not established"
        return "reproduced" if self.difference.mean < 0 else "not reproduced: reversed"


def orders(recipe: Recipe, records: Sequence[RunRecord]) -> list[OrderRow]:
    """Every order of which both variants have runs of the same seed."""
    by_variant = _by_variant(records)
    found = []
    for order in recipe.orders:
        sides = (by_variant.get(order.better, []), by_variant.get(order.worse, []))
        if difference := _difference(*sides):
            found.append(OrderRow(order, difference))
    return found


def order_cells(row: OrderRow) -> tuple[str, ...]:
    """An order's texts under `ORDER_HEADINGS`."""
    claim = f"{row.order.better} below {row.order.worse}"
    return claim, row.order.source, text.difference(row.difference), row.verdict


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts under `HEADINGS`."""
    verdicts = [text.verdict(row.measured(number.quantity), number) for number in row.published]
    return (
        row.variant,
        text.NOTHING if row.rate is None else f"{row.rate:g}",
        str(row.test.num_seeds),
        text.summary(row.test),
        text.difference(row.difference),
        text.summary(row.train),
        text.NOTHING if row.probe is None else text.summary(row.probe),
        "; ".join(text.published(number) for number in row.published) or text.NOTHING,
        "; ".join(verdicts) or text.NOTHING,
        f"{row.seconds:.1f}",
    )


def grid(table: Sequence[Row]) -> list[tuple[str, ...]]:
    """Headings, then a line per row; columns in which no row has anything are left out."""
    lines = [cells(row) for row in table]
    kept = [i for i in range(len(HEADINGS)) if any(line[i] != text.NOTHING for line in lines)]
    headings = [_heading(name, {row.quantity for row in table}) for name in HEADINGS]
    return [tuple(line[i] for i in kept) for line in (headings, *lines)]


def _heading(name: str, quantities: set[str]) -> str:
    """A heading of errors where losses stand among them."""
    if "loss" not in quantities or name not in ("test error, %", "train error, %"):
        return name
    return name.replace("error, %", "loss" if quantities == {"loss"} else "error, %, or loss")


def markdown(recipe: Recipe, records: Sequence[RunRecord]) -> str:
    """The table as Markdown, with its caption, and that of the orders if there are any."""
    found = rows(recipe, records)
    parts = [f"# {recipe.title}", lines(grid(found)), caption(recipe, found)]
    if ordered := orders(recipe, records):
        parts += [lines([ORDER_HEADINGS, *map(order_cells, ordered)]), ON_ORDERS]
    return "\n\n".join(parts) + "\n"


def lines(cells: Sequence[tuple[str, ...]]) -> str:
    """Rows of Markdown, headings first."""
    headings, *below = ["| " + " | ".join(line) + " |" for line in cells]
    rule = "| --- |" + " ---: |" * (headings.count("|") - 2)
    return "\n".join([headings, rule, *below])


def caption(recipe: Recipe, table: Sequence[Row] = ()) -> str:
    """How to read the table, and where the published numbers stand."""
    if table and all(row.quantity == "loss" for row in table):
        return (
            caption(recipe).replace("*Train error*", "*Train loss*").replace("error on", "loss on")
        )
    sources = "; ".join(dict.fromkeys(number.source for number in recipe.expected))
    published = f" {ON_VERDICTS} Published numbers: {sources}." if sources else ""
    is_contrastive = any(config.is_contrastive for config in recipe.variants.values())
    probes = f" {ON_PROBES}" if is_contrastive else ""
    return CAPTION + probes + (f" {ON_TUNING}" if recipe.tuning else "") + published
