"""Degeneracy breaking: of many equally good students, feedback alignment finds one and the same.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of second-layer weights after training from several starts
Command: python scripts/reproduce.py align_then_memorise/degeneracy_breaking
Time: 1 min on 2 cores
Expect: a sign of v_k can be undone by that of w_k, so all sign patterns are as good. Under direct
    feedback alignment every start ends with sign(v) = sign(F); under backpropagation with any.
    Where the teacher's units differ, v is the permutation with the largest overlap F . v.

erf students with K = M = 2 from N(0, 1) with D = 500; solutions of the equations of motion.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dfa_jax import theory
from dfa_jax.report import finding, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme

CONVERGED = 1e-4  # generalisation error below which a run counts as having found a solution


@dataclasses.dataclass(frozen=True)
class Ends:
    """The second layers that many starts end with."""

    rule: str
    v_teacher: tuple[float, float]
    feedback: tuple[float, float]
    num_runs: int = 24
    dim: int = 500
    last_time: float = 10_000.0
    learning_rate: float = 0.2

    def run(self) -> Mapping[str, np.ndarray]:
        setup = theory.TeacherStudent("erf", self.rule, self.learning_rate, self.learning_rate)
        v_teacher, feedback = np.array(self.v_teacher), np.array(self.feedback)
        times = np.array([0.0, self.last_time])

        def one(key):
            weights = theory.draw_weights(key, self.dim, v_teacher=v_teacher, feedback=feedback)
            return theory.solve(theory.from_weights(weights), setup, times)

        with jax.enable_x64(True):
            found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), self.num_runs))
            error = theory.generalization_error(found, "erf")
            return {"v": np.asarray(found.v[:, -1]), "error": np.asarray(error[:, -1])}

    def shrunk(self) -> "Ends":
        return dataclasses.replace(self, num_runs=3, dim=30, last_time=1.0)


DFA, BP = "direct_feedback_alignment", "backprop"
EQUAL, UNEQUAL = ((1.0, 1.0), (1.0, -0.6)), ((1.0, 0.4), (0.5, -1.2))
CASES = {
    "equal/" + DFA: Ends(DFA, *EQUAL),
    "equal/" + BP: Ends(BP, *EQUAL),
    "unequal/" + DFA: Ends(DFA, *UNEQUAL, last_time=40_000.0),
    "unequal/" + BP: Ends(BP, *UNEQUAL, last_time=40_000.0),
}


def draw(results: Results, theme: Theme) -> Figure:
    """Final v_1 against v_2, one panel a rule and teacher; the feedback's direction as a line."""
    figure, axes = panel.panels(1, len(results))
    for axis, (label, found) in zip(axes[0], results.items(), strict=True):
        rule, case = label.rpartition("/")[2], CASES[label]
        done = found["error"] < CONVERGED
        colour, ink = style.colour(rule, theme), style.INK[theme]
        F = np.array(case.feedback) / np.linalg.norm(case.feedback)
        axis.plot([-2 * F[0], 2 * F[0]], [-2 * F[1], 2 * F[1]], color=ink, linewidth=0.8)
        axis.annotate("F", 1.45 * F, color=ink)
        random = np.random.default_rng(0).normal(scale=0.04, size=found["v"].shape)
        spread = found["v"] + random  # ends coincide: shown a little apart
        axis.plot(*spread[done].T, "o", color=colour, alpha=0.7)
        axis.plot(*spread[~done].T, "x", color=colour, alpha=0.7)
        axis.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal", xlabel="v_1", ylabel="v_2")
        teacher = "equal teachers" if label.startswith("equal") else "unequal teachers"
        axis.set_title(f"{style.label(rule)},\n{teacher}")
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """Signs and permutations of the runs that found a solution."""
    claim = "the paper's abstract (degeneracy breaking)"
    equal, free = results["equal/" + DFA], results["equal/" + BP]
    unequal = results["unequal/" + DFA]
    done = {name: found["error"] < CONVERGED for name, found in results.items()}
    signs = same_signs(equal["v"], EQUAL[1])
    others = same_signs(free["v"], EQUAL[1])[done["equal/" + BP]]
    best = best_overlap(*UNEQUAL)
    found_best = np.abs(unequal["v"] - best).max(1) < 0.05
    return [
        finding.count("equal teachers, DFA: runs with sign(v) = sign(F)", signs, len(signs), claim),
        finding.count(
            "equal teachers, DFA: runs that found a solution",
            done["equal/" + DFA],
            20,
            "own choice",
        ),
        finding.at_most(
            "equal teachers, BP: fraction of solutions with sign(v) = sign(F)",
            others.mean() if others.size else 1.0,
            0.75,
            "by chance 1 / 4",
        ),
        finding.count(
            "unequal teachers, DFA: solutions whose v is the permutation with the largest F . v",
            found_best[done["unequal/" + DFA]],
            int(done["unequal/" + DFA].sum()),
            claim,
        ),
        finding.count(
            "unequal teachers, DFA: runs with sign(v) = sign(F)",
            same_signs(unequal["v"], UNEQUAL[1]),
            len(unequal["v"]),
            claim,
        ),
        finding.count(
            "unequal teachers, DFA: runs that found a solution",
            done["unequal/" + DFA],
            20,
            "own choice",
        ),
    ]


def same_signs(v: np.ndarray, feedback: Sequence[float]) -> np.ndarray:
    """Whether each run's second layer has the feedback's signs, `[run]`."""
    return (np.sign(v) == np.sign(feedback)).all(1)


def best_overlap(v_teacher: Sequence[float], feedback: Sequence[float]) -> np.ndarray:
    """Of all signed permutations of the teacher's second layer, that with the largest `F . v`."""
    candidates = [
        np.array(order) * np.array(signs)
        for order in itertools.permutations(v_teacher)
        for signs in itertools.product((-1, 1), repeat=len(v_teacher))
    ]
    return max(candidates, key=lambda v: float(v @ np.array(feedback)))


RECIPE = Study(
    title="Degeneracy breaking: which of many equal solutions is found",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=1,
    cases=CASES,
    draw=draw,
    findings=findings,
)
