"""Label noise: noisy labels delay alignment and do not lessen it.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of label corruption
Command: python scripts/reproduce.py align_then_memorise/label_noise
Time: 24 min on 2 cores
Expect: with more random labels, alignment takes off later (about ten times later at 90 %), its peak
    hardly changes, and the final gradient alignment is as high or higher.

MNIST, ReLU and tanh, with the sizes of align_then_memorise/deep_networks and what it says of them,
under direct feedback alignment; 300 epochs, ReLU at rate 0.02 (with noisy labels, 0.04 breaks the
networks), and five seeds in place of ten. A corrupted label is a class at random, the right one
among them; test labels stay, where the paper's are corrupted too.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dfa_jax.report import catalogue, ensembles, finding, panel
from dfa_jax.report.ensembles import Ensemble
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Arrays, Results, Study
from dfa_jax.report.style import Theme

RELU_RATE = 0.02
FRACTIONS = (0.0, 0.1, 0.5, 0.9)
ACTIVATIONS = ("relu", "tanh")
ROWS = {"weight_alignment": "weight alignment", "preactivation_alignment": "gradient alignment"}
BASE = {
    activation: catalogue.load_study("align_then_memorise/deep_networks").cases[
        f"mnist/{activation}/direct_feedback_alignment"
    ]
    for activation in ACTIVATIONS
}


def corrupted(activation: str, fraction: float) -> Ensemble:
    """The ensemble of the deep networks' study with noisy labels and five seeds."""
    base = BASE[activation]
    assert isinstance(base, Ensemble)
    data = dataclasses.replace(base.config.data, label_noise=fraction)
    config = dataclasses.replace(base.config, data=data, num_epochs=300)
    if activation == "relu":
        optimizer = dataclasses.replace(config.optimizer, learning_rate=RELU_RATE)
        config = dataclasses.replace(config, optimizer=optimizer)
    return dataclasses.replace(base, config=config, seeds=base.seeds[:5])


CASES = {
    f"{activation}/{fraction:.0%} random": corrupted(activation, fraction)
    for activation in ACTIVATIONS
    for fraction in FRACTIONS
}


def draw(results: Results, theme: Theme) -> Figure:
    """Weight and gradient alignment against epochs, a line a fraction."""
    figure, axes = panel.panels(len(ROWS), len(ACTIVATIONS))
    for column, activation in zip(axes.T, ACTIVATIONS, strict=True):
        for axis, (name, words) in zip(column, ROWS.items(), strict=True):
            for place, fraction in enumerate(FRACTIONS):
                label = f"{fraction:.0%} random"
                if found := results.get(f"{activation}/{label}"):
                    curve = ensembles.over_epochs(found, name)
                    colour = ensembles.layer_colour(place, theme)
                    ensembles.draw(axis, curve, colour, label=label)
            axis.set(title=f"{words}, {activation}", ylabel=words)
            if results:
                axis.legend(loc="upper left")
    return figure


def take_off(found: Arrays) -> float:
    """The epoch at which weight alignment first has half of its largest value."""
    curve = found["weight_alignment"].mean(1)
    half = min(curve.max() / 2, curve.max())  # of a curve that never rises, its largest value
    return float(found["epoch"][np.flatnonzero(curve >= half)[0]])


def findings(results: Results) -> Sequence[Finding]:
    """When alignment comes, how high it gets, and where gradient alignment ends."""
    found = []
    plots = "read off the authors' plots, at the paper's size"
    for activation in ACTIVATIONS:
        clean, noisy = (results[f"{activation}/{f:.0%} random"] for f in (0.0, 0.9))
        last = [curves["preactivation_alignment"][-1].mean() for curves in (clean, noisy)]
        found += [
            finding.at_least(
                f"{activation}: epoch of half the largest weight alignment, 90 % over 0 % random",
                take_off(noisy) / max(take_off(clean), 1e-9),
                5.0,
                plots,
            ),
            finding.near(
                f"{activation}: largest weight alignment, 90 % less 0 % random",
                noisy["weight_alignment"].max(0) - clean["weight_alignment"].max(0),
                0.0,
                0.08,
                plots,
            ),
            finding.at_least(
                f"{activation}: final gradient alignment, 90 % less 0 % random",
                last[1] - last[0],
                -0.02,
                plots,
            ),
        ]
    return found


RECIPE = Study(
    title="Label noise: alignment comes later, and as strong",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=24,
    cases=CASES,
    draw=draw,
    findings=findings,
)
