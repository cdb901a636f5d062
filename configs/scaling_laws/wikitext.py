"""Table 5 of the 2020 paper in small: a Transformer of six post-LN blocks under DFA.

Paper: Launay, Poli, Boniface and Krzakala (2020), Direct Feedback Alignment Scales to Modern Deep
    Learning Tasks and Architectures, arXiv 2006.12878, table 5
Command: python scripts/reproduce.py scaling_laws/wikitext
Time: 40 min on 2 cores
Expect: perplexity of BP below DFA with sites behind blocks (macro), below sites inside of them
    (micro), far below the shallow control. The published ratios are of a network 90 times as large
    after some 20 passes over 100 million words; after a thousandth of that, smaller ones will do.

As in the paper's published code: six blocks, norms behind the sums, sinusoidal positions, ReLU;
one feedback matrix for all sites, uniform, whose first columns serve narrower ones; the error at
the last hidden state; Adam with beta2 0.999 and eps 1e-9, gradients clipped at norm 0.5. Not as
there: 48 units a block in place of 512, 4,096 byte pairs in place of 32,000, the documentation of
Linux in place of WikiText-103, 1,000 steps of 16 x 128 tokens, no dropout; and one schedule for
all, a short warm-up and a linear decay, where BP had Noam's and DFA one that reacted to plateaus.
Rates are searched as in `scaling_laws/frontier`.

Published perplexities of BP (29.8), macro (52.0) and micro (93.3) are second-hand, of the shallow
control (above 400) from the paper. A ratio is reproduced if our 95 % interval contains it.

The runs on record cannot be judged so: their learning rates are not established (`RATE_DOUBT`).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from dfa_jax.models import Transformer
from dfa_jax.models.transformer import Granularity, credit_sites
from dfa_jax.optim import Optimizer
from dfa_jax.report import catalogue, finding, panel, series, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.statistics import summarise
from dfa_jax.report.style import Theme
from dfa_jax.rules import Backprop, DirectFeedbackAlignment, LearningRule, Shallow
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import RunRecord

FRONTIER = catalogue.run_file("scaling_laws/frontier")
VOCABULARY, STEPS = 4096, 1000
DATA = dataclasses.replace(FRONTIER["DATA"], tokenizer="bpe", vocab_size=VOCABULARY)
MODEL = Transformer(
    num_outputs=VOCABULARY,
    num_layers=6,
    width=48,
    num_heads=4,
    context=DATA.context,
    norm="post",
    positions="sinusoidal",
    activation="relu",
)
DFA = DirectFeedbackAlignment(
    feedback_distribution="uniform", feedback_sharing="shared", error_tap="last_hidden"
)
ARMS: dict[str, tuple[LearningRule, Granularity]] = {
    "shallow": (Shallow(), "macro"),
    "micro": (DFA, "micro"),
    "macro": (DFA, "macro"),
    "BP": (Backprop(), "macro"),
}
PAPER = {"BP": 29.8, "macro": 52.0, "micro": 93.3, "shallow": 400.0}
SECOND_HAND = "second-hand, of table 5"
MARKS = {"macro": SECOND_HAND, "micro": SECOND_HAND, "shallow": "paper, over a second-hand number"}
RATE_DOUBT = (
    "The trials that chose the learning rates had 150 steps, of which 100 were warm-up: under DFA"
    " the loss of tokens' frequencies, wherever the rate was not too high (6.83 to 6.86 for macro"
    " between 2e-3 and 8e-3). At 4e-3 in place of the 8e-3 that they chose, one run of macro, same"
    " seed, reached perplexity 111, below the shallow control. Until the search is made again, no"
    " order or ratio of these arms is a finding."
)


def config(rule: LearningRule, granularity: Granularity) -> TrainConfig:
    """The run of an arm."""
    return TrainConfig(
        data=DATA,
        model=MODEL,
        sites=credit_sites(MODEL, granularity, last_hidden=True),
        rule=rule,
        optimizer=Optimizer(
            "adam",
            learning_rate=4e-3,
            b2=0.999,
            eps=1e-9,
            clip_norm=0.5,
            schedule="linear",
            warmup_fraction=0.1,
        ),
        batch_size=16,
        num_tokens=STEPS * 16 * DATA.context,
        log_evaluations=12,
        alignment_examples=0,
    )


RUNS = Recipe(
    title="Table 5 in small: perplexity of a Transformer under DFA",
    paper="Launay, Poli, Boniface and Krzakala (2020), Direct Feedback Alignment Scales to Modern"
    " Deep Learning Tasks and Architectures, arXiv 2006.12878, table 5",
    minutes=40,
    variants={name: config(*arm) for name, arm in ARMS.items()},
    seeds=(0, 1, 2),
    tuning=Tuning(num_validation=65_536, fraction=0.15, factor=2.0),
)


def log_perplexities(held: Sequence[RunRecord], name: str) -> np.ndarray:
    """Test losses at the end of an arm's runs, nats a token, in order of their seeds."""
    runs = sorted((run for run in held if run.variant == name), key=lambda run: run.seed)
    return np.array([run.final.test_loss for run in runs])


def draw(held: Sequence[RunRecord], theme: Theme) -> Figure:
    """Perplexity along the runs; at their end, beside the paper's, both over BP's."""
    figure, axes = panel.panels(1, 2)
    curves, ends = axes[0]
    shown = [name for name in ARMS if log_perplexities(held, name).size]
    for name in shown:
        runs = [run for run in held if run.variant == name]
        curve = series.over_epochs(runs, lambda one: float(np.exp(one.test_loss)))
        panel.line(curves, curve, name, theme)
    curves.set(xscale="log", yscale="log", xlabel="passes over the text", title="Perplexity")
    bp = log_perplexities(held, "BP")
    for place, name in enumerate(PAPER if bp.size else ()):
        colour, found = style.colour(name, theme), log_perplexities(held, name)
        ends.plot(place, PAPER[name] / PAPER["BP"], "_", color=colour, markersize=26)
        if len(found) == len(bp):
            one = summarise((found - bp).tolist())
            low, high = np.exp(one.interval)
            mean = float(np.exp(one.mean))
            ends.errorbar(
                place,
                mean,
                yerr=[[mean - low], [high - mean]],
                fmt=style.rule_style(name).marker,
                color=colour,
            )
    ends.set_xticks(range(len(PAPER)), PAPER)
    ends.set(yscale="log", title="Over BP's at the end; bars: published")
    panel.rule_legend(figure, shown, theme)
    return figure


def findings(held: Sequence[RunRecord]) -> Sequence[Finding]:
    """The order of the arms, and their perplexities over BP's."""
    found = []
    arms = tuple(PAPER)
    for better, worse in itertools.pairwise(arms):
        gap = log_perplexities(held, worse) - log_perplexities(held, better)
        found.append(
            finding.positive(
                f"log perplexity of {worse} ({perplexity(held, worse)}) minus that of {better}"
                f" ({perplexity(held, better)})",
                gap,
                f"table 5: {PAPER[better]:g} and {PAPER[worse]:g}, {MARKS[worse]}",
            )
        )
    for name, mark in MARKS.items():
        gap = log_perplexities(held, name) - log_perplexities(held, "BP")
        found.append(ratio(name, gap, mark))
    return found


def perplexity(held: Sequence[RunRecord], name: str) -> str:
    """Geometric mean over seeds."""
    return f"{np.exp(log_perplexities(held, name).mean()):.1f}"


def ratio(name: str, gap: np.ndarray, mark: str) -> Finding:
    """An arm's perplexity over BP's; the published one of the shallow control is a bound."""
    one, expected = summarise(gap.tolist()), PAPER[name] / PAPER["BP"]
    low, high = np.exp(one.interval)
    bound = name == "shallow"
    return Finding(
        f"perplexity of {name} over BP's",
        f"above {expected:.3g}" if bound else f"{expected:.3g}",
        mark,
        f"{np.exp(one.mean):.3g} [{low:.3g}, {high:.3g}]",
        bool(high > expected) if bound else bool(low <= expected <= high),
    )


RECIPE = RunStudy(
    title=RUNS.title,
    paper=RUNS.paper,
    minutes=RUNS.minutes,
    runs=RUNS,
    draw=draw,
    findings=findings,
    rate_doubt=RATE_DOUBT,
)
CONFIG = RUNS.variants["macro"]
