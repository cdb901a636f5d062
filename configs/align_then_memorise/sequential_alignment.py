"""Sequential alignment: layers align one after the other, from the bottom to the top.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of alignment layer by layer
Command: python scripts/reproduce.py align_then_memorise/sequential_alignment
Time: 37 min on 2 cores (none, once align_then_memorise/deep_networks has run)
Expect: gradient alignment rises first in the first hidden layer, then in the second, then in the
    third; the second layer's weight alignment peaks before the third's.

The runs are those of align_then_memorise/deep_networks, with what it says about their size.
"""

from collections.abc import Sequence

import numpy as np

from dfa_jax.report import catalogue, ensembles, panel
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Arrays, Results, Study
from dfa_jax.report.style import Theme

SOURCE = "align_then_memorise/deep_networks"
CASES = catalogue.load_study(SOURCE).cases
GROUPS = list(dict.fromkeys(label.rpartition("/")[0] for label in CASES))
RULE = "direct_feedback_alignment"
ROWS = {"preactivation_alignment": "gradient alignment", "weight_alignment": "weight alignment"}
THRESHOLD = 0.4


def draw(results: Results, theme: Theme) -> Figure:
    """Gradient and weight alignment by layer; a column a data set and activation."""
    figure, axes = panel.panels(len(ROWS), len(GROUPS))
    for column, group in zip(axes.T, GROUPS, strict=True):
        found = results.get(f"{group}/{RULE}", {})
        for axis, (kind, words) in zip(column, ROWS.items(), strict=True):
            for place, layer in enumerate(ensembles.layers(found, kind)):
                number = place + (1 if kind == "preactivation_alignment" else 2)
                curve = ensembles.over_epochs(found, f"{kind}/{layer}")
                colour = ensembles.layer_colour(number - 1, theme)
                ensembles.draw(axis, curve, colour, label=f"layer {number}")
            axis.set(title=f"{words}, {group.replace('/', ', ')}", ylabel=words, ylim=(-0.1, 1))
            if found:
                axis.legend(loc="upper left")
    return figure


def crossing(found: Arrays, layer: str) -> float:
    """The epoch at which the mean gradient alignment of a layer first reaches the threshold."""
    curve = found[f"preactivation_alignment/{layer}"].mean(1)
    above = np.flatnonzero(curve >= THRESHOLD)
    return float(found["epoch"][above[0]]) if len(above) else float("inf")


def findings(results: Results) -> Sequence[Finding]:
    """In which order layers cross, and peak."""
    found = []
    for group in GROUPS:
        curves = results[f"{group}/{RULE}"]
        crossed = [crossing(curves, n) for n in ensembles.layers(curves, "preactivation_alignment")]
        words = ", ".join(f"{epoch:.2g}" for epoch in crossed)
        found.append(
            Finding(
                f"{group}: epochs at which layers 1, 2, 3 reach gradient alignment {THRESHOLD}",
                "in this order, all of them",
                "the paper's claim",
                words,
                crossed == sorted(crossed) and bool(np.isfinite(crossed).all()),
            )
        )
        *hidden, _ = ensembles.layers(curves, "weight_alignment")  # the output's never peaks
        peaks = [
            float(curves["epoch"][curves[f"weight_alignment/{n}"].mean(1).argmax()]) for n in hidden
        ]
        found.append(
            Finding(
                f"{group}: epochs at which the weight alignment of layers 2 and 3 peaks",
                "in this order, the first before the end",
                "read off the authors' plots",
                ", ".join(f"{epoch:.3g}" for epoch in peaks),
                bool(peaks == sorted(peaks) and peaks[0] < curves["epoch"][-1]),
            )
        )
    return found


RECIPE = Study(
    title="Sequential alignment: from the bottom layer to the top",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=37,
    cases=CASES,
    draw=draw,
    findings=findings,
    shares=SOURCE,
)
