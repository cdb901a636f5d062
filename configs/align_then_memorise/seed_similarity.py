"""Degeneracy breaking in deep networks: how similar networks of different seeds become.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of the cosine similarity between the weights of different seeds
Command: python scripts/reproduce.py align_then_memorise/seed_similarity
Time: 37 min on 2 cores (none, once align_then_memorise/deep_networks has run)
Expect: networks that share their feedback converge on each other under direct feedback alignment;
    under backpropagation they stay as far apart as they started.

The runs are those of align_then_memorise/deep_networks, with what it says about their size.
"""

from collections.abc import Sequence

import numpy as np

from dfa_jax.report import catalogue, ensembles, finding, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme

SOURCE = "align_then_memorise/deep_networks"
CASES = catalogue.load_study(SOURCE).cases
RULES = ("direct_feedback_alignment", "backprop")
GROUPS = list(dict.fromkeys(label.rpartition("/")[0] for label in CASES))


def draw(results: Results, theme: Theme) -> Figure:
    """Mean cosine over pairs of seeds against epochs, a panel a data set and activation."""
    figure, axes = panel.panels(1, len(GROUPS))
    for axis, group in zip(axes[0], GROUPS, strict=True):
        for rule in RULES:
            if found := results.get(f"{group}/{rule}"):
                curve = ensembles.over_epochs(found, "seed_similarity")
                ensembles.draw(axis, curve, style.colour(rule, theme))
        axis.set(title=group.replace("/", ", "), ylabel="cosine between seeds", ylim=(-0.05, 1))
    panel.rule_legend(figure, RULES, theme)
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """Early and late, under both rules."""
    found = []
    for group in GROUPS:
        direct, chain = (results[f"{group}/{rule}"] for rule in RULES)
        early = min(np.searchsorted(direct["epoch"], 10.0), len(direct["epoch"]) - 1)
        found += [
            finding.at_least(
                f"{group}, DFA: cosine between seeds by epoch {direct['epoch'][early]:.3g}",
                direct["seed_similarity"][early],
                0.1,
                "read off the authors' plots",
            ),
            finding.at_most(
                f"{group}, BP: largest cosine between seeds",
                chain["seed_similarity"].max(),
                0.02,
                "read off the authors' plots",
            ),
            finding.near(
                f"{group}, DFA: cosine between seeds at the end",
                direct["seed_similarity"][-1],
                0.6,
                0.13,
                "0.5 to 0.7 at the paper's size, read off the authors' plots",
            ),
        ]
    return found


RECIPE = Study(
    title="Degeneracy breaking in deep networks: similarity between seeds",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=37,
    cases=CASES,
    draw=draw,
    findings=findings,
    shares=SOURCE,
)
