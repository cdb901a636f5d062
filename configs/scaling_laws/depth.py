"""Depth: how alignment, norms and loss of Transformers under DFA change with the number of blocks.

Paper: none of the field's to compare numbers with; that alignment is what makes DFA learn is the
    point of Refinetti et al. (2021), arXiv 2011.12428
Command: python scripts/reproduce.py scaling_laws/depth
Time: 25 min on 2 cores
Expect: alignment falls from the last block, whose activity is one matrix away from the error, to
    the first; its mean over blocks falls with depth, and the gap in loss between DFA and BP grows:
    depth helps BP and is wasted on DFA.

1 to 8 post-LN blocks of 48 units, sites behind blocks, the error at the logits, feedback shared; a
rate for each depth and rule as in `scaling_laws/frontier`, falling linearly to zero over the run.
Alignment is the mean over 64 x 128 places of the cosine with the true gradient, where that is above
the floor of rounding.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dfa_jax.report import catalogue, ensembles, finding, panel, series
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.recipe import Recipe, Tuning, label_of
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.statistics import summarise
from dfa_jax.report.style import Theme
from dfa_jax.rules import LearningRule
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import RunRecord

FRONTIER = catalogue.run_file("scaling_laws/frontier")
STEPS, WIDTH = 1000, 48
DEPTHS = (1, 2, 4, 8)
ARMS = ("BP", "DFA")


def variant(depth: int, arm: str) -> str:
    """A variant's label."""
    return f"{depth} block{'s' * (depth > 1)}/{arm}"


def config(depth: int, rule: LearningRule) -> TrainConfig:
    """The run of a rule at a depth."""
    base = FRONTIER["config"](3, WIDTH, rule)
    optimizer = dataclasses.replace(
        base.optimizer, schedule="linear", warmup_fraction=FRONTIER["WARMUP_STEPS"] / STEPS
    )
    return dataclasses.replace(
        base,
        model=base.model.clone(num_layers=depth),
        optimizer=optimizer,
        num_tokens=STEPS * base.batch_size * base.data.context,
        log_evaluations=6,
        decay_fraction=0.0,
        alignment_examples=64,
    )


RUNS = Recipe(
    title="Depth: alignment, norms and loss of Transformers under DFA",
    paper="none",
    minutes=25,
    variants={
        variant(depth, arm): config(depth, FRONTIER["ARMS"][arm])
        for depth in DEPTHS
        for arm in ARMS
    },
    seeds=(0, 1, 2),
    tuning=Tuning(num_validation=65_536, fraction=0.15, factor=2.0),
)


def of_variant(held: Sequence[RunRecord], depth: int, arm: str) -> list[RunRecord]:
    """Its runs, in order of their seeds."""
    runs = [run for run in held if run.variant == variant(depth, arm)]
    return sorted(runs, key=lambda run: run.seed)


def losses(held: Sequence[RunRecord], depth: int, arm: str) -> np.ndarray:
    """Test losses at the end, run by run."""
    return np.array([run.final.test_loss for run in of_variant(held, depth, arm)])


def by_block(runs: Sequence[RunRecord], metric: str) -> np.ndarray:
    """A metric at the end of each run behind each block, `[run, block]`; NaN where absent."""
    return np.array(
        [
            [
                run.final.metrics.get(f"{metric}/block_{block}", np.nan)
                for block in range(run.config["model"]["num_layers"])
            ]
            for run in runs
        ]
    )


def draw(held: Sequence[RunRecord], theme: Theme) -> Figure:
    """Loss against depth; by block, alignment and norms of stream and true gradient under DFA."""
    figure, axes = panel.panels(2, 2)
    for arm in ARMS:
        points = ((depth, losses(held, depth, arm)) for depth in DEPTHS)
        known = [(depth, summarise(found.tolist())) for depth, found in points if found.size]
        panel.line(axes[0, 0], series.from_summaries(known), arm, theme)
    axes[0, 0].set(title="Test loss at the end", ylabel="nats a token")
    panel.count_axis(axes[0, 0], "blocks", DEPTHS)
    draw_blocks(axes[0, 1], held, "gradient_alignment", theme)
    panel.cosine_axis(axes[0, 1])
    axes[0, 1].set(title="DFA: alignment by block", ylabel="cosine with the true gradient")
    draw_blocks(axes[1, 0], held, "activity_norm", theme)
    axes[1, 0].set(title="DFA: residual stream by block", ylabel="norm", yscale="log")
    draw_blocks(axes[1, 1], held, "gradient_norm", theme)
    axes[1, 1].set(title="DFA: true gradient by block", ylabel="norm", yscale="log")
    if any(of_variant(held, depth, "DFA") for depth in DEPTHS):
        axes[0, 1].legend(title="blocks")
    panel.rule_legend(figure, [label_of(variant(1, arm)) for arm in ARMS], theme)
    return figure


def draw_blocks(axis: Axes, held: Sequence[RunRecord], metric: str, theme: Theme) -> None:
    """A line a depth, against the block counted from the input."""
    for place, depth in enumerate(DEPTHS):
        found = by_block(of_variant(held, depth, "DFA"), metric)
        if not found.size:
            continue
        columns = ((block, column[np.isfinite(column)]) for block, column in enumerate(found.T, 1))
        known = [(block, summarise(column.tolist())) for block, column in columns if column.size]
        colour = ensembles.layer_colour(place, theme)
        panel.band(axis, series.from_summaries(known), colour, marker="o", label=str(depth))
    panel.count_axis(axis, "block, from the input")


OWN = "own expectation"


def findings(held: Sequence[RunRecord]) -> Sequence[Finding]:
    """Alignment by block and depth, and what depth is worth under each rule."""
    aligned = {
        depth: by_block(of_variant(held, depth, "DFA"), "gradient_alignment") for depth in DEPTHS
    }
    gaps = {depth: losses(held, depth, "DFA") - losses(held, depth, "BP") for depth in DEPTHS}
    shallowest, deepest = DEPTHS[0], DEPTHS[-1]
    found = [
        finding.positive(
            f"{depth} blocks, DFA: alignment behind the last block minus behind the first",
            aligned[depth][:, -1] - aligned[depth][:, 0],
            OWN,
        )
        for depth in DEPTHS[1:]
    ]
    means = [float(np.nanmean(aligned[depth])) for depth in DEPTHS]
    falls = np.diff(means) < 0
    found += [
        finding.count(
            "DFA: steps of depth at which the mean alignment falls, from"
            f" {', '.join(f'{mean:.3f}' for mean in means)}",
            falls,
            len(falls),
            OWN,
        ),
        *(
            finding.positive(
                f"{depth} block{'s' * (depth > 1)}: test loss of DFA minus BP", gaps[depth], OWN
            )
            for depth in DEPTHS
        ),
        finding.positive(
            f"gap in loss between DFA and BP, {deepest} blocks minus {shallowest}",
            gaps[deepest] - gaps[shallowest],
            OWN,
        ),
        *(
            finding.positive(
                f"{arm}: test loss with {shallowest} block minus with {deepest}",
                losses(held, shallowest, arm) - losses(held, deepest, arm),
                OWN if arm == "BP" else "own question: whether DFA gains from depth at all",
            )
            for arm in ARMS
        ),
    ]
    return found


RECIPE = RunStudy(
    title=RUNS.title,
    paper=RUNS.paper,
    minutes=RUNS.minutes,
    runs=RUNS,
    draw=draw,
    findings=findings,
)
CONFIG = RUNS.variants[variant(8, "DFA")]
