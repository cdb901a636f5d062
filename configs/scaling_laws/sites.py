"""Where errors arrive: behind blocks, sub-layers or linear maps of a Transformer under DFA.

Paper: Launay, Poli, Boniface and Krzakala (2020), Direct Feedback Alignment Scales to Modern Deep
    Learning Tasks and Architectures, arXiv 2006.12878, table 5
Command: python scripts/reproduce.py scaling_laws/sites
Time: 20 min on 2 cores
Expect: BP below macro below micro, and all of them below the shallow control. The more of the chain
    random feedback replaces, the worse and the cheaper; so sites behind every linear map, where no
    error passes a matrix, should be worst of all, at 0.81 of BP's FLOPs.

One size, three blocks of 64 units, text, optimiser and search for rates as in
`scaling_laws/frontier`; the rate falls linearly to zero over the run. `macro`: a site behind each
block; `micro`: behind attention, the MLP's activation and the block, as in the paper's code;
`linear`: behind each linear map and norm. The error is that of the logits; the paper's code reads
it at the last hidden state unless told otherwise, as `macro, last hidden` does. Two controls: in
`shallow` the unembedding alone learns; in `frozen blocks` the embedding does too, by errors that
backpropagation takes through blocks which stay as they were drawn. A rule that does not beat that
one may owe all it learned to embedding and unembedding.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dfa_jax.models.transformer import Granularity, credit_sites
from dfa_jax.report import catalogue, finding, ladder, panel, series, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.statistics import summarise
from dfa_jax.report.style import Theme
from dfa_jax.rules import Backprop, DirectFeedbackAlignment, LearningRule, Shallow
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import RunRecord

FRONTIER = catalogue.run_file("scaling_laws/frontier")
STEPS, LAYERS, WIDTH = 1000, 3, 64


class Arm(NamedTuple):
    """A rule, and where its errors arrive."""

    rule: LearningRule
    granularity: Granularity = "macro"
    frozen: tuple[str, ...] = ()


DFA = DirectFeedbackAlignment(feedback_sharing="shared")
LAST_HIDDEN = dataclasses.replace(DFA, error_tap="last_hidden")
ARMS = {
    "shallow": Arm(Shallow()),
    "frozen blocks": Arm(Backprop(), frozen=("block_*",)),
    "linear": Arm(DFA, "linear"),
    "micro": Arm(DFA, "micro"),
    "macro": Arm(DFA),
    "macro, last hidden": Arm(LAST_HIDDEN),
    "BP": Arm(Backprop()),
}


def config(arm: Arm) -> TrainConfig:
    """The run of an arm."""
    base = FRONTIER["config"](LAYERS, WIDTH, arm.rule)
    optimizer = dataclasses.replace(
        base.optimizer,
        frozen=arm.frozen,
        schedule="linear",
        warmup_fraction=FRONTIER["WARMUP_STEPS"] / STEPS,
    )
    return dataclasses.replace(
        base,
        sites=credit_sites(base.model, arm.granularity, last_hidden=True),
        optimizer=optimizer,
        num_tokens=STEPS * base.batch_size * base.data.context,
        log_evaluations=12,
        decay_fraction=0.0,
    )


RUNS = Recipe(
    title="Where errors arrive: blocks, sub-layers or linear maps of a Transformer",
    paper="Launay, Poli, Boniface and Krzakala (2020), Direct Feedback Alignment Scales to Modern"
    " Deep Learning Tasks and Architectures, arXiv 2006.12878, table 5",
    minutes=20,
    variants={name: config(arm) for name, arm in ARMS.items()},
    seeds=(0, 1, 2),
    tuning=Tuning(num_validation=65_536, fraction=0.15, factor=2.0),
)


def flops_a_token(name: str) -> float:
    """Matrix products of a training step."""
    return ladder.flops_a_token(RUNS.variants[name], "counted")


def losses(held: Sequence[RunRecord], name: str) -> np.ndarray:
    """Test losses at the end of an arm's runs, in order of their seeds."""
    runs = sorted((run for run in held if run.variant == name), key=lambda run: run.seed)
    return np.array([run.final.test_loss for run in runs])


def draw(held: Sequence[RunRecord], theme: Theme) -> Figure:
    """Loss along the runs; at their end against FLOPs a token."""
    figure, axes = panel.panels(1, 2)
    curves, ends = axes[0]
    shown = [name for name in ARMS if losses(held, name).size]
    for name in shown:
        runs = [run for run in held if run.variant == name]
        curve = series.over_epochs(runs, lambda one: one.test_loss)
        panel.line(curves, curve, name, theme)
        draw_end(ends, name, losses(held, name), theme)
    curves.set(xscale="log", xlabel="passes over the text", ylabel="test loss, nats a token")
    curves.set_title("Along the runs")
    ends.set(xlabel="FLOPs a token, counted", ylabel="test loss, nats a token")
    ends.set_title("At the end, against cost")
    panel.rule_legend(figure, shown, theme)
    return figure


def draw_end(axis: Axes, name: str, found: np.ndarray, theme: Theme) -> None:
    """Mean and interval over seeds."""
    one = summarise(found.tolist())
    axis.errorbar(
        flops_a_token(name),
        one.mean,
        yerr=one.half_width or 0.0,
        fmt=style.rule_style(name).marker,
        color=style.colour(name, theme),
    )


TABLE = "Launay et al. (2020): 29.8, 52.0, 93.3 (second-hand) and above 400 (paper) in perplexity"
OWN = "own expectation"
ORDERS = (
    ("BP", "macro", TABLE),
    ("macro", "micro", TABLE),
    ("micro", "shallow", TABLE),
    ("micro", "linear", OWN),
    ("linear", "shallow", OWN),
    ("macro, last hidden", "shallow", TABLE + "; its code reads the error there"),
    (
        "macro",
        "frozen blocks",
        OWN + "; an unreviewed study of pre-LN nets (faeval, 2026) found the contrary",
    ),
    ("micro", "frozen blocks", OWN),
    ("linear", "frozen blocks", OWN),
)


def findings(held: Sequence[RunRecord]) -> Sequence[Finding]:
    """Differences between arms, seed by seed, and what each arm costs."""
    found = [
        finding.positive(
            f"test loss of {worse} ({finding.shown(losses(held, worse))}) minus that of {better}"
            f" ({finding.shown(losses(held, better))})",
            losses(held, worse) - losses(held, better),
            source,
        )
        for better, worse, source in ORDERS
    ]
    for name in ("macro", "micro", "linear"):
        bound = 1.0 if name == "linear" else 1.05
        ratio = flops_a_token(name) / flops_a_token("BP")
        found.append(
            finding.at_most(
                f"FLOPs a token of {name} over BP's, counted",
                ratio,
                bound,
                "own expectation: inside of a block errors pass matrices as under BP",
            )
        )
    return found


RECIPE = RunStudy(
    title=RUNS.title,
    paper=RUNS.paper,
    minutes=RUNS.minutes,
    runs=RUNS,
    draw=draw,
    findings=findings,
)
CONFIG = RUNS.variants["macro"]
