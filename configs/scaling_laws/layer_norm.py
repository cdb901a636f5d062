"""Pre-LN or post-LN: what bounds the residual stream of a Transformer under DFA.

Paper: none of the field's to compare numbers with; Launay et al. (2020), arXiv 2006.12878, cut
    behind post-LN blocks, and an unreviewed study of 2026 ("faeval") reports that norms blow up in
    pre-LN nets
Command: python scripts/reproduce.py scaling_laws/layer_norm
Time: 12 min on 2 cores
Expect: under DFA with pre-LN the norm of the stream grows by more than a factor of ten within one
    short run, and the true gradient falls as it grows; with post-LN, and under BP, both stay within
    a small factor.

What DFA descends at a site is linear in the activity, `<h_l, e B_l>`, and has no scale of its own;
with pre-LN the final norm takes the stream's scale out of the loss, so nothing holds it back. With
post-LN each site sits behind a norm, whose gain alone can grow. Three blocks of 48 units, sites
behind blocks, the error at the logits, feedback shared, a constant rate found for each variant as
in `scaling_laws/frontier`; losses are those of branches whose rate decays. Clipping (at norm 1) and
the lack of weight decay are part of this: Adam's steps are as long whatever the gradient's scale.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from dfa_jax.models.transformer import Norm
from dfa_jax.report import catalogue, finding, panel, series, tuning
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.style import Theme
from dfa_jax.rules import LearningRule
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import Evaluation, RunRecord

FRONTIER = catalogue.run_file("scaling_laws/frontier")
STEPS, LAYERS, WIDTH = 1000, 3, 48
NORMS: tuple[Norm, ...] = ("pre", "post")
ARMS = ("BP", "DFA")


def config(norm: Norm, rule: LearningRule) -> TrainConfig:
    """The run of a rule on a network with its norms in one place."""
    base = FRONTIER["config"](LAYERS, WIDTH, rule)
    warmup = FRONTIER["WARMUP_STEPS"] / STEPS
    return dataclasses.replace(
        base,
        model=base.model.clone(norm=norm),
        optimizer=dataclasses.replace(base.optimizer, warmup_fraction=warmup),
        num_tokens=STEPS * base.batch_size * base.data.context,
        log_evaluations=12,
        alignment_examples=64,
    )


RUNS = Recipe(
    title="Pre-LN or post-LN: the residual stream under DFA",
    paper="none",
    minutes=12,
    variants={
        f"{norm}-LN/{arm}": config(norm, FRONTIER["ARMS"][arm]) for norm in NORMS for arm in ARMS
    },
    seeds=(0, 1, 2),
    tuning=Tuning(num_validation=65_536, fraction=0.15, factor=2.0),
)


def last_site(record: RunRecord) -> str:
    """The site behind the last block."""
    return f"block_{record.config['model']['num_layers'] - 1}"


def stream(record: RunRecord, one: Evaluation) -> float | None:
    """Norm of the residual stream behind the last block."""
    return one.metrics.get(f"activity_norm/{last_site(record)}")


def blocks(record: RunRecord, one: Evaluation) -> float:
    """Norm of all matrices in the blocks, as one vector."""
    del record
    norms = [
        value
        for name, value in one.metrics.items()
        if name.startswith("weight_norm/block") and name.endswith("/kernel")
    ]
    return math.hypot(*norms)


def gradient(record: RunRecord, one: Evaluation) -> float | None:
    """Norm of the true gradient behind the first block."""
    del record
    return one.metrics.get("gradient_norm/block_0")


def first_alignment(record: RunRecord, one: Evaluation) -> float | None:
    """Cosine with the true gradient behind the first block."""
    del record
    return series.alignment(one).get("block_0")


def last_alignment(record: RunRecord, one: Evaluation) -> float | None:
    """Cosine with the true gradient behind the last block."""
    return series.alignment(one).get(last_site(record))


def loss(record: RunRecord, one: Evaluation) -> float:
    """Test loss of the decaying branch."""
    del record
    return one.metrics["decayed_test_loss"]


Quantity = Callable[[RunRecord, Evaluation], float | None]
PANELS: dict[str, tuple[Quantity, str]] = {
    "Test loss": (loss, "nats a token"),
    "Stream behind the last block": (stream, "norm"),
    "Matrices of the blocks": (blocks, "norm"),
    "True gradient behind the first block": (gradient, "norm"),
    "Alignment behind the first block": (first_alignment, "cosine with the true gradient"),
    "Alignment behind the last block": (last_alignment, "cosine with the true gradient"),
}


def draw(held: Sequence[RunRecord], theme: Theme) -> Figure:
    """Loss, norms and alignment along the runs; full lines pre-LN, dashes post-LN."""
    figure, axes = panel.panels(2, 3)
    for axis, (title, (quantity, unit)) in zip(axes.flat, PANELS.items(), strict=True):
        aligned = title.startswith("Alignment")
        draw_quantity(axis, held, quantity, ARMS[1:] if aligned else ARMS, theme)
        axis.set(xscale="log", xlabel="passes over the text", ylabel=unit, title=title)
        if aligned:
            panel.cosine_axis(axis)
        else:
            axis.set_yscale("log")
    panel.dash_legend(axes[0, 0], [f"{norm}-LN" for norm in NORMS], theme)
    panel.rule_legend(figure, ARMS, theme)
    return figure


def draw_quantity(
    axis: Axes,
    held: Sequence[RunRecord],
    quantity: Quantity,
    arms: Sequence[str],
    theme: Theme,
) -> None:
    """Its means and intervals, a line a variant."""
    for arm in arms:
        for dashes, norm in zip(panel.DASHES, NORMS, strict=False):
            runs = of_variant(held, f"{norm}-LN/{arm}")
            if not runs:
                continue
            curve = series.over_epochs(runs, lambda one, first=runs[0]: quantity(first, one))
            panel.line(axis, curve, arm, theme, dashes)


def of_variant(held: Sequence[RunRecord], variant: str) -> list[RunRecord]:
    """Its runs, in order of their seeds."""
    return sorted((run for run in held if run.variant == variant), key=lambda run: run.seed)


def growth(held: Sequence[RunRecord], variant: str, quantity: Quantity) -> np.ndarray:
    """A quantity at the end over that at the first evaluation, run by run."""
    runs = of_variant(held, variant)
    ends = [(quantity(run, run.final), quantity(run, run.curve[0])) for run in runs]
    return np.array([last / first for last, first in ends if last and first])


def losses(held: Sequence[RunRecord], variant: str) -> np.ndarray:
    """Test losses at the end, run by run."""
    runs = of_variant(held, variant)
    return np.array([tuning.score(RUNS.variants[variant], run) for run in runs])


FAEVAL = "own bound; an unreviewed study (faeval, 2026): from 9 to 1e6 in five epochs of CIFAR-10"
OWN = "own expectation"


def findings(held: Sequence[RunRecord]) -> Sequence[Finding]:
    """How norms grow, what becomes of the true gradient, and whether the loss follows."""
    pre, post, bp = (growth(held, name, stream) for name in ("pre-LN/DFA", "post-LN/DFA",
                                                            "pre-LN/BP"))  # fmt: skip
    grown = {name: growth(held, name, gradient) for name in ("pre-LN/DFA", "pre-LN/BP")}
    aligned = [
        np.array([last_alignment(run, run.final) or 0.0 for run in of_variant(held, name)])
        for name in ("post-LN/DFA", "pre-LN/DFA")
    ]
    gaps = [losses(held, f"{norm}-LN/DFA") - losses(held, f"{norm}-LN/BP") for norm in NORMS]
    return [
        finding.at_least("pre-LN, DFA: growth of the stream's norm", pre, 10.0, FAEVAL),
        finding.at_most("post-LN, DFA: growth of the stream's norm", post, 2.0, "own bound"),
        finding.positive(
            f"pre-LN: log of that growth under DFA minus under BP (there {finding.shown(bp)})",
            np.log(pre) - np.log(bp),
            OWN,
        ),
        finding.positive(
            "pre-LN: log of how far the true gradient behind the first block falls, DFA minus BP",
            np.log(grown["pre-LN/BP"]) - np.log(grown["pre-LN/DFA"]),
            "own expectation: behind a norm, a gradient is inverse to the scale in front",
        ),
        finding.positive(
            "alignment behind the last block under DFA, post-LN minus pre-LN",
            aligned[0] - aligned[1],
            OWN,
        ),
        finding.positive(
            "test loss under DFA, pre-LN minus post-LN",
            losses(held, "pre-LN/DFA") - losses(held, "post-LN/DFA"),
            OWN,
        ),
        finding.positive("gap in loss between DFA and BP, pre-LN minus post-LN",
                         gaps[0] - gaps[1], OWN),
    ]  # fmt: skip


RECIPE = RunStudy(
    title=RUNS.title,
    paper=RUNS.paper,
    minutes=RUNS.minutes,
    runs=RUNS,
    draw=draw,
    findings=findings,
)
CONFIG = RUNS.variants["pre-LN/DFA"]
