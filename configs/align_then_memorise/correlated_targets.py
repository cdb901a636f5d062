"""Correlated targets: badly conditioned targets make badly aligned networks.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of alignment against the targets' variance ratio and correlation (alpha, beta)
Command: python scripts/reproduce.py align_then_memorise/correlated_targets
Time: 11 min on 2 cores
Expect: the largest weight alignment and the final gradient alignment rise with alpha, strongly, and
    with beta, weakly.

As in the paper: x in 9 dimensions, two targets independent of x, 1,000 examples in batches of 32,
two hidden layers of 100 units without biases, plain SGD on the summed squared error at 1e-3 (0.064
for the mean of half the squares), feedback uniform on +-1 / sqrt(width), five seeds. Not as in the
paper: 4,000 true epochs in place of 10,000 (whose plots count 3.2 epochs for one), the corners of
the grid and its diagonal in place of 25 points, and batches drawn anew each epoch.
"""

from collections.abc import Sequence

import numpy as np

from dfa_jax.data import GaussianTargets
from dfa_jax.models import MLP
from dfa_jax.models.mlp import Activation
from dfa_jax.optim import Optimizer
from dfa_jax.report import finding, panel, style
from dfa_jax.report.ensembles import Ensemble
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.rules import DirectFeedbackAlignment
from dfa_jax.train.config import TrainConfig

POINTS = ((0.2, 0.2), (0.2, 1.0), (0.6, 0.6), (1.0, 0.2), (1.0, 1.0))
ACTIVATIONS: tuple[Activation, ...] = ("tanh", "relu")
RULE = "direct_feedback_alignment"


def config(activation: Activation, alpha: float, beta: float) -> TrainConfig:
    """One ensemble's run."""
    return TrainConfig(
        data=GaussianTargets(alpha, beta),
        model=MLP((100, 100), 2, activation, use_bias=False, kernel_init="uniform_fan_in"),
        rule=DirectFeedbackAlignment(feedback_distribution="uniform"),
        loss="squared_error",
        optimizer=Optimizer("sgd", learning_rate=0.064),
        batch_size=32,
        num_epochs=4000,
        log_evaluations=40,
        alignment_examples=1000,
        feedback_seed=0,
    )


CASES = {
    f"{activation}/alpha {alpha:g}, beta {beta:g}": Ensemble(
        config(activation, alpha, beta), seeds=tuple(range(5))
    )
    for activation in ACTIVATIONS
    for alpha, beta in POINTS
}
PUBLISHED = {  # largest weight alignment, final gradient alignment, of the two corners
    "tanh/alpha 0.2, beta 0.2": (0.20, 0.62),
    "tanh/alpha 1, beta 1": (0.26, 0.79),
    "relu/alpha 0.2, beta 0.2": (0.18, 0.68),
    "relu/alpha 1, beta 1": (0.23, 0.81),
}


def draw(results: Results, theme: Theme) -> Figure:
    """Both alignments at each point of the grid, a column an activation."""
    figure, axes = panel.panels(2, len(ACTIVATIONS))
    places = np.arange(len(POINTS))
    for column, activation in zip(axes.T, ACTIVATIONS, strict=True):
        for axis, quantity in zip(column, ("weight", "gradient"), strict=True):
            for place, (alpha, beta) in enumerate(POINTS):
                found = results.get(f"{activation}/alpha {alpha:g}, beta {beta:g}")
                if found:
                    values = alignments(found)[quantity]
                    axis.plot([place] * len(values), values, "s", color=style.colour(RULE, theme))
            axis.set(title=f"{quantity} alignment, {activation}", ylabel="cosine")
            axis.set_xticks(places, [f"{alpha:g}, {beta:g}" for alpha, beta in POINTS])
            axis.set_xlabel("alpha, beta")
    return figure


def alignments(found) -> dict[str, np.ndarray]:
    """Largest weight alignment and last gradient alignment of each seed."""
    return {
        "weight": found["weight_alignment"].max(0),
        "gradient": found["preactivation_alignment"][-1],
    }


def findings(results: Results) -> Sequence[Finding]:
    """The corners' levels, and the directions."""
    found = []
    for label, (weight, gradient) in PUBLISHED.items():
        ours = alignments(results[label])
        source = "the authors' plots, and another program's runs"
        found += [
            finding.near(
                f"{label}: largest weight alignment", ours["weight"], weight, 0.03, source
            ),
            finding.near(
                f"{label}: final gradient alignment", ours["gradient"], gradient, 0.03, source
            ),
        ]
    for activation in ACTIVATIONS:
        by_point = {
            point: alignments(results[f"{activation}/alpha {point[0]:g}, beta {point[1]:g}"])
            for point in POINTS
        }
        for quantity in ("weight", "gradient"):
            means = {point: values[quantity].mean() for point, values in by_point.items()}
            found.append(
                finding.at_least(
                    f"{activation}: rise of {quantity} alignment with alpha, at beta = 1",
                    means[1.0, 1.0] - means[0.2, 1.0],
                    0.0,
                    "the paper's claim",
                )
            )
    return found


RECIPE = Study(
    title="Correlated targets: conditioning and alignment",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=11,
    cases=CASES,
    draw=draw,
    findings=findings,
)
