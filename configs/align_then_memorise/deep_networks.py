"""Align, then memorise, in deep networks: alignment and training error over time, ten seeds.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of weight and gradient alignment on MNIST and CIFAR-10
Command: python scripts/reproduce.py align_then_memorise/deep_networks
Time: 37 min on 2 cores
Expect: weight alignment rises first, peaks, and then falls while the training loss keeps falling;
    gradient alignment mostly saturates.

As in the paper: three hidden layers of 100 units without biases, images of 14 x 14 pixels, weights
from PyTorch's default start, feedback uniform on +-1 / sqrt(width) and the same for all ten seeds,
plain SGD with batches of 32. Not as in the paper: 10,000 training examples in place of all, 300 or
600 epochs in place of some 2,500 (100 under backpropagation), at rates of 0.02 to 0.1 for the mean
loss, 6e-4 to 3e-3 for the sum over the batch, as high as each network trains at; the paper has
1e-4. The paper's full size costs some 40 times as much. Set the constants below for it.
"""

from collections.abc import Sequence

import numpy as np

from dfa_jax.data import ImageData
from dfa_jax.models import MLP
from dfa_jax.models.mlp import Activation
from dfa_jax.optim import Optimizer
from dfa_jax.report import ensembles, finding, panel, style
from dfa_jax.report.ensembles import Ensemble
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.rules import Backprop, DirectFeedbackAlignment
from dfa_jax.train.config import TrainConfig

NUM_TRAIN = 10_000
LEARNING_RATE = {"mnist/relu": 0.04, "mnist/tanh": 0.1, "cifar10/relu": 0.02, "cifar10/tanh": 0.06}
NUM_EPOCHS = {"mnist/relu": 600, "mnist/tanh": 300, "cifar10/relu": 300, "cifar10/tanh": 300}
BACKPROP_EPOCHS = 100

RULES = {
    "direct_feedback_alignment": DirectFeedbackAlignment(feedback_distribution="uniform"),
    "backprop": Backprop(),
}
DATA = ("mnist", "cifar10")
ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh")


def config(data: str, activation: Activation, rule: str) -> TrainConfig:
    """One ensemble's run."""
    group = f"{data}/{activation}"
    return TrainConfig(
        data=ImageData(data, num_train=NUM_TRAIN, image_size=14),
        model=MLP((100, 100, 100), 10, activation, use_bias=False, kernel_init="uniform_fan_in"),
        rule=RULES[rule],
        optimizer=Optimizer("sgd", learning_rate=LEARNING_RATE[group]),
        batch_size=32,
        num_epochs=BACKPROP_EPOCHS if rule == "backprop" else NUM_EPOCHS[group],
        log_evaluations=40,
        alignment_examples=512,
        feedback_seed=0,
    )


CASES = {
    f"{data}/{activation}/{rule}": Ensemble(config(data, activation, rule))
    for data in DATA
    for activation in ACTIVATIONS
    for rule in RULES
}
GROUPS = [f"{data}/{activation}" for data in DATA for activation in ACTIVATIONS]
ROWS = {
    "train_error": "training error",
    "weight_alignment": "weight alignment",
    "preactivation_alignment": "gradient alignment",
}
PUBLISHED = {  # at all examples and some 2,500 epochs: largest and last weight alignment, gradient
    "mnist/relu": (0.34, 0.33, 0.75),
    "mnist/tanh": (0.43, 0.41, 0.70),
    "cifar10/relu": (0.39, 0.28, 0.82),
    "cifar10/tanh": (0.46, 0.33, 0.87),
}


def draw(results: Results, theme: Theme) -> Figure:
    """Training error, weight and gradient alignment; a column a data set and activation."""
    figure, axes = panel.panels(len(ROWS), len(GROUPS))
    for column, group in zip(axes.T, GROUPS, strict=True):
        for axis, (name, words) in zip(column, ROWS.items(), strict=True):
            for rule in RULES:
                found = results.get(f"{group}/{rule}", {})
                if name in found and (rule != "backprop" or name == "train_error"):
                    curve = ensembles.over_epochs(found, name)
                    ensembles.draw(axis, curve, style.colour(rule, theme))
            axis.set(title=f"{words}, {group.replace('/', ', ')}", ylabel=words)
    panel.rule_legend(figure, list(RULES), theme)
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """Peaks, what follows them, and the paper's levels."""
    found = []
    plots = "read off the authors' plots, at the paper's size"
    for group in GROUPS:
        curves = results[f"{group}/direct_feedback_alignment"]
        aligned, loss = curves["weight_alignment"].mean(1), curves["train_loss"].mean(1)
        peak = int(np.argmax(aligned))
        fall = curves["weight_alignment"][peak] - curves["weight_alignment"][-1]
        largest, last, gradient = PUBLISHED[group]
        found += [
            finding.at_least(
                f"{group}: fall of weight alignment from its peak, at epoch"
                f" {curves['epoch'][peak]:.3g}, to the end",
                fall.mean(),
                0.005,
                "the paper's claim",
            ),
            finding.at_most(
                f"{group}: training loss at the end over that at the peak",
                loss[-1] / loss[peak],
                0.95,
                "the paper's claim",
            ),
            finding.near(
                f"{group}: largest weight alignment",
                curves["weight_alignment"].max(0),
                largest,
                0.03,
                plots,
            ),
            finding.near(
                f"{group}: last weight alignment", curves["weight_alignment"][-1], last, 0.03, plots
            ),
            finding.near(
                f"{group}: last gradient alignment",
                curves["preactivation_alignment"][-1],
                gradient,
                0.03,
                plots,
            ),
        ]
    return found


RECIPE = Study(
    title="Align, then memorise, in deep networks",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=37,
    cases=CASES,
    draw=draw,
    findings=findings,
)
