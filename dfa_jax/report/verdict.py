"""What a table says, in sentences: published numbers met, and each rule against backpropagation."""

from collections.abc import Sequence

from dfa_jax.report import style, text
from dfa_jax.report.recipe import BASELINE
from dfa_jax.report.statistics import SIGNIFICANT, Difference
from dfa_jax.report.table import OrderRow, Row


def on_published(rows: Sequence[Row]) -> str:
    """How many published numbers were met, and the gaps of the others; "" if there are none."""
    pairs = [(row, number) for row in rows for number in row.published]
    if not pairs:
        return ""
    missed = [
        f"{style.label(row.variant)} ({text.gap(row.measured(number.quantity), number):+.2f})"
        for row, number in pairs
        if not text.is_reproduced(row.measured(number.quantity), number)
    ]
    provenance = " and ".join(dict.fromkeys(number.provenance for _, number in pairs))
    met = f"{len(pairs) - len(missed)} of {len(pairs)} published numbers reproduced"
    gaps = f"; gaps of the others, in points: {', '.join(missed)}" if missed else ""
    return f"{met} (provenance of the numbers: {provenance}){gaps}."


def on_orders(rows: Sequence[OrderRow]) -> str:
    """How many orders were seen, and which were not; "" if there are none."""
    if not rows:
        return ""
    missed = [
        f"{style.label(row.order.better)} below {style.label(row.order.worse)} ({row.verdict})"
        for row in rows
        if row.verdict != "reproduced"
    ]
    met = f"{len(rows) - len(missed)} of {len(rows)} orders reproduced"
    return f"{met}{'; the others: ' if missed else ''}{', '.join(missed)}."


def on_rules(rows: Sequence[Row]) -> dict[str, str]:
    """A sentence per rule that was compared with backpropagation."""
    compared = [row for row in rows if row.rule != BASELINE and row.difference]
    return {
        label: on_rule([row for row in compared if row.label == label])
        for label in dict.fromkeys(row.label for row in compared)
    }


def on_rule(rows: Sequence[Row]) -> str:
    """One rule's differences over its groups, and how many of them chance would not make."""
    differences = [row.difference for row in rows if row.difference]
    means = [difference.mean for difference in differences]
    worse, better = (
        sum(sign * d.mean > 0 for d in differences if is_certain(d)) for sign in (1, -1)
    )
    what = f"test {' or '.join(sorted({row.quantity for row in rows}))}"
    if len(means) == 1:
        span = f"{means[0]:+.2f} points"
        sure = "worse" if worse else "better" if better else "no difference established"
        return f"{span} of {what} against backprop: {sure} (at p < {SIGNIFICANT})."
    span = f"{min(means):+.2f} to {max(means):+.2f} points"
    return (
        f"{span} of {what} against backprop; at p < {SIGNIFICANT} worse in {worse} and better in"
        f" {better} of {len(means)} comparisons."
    )


def is_certain(difference: Difference) -> bool:
    """Whether chance would make such a difference in less than one of a hundred repetitions."""
    return difference.p_value is not None and difference.p_value < SIGNIFICANT
