"""The exponents: how fast loss falls with compute under BP, DFA and the shallow control.

Paper: Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation, arXiv
    2210.14593, the fitted exponents
Command: python scripts/reproduce.py scaling_laws/exponents
Time: 160 min on 2 cores, shared with scaling_laws/frontier
Expect: BP falls faster than DFA, and DFA faster than the shallow control. Neither the paper's
    exponents nor their ratios need come out on other text, at other sizes, in other tokens.

The runs are those of `scaling_laws/frontier`. Numbers of the paper are second-hand: one public
project repeats 0.071, 0.040 and 0.019; we have not read them in the paper, nor how they were
fitted. They are given without a floor and without intervals, so a number is reproduced if our 95 %
interval contains it and excludes 0, and there is no other tolerance. Only the pure power law can be
compared with them. The law with a floor, whose exponent is larger by its making, is shown beside
it, and so is the pure law where neither the smallest nor the largest size wins: a ladder's ends
bend an envelope.

Under 4ND and 2ND each DFA run costs a constant factor less than under 6ND: the line moves and its
slope stays, so two ways of counting are enough here. Intervals: see `scaling.verdict.fit_frontier`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue, ladder, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.ladder import Counting
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.style import Theme
from dfa_jax.scaling import laws
from dfa_jax.scaling.fit import Interval, interval
from dfa_jax.scaling.runs import Run
from dfa_jax.scaling.verdict import fit_frontier
from dfa_jax.train.records import RunRecord

FRONTIER = catalogue.run_file("scaling_laws/frontier")
RUNS, ARMS, CONFIG = FRONTIER["RUNS"], tuple(FRONTIER["ARMS"]), FRONTIER["CONFIG"]
COUNTINGS: tuple[Counting, ...] = ("counted", "6ND")
PAPER = {"BP": 0.071, "DFA": 0.040, "shallow": 0.019}
SECOND_HAND = "second-hand: a public project that cites the paper"
SAMPLES = 400


class Slope(NamedTuple):
    """An arm's exponent, with its bootstrap samples, `[sample]`."""

    alpha: float
    samples: np.ndarray

    @property
    def interval(self) -> Interval:
        return interval(self.alpha, self.samples)


KINDS = {  # law, and whether sizes at the ladder's ends are left out
    "power law": ("power_law", False),
    "power law, inner sizes": ("power_law", True),
    "power law with floor": ("power_law_with_floor", False),
}


def slopes(
    held: Sequence[RunRecord], counting: Counting, kind: str, num_samples: int
) -> dict[str, Slope]:
    """By arm; without the arms whose envelope has too few points for the law."""
    points = ladder.points(RUNS.variants, held, counting)
    grouped = {arm: tuple(run for run in points if run.arm == arm) for arm in ARMS}
    found = {arm: fitted(runs, kind, num_samples) for arm, runs in grouped.items() if runs}
    return {arm: slope for arm, slope in found.items() if slope}


@functools.cache  # table and figures ask for the same
def fitted(runs: tuple[Run, ...], kind: str, num_samples: int) -> Slope | None:
    """Of one arm; None while runs are missing, where no inner size ever wins, or where the points
    leave the law open."""
    law, interior = KINDS[kind]
    key = jax.random.key(ARMS.index(runs[0].arm))  # arms vary independently
    options = {"interior": interior, "num_samples": num_samples}
    try:
        fit = fit_frontier(key, laws.get(law), runs, **options).fit
    except InputError:
        return None
    if not fit.converged:
        return None
    assert fit.samples is not None
    return Slope(float(fit.theta[-1]), fit.samples[:, -1])


def draw(held: Sequence[RunRecord], theme: Theme, *, num_samples: int) -> Figure:
    """Exponents with their intervals, a panel a way of counting; the paper's as open rings."""
    figure, axes = panel.panels(1, len(COUNTINGS))
    for axis, counting in zip(axes[0], COUNTINGS, strict=True):
        for place, kind in enumerate(KINDS):
            draw_slopes(axis, slopes(held, counting, kind, num_samples), place, theme)
        for arm, value in PAPER.items():
            colour = style.colour(arm, theme)
            axis.plot(value, -1, "o", markerfacecolor="none", color=colour, markersize=8)
        axis.set_yticks([-1, *range(len(KINDS))], ["paper, second-hand", *KINDS])
        axis.set(xlabel="exponent of compute", title=counting, ylim=(len(KINDS) - 0.5, -1.5))
    for axis in axes[0, 1:]:
        axis.tick_params(labelleft=False)
    panel.rule_legend(figure, ARMS, theme)
    return figure


def draw_slopes(axis: Axes, found: Mapping[str, Slope], place: int, theme: Theme) -> None:
    """A row of a panel."""
    for offset, (arm, slope) in enumerate(found.items()):
        low, high = slope.interval[1:]
        y = place + 0.16 * (offset - 1)
        colour = style.colour(arm, theme)
        axis.plot([low, high], [y, y], color=colour)
        axis.plot(slope.alpha, y, style.rule_style(arm).marker, color=colour)


def findings(held: Sequence[RunRecord], *, num_samples: int) -> Sequence[Finding]:
    """Order of the exponents, the paper's numbers, and what a floor changes."""
    found = []
    for counting in COUNTINGS:
        for kind in KINDS:
            known = slopes(held, counting, kind, num_samples)
            if len(known) == len(ARMS):
                found += compared(f"{counting}, {kind}", known, with_paper=kind == "power law")
    return found


def compared(what: str, known: Mapping[str, Slope], *, with_paper: bool) -> list[Finding]:
    """Differences of one kind of exponents, and the paper's numbers where they can be compared."""
    found = []
    for steep, flat in (("BP", "DFA"), ("DFA", "shallow")):
        samples = known[steep].samples - known[flat].samples
        gap = interval(known[steep].alpha - known[flat].alpha, samples)
        found.append(
            Finding(
                f"{what}: exponent of {steep} ({shown(known[steep].interval)}) minus that of"
                f" {flat} ({shown(known[flat].interval)})",
                "above 0",
                f"{SECOND_HAND} (order of the three)",
                shown(gap),
                gap.low > 0,
            )
        )
    if not with_paper:
        return found
    bp = known["BP"]
    for arm, value in PAPER.items():
        found.append(number(f"{what}: exponent of {arm}", value, known[arm].interval))
    for arm in ARMS[1:]:
        ratio = interval(known[arm].alpha / bp.alpha, known[arm].samples / bp.samples)
        found.append(number(f"{what}: slope of {arm} over BP's", PAPER[arm] / PAPER["BP"], ratio))
    return found


def number(claim: str, expected: float, found: Interval) -> Finding:
    """Reproduced where our interval contains it; one that contains 0 as well says nothing."""
    holds = found.excludes(0) and not found.excludes(expected)
    return Finding(claim, f"{expected:.3g}", SECOND_HAND, shown(found), holds)


def shown(found: Interval) -> str:
    """`0.0713 [0.0650, 0.0790]`."""
    return f"{found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}]"


RECIPE = RunStudy(
    title="Exponents of loss against compute: BP, DFA and a shallow control",
    paper="Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation,"
    " arXiv 2210.14593, the fitted exponents",
    minutes=RUNS.minutes,
    runs=RUNS,
    draw=functools.partial(draw, num_samples=SAMPLES),
    findings=functools.partial(findings, num_samples=SAMPLES),
    shares="scaling_laws/frontier",
)
