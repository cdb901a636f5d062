"""Figure 1, a schematic: four ways in which a cheaper learning rule may compare with another.

Paper: Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation, arXiv
    2210.14593, figure 1
Command: python scripts/reproduce.py scaling_laws/outcomes
Time: 1 min on 2 cores
Expect: the verdict on made-up runs is the letter that they were made for: A, DFA better everywhere;
    B, at scale; C, backpropagation better at scale; D, everywhere.

Nothing is trained. Losses lie on two power laws of compute, without noise, so that everything is
known in closed form: which is the lower one, where they cross, and how many FLOPs the one spends
for the other's loss. `scaling.judge`, which passes the sentence on trained networks in
`scaling_laws/frontier`, has to find it. Backpropagation's exponent, and DFA's in C, are those that
the paper is said to report; all else is our choice. A discount is in DFA's FLOPs already.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dfa_jax.report import finding, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.scaling import Run, judge

LETTERS = "ABCD"
BUDGETS = np.geomspace(1e16, 1e22, 13)
PIVOT = 1e19  # FLOPs, in the middle
SIZES = (10**7, 10**8)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two power laws, `L = at_pivot (C / PIVOT)^-alpha`, and what `judge` makes of them.

    Attributes:
        dfa: `at_pivot`, nats a token, and `alpha`.
        bp: the same.
        num_samples: of the bootstrap, in which nothing varies.
    """

    dfa: tuple[float, float]
    bp: tuple[float, float] = (3.0, 0.071)
    num_samples: int = 100

    def run(self) -> Mapping[str, np.ndarray]:
        laws = {"BP": self.bp, "DFA": self.dfa}
        runs = [
            Run(arm, f"{size:.0e}", size, int(flops / size / 6), flops, float(loss), seed)
            for arm, law in laws.items()
            for size in SIZES
            for seed in (0, 1)
            for flops, loss in zip(BUDGETS.tolist(), losses(law), strict=True)
        ]
        judged = judge(
            jax.random.key(0),
            {"own": runs},
            [PIVOT],
            arm="DFA",
            reference="BP",
            num_samples=self.num_samples,
        )
        (outcome,), (compared,) = judged.outcomes, judged.comparisons
        return {
            "outcome": np.array(LETTERS.find(outcome.outcome[0])),  # "undecided": -1
            "ratio": np.array(compared.ratio.estimate),
        }

    def shrunk(self) -> "Pair":
        return dataclasses.replace(self, num_samples=2)

    @property
    def ratio(self) -> float:
        """FLOPs of DFA over those of backpropagation at the loss that this has at the pivot."""
        (at_pivot, alpha), (reference, _) = self.dfa, self.bp
        return (at_pivot / reference) ** (1 / alpha)


def losses(law: tuple[float, float]) -> np.ndarray:
    """At all budgets."""
    at_pivot, alpha = law
    return at_pivot * (BUDGETS / PIVOT) ** -alpha


CASES = {
    "A": Pair(dfa=(2.6, 0.075)),
    "B": Pair(dfa=(3.05, 0.105)),
    "C": Pair(dfa=(2.95, 0.040)),
    "D": Pair(dfa=(3.7, 0.060)),
}
WORDS = {
    "A": "A: DFA better everywhere",
    "B": "B: DFA better at scale",
    "C": "C: BP better at scale",
    "D": "D: BP better everywhere",
}


def draw(results: Results, theme: Theme) -> Figure:
    """Loss against compute, a panel an outcome; shaded where DFA is better."""
    figure, axes = panel.panels(2, 2)
    for axis, label in zip(axes.flat, results, strict=False):
        case = CASES[label]
        ours, theirs = losses(case.dfa), losses(case.bp)
        for rule, loss in (("BP", theirs), ("DFA", ours)):
            axis.plot(BUDGETS, loss, color=style.colour(rule, theme))
        axis.fill_between(
            BUDGETS,
            ours,
            theirs,
            where=(ours < theirs).tolist(),
            interpolate=True,
            color=style.colour("DFA", theme),
            alpha=0.18,
            linewidth=0,
        )
        axis.set(xscale="log", yscale="log", title=WORDS[label])
        axis.set_xticks([], minor=True)
        axis.set_yticks([2, 3, 4, 5], ["2", "3", "4", "5"], minor=False)
        axis.set_yticks([], minor=True)
    for axis in axes[-1]:
        axis.set_xlabel("compute, FLOPs")
    for axis in axes[:, 0]:
        axis.set_ylabel("loss")
    panel.rule_legend(figure, ["BP", "DFA"], theme)
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """The letter, and the FLOPs at equal loss."""
    found = []
    for label, case in CASES.items():
        place = int(results[label]["outcome"])
        letter = LETTERS[place] if place >= 0 else "undecided"
        found += [
            Finding(f"{WORDS[label]}: verdict", label, "by construction", letter, letter == label),
            finding.near(
                f"{WORDS[label]}: FLOPs of DFA over BP's at BP's loss at {PIVOT:.0e} FLOPs",
                results[label]["ratio"],
                case.ratio,
                1e-3 * case.ratio,
                "closed form",
            ),
        ]
    return found


RECIPE = Study(
    title="Figure 1: four outcomes, drawn and judged",
    paper="Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation,"
    " arXiv 2210.14593, figure 1",
    minutes=1,
    cases=CASES,
    draw=draw,
    findings=findings,
)
