"""ReLU students: how often direct feedback alignment succeeds, against the number of hidden units.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of the fraction of successful runs and its binomial formula
Command: python scripts/reproduce.py align_then_memorise/relu_success
Time: 10 min on 2 cores
Expect: a ReLU unit's output has one sign, so v_k < 0 cannot serve a teacher with A > 0, and v
    aligns with F. A run succeeds just where at least M components of F are positive; with random
    signs that is P(K, M) = 2^-K sum_{k <= K - M} binomial(K, k).

M = 2 teachers with A = 1, D = 100, both layers from N(0, 1) at the rate 0.1, up to t = 3000. F has
random signs and magnitudes (1 + |N(0, 1)|) / 2, drawn for each run.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax import theory
from dfa_jax.report import finding, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme

RULE = "direct_feedback_alignment"
NUM_TEACHERS = 2
WIDTHS = (2, 3, 4, 5, 6, 8)
SUCCESS = 1e-2  # generalisation error; failures end at 0.08 or above


@dataclasses.dataclass(frozen=True)
class Runs:
    """Final errors of simulated runs with random feedback."""

    num_students: int
    num_runs: int = 200
    dim: int = 100
    last_time: float = 3000.0
    learning_rate: float = 0.1

    def run(self) -> Mapping[str, np.ndarray]:
        setup = theory.TeacherStudent("relu", RULE, self.learning_rate, self.learning_rate)
        times = np.array([0.0, self.last_time])

        def one(key):
            sign_key, size_key, draw_key, run_key = jax.random.split(key, 4)
            shape = (self.num_students,)
            size = 0.5 + 0.5 * jnp.abs(jax.random.normal(size_key, shape))
            feedback = jax.random.rademacher(sign_key, shape) * size
            weights = theory.draw_weights(
                draw_key, self.dim, v_teacher=jnp.ones(NUM_TEACHERS), feedback=feedback
            )
            op = theory.from_weights(weights)
            found = theory.simulate(run_key, setup, op, self.dim, times)
            return theory.generalization_error(found, "relu")[-1], (feedback > 0).sum()

        keys = jax.random.split(jax.random.key(self.num_students), self.num_runs)
        error, positive = jax.jit(jax.vmap(one))(keys)
        return {"error": np.asarray(error), "positive": np.asarray(positive)}

    def shrunk(self) -> "Runs":
        return dataclasses.replace(self, num_runs=3, dim=20, last_time=1.0)


CASES = {f"K = {K}": Runs(K) for K in WIDTHS}


def probability(K: int, M: int = NUM_TEACHERS) -> float:
    """That at least M of K random signs are positive."""
    return sum(math.comb(K, k) for k in range(K - M + 1)) / 2**K


def draw(results: Results, theme: Theme) -> Figure:
    """Fraction of successes against K, with the formula."""
    figure, axes = panel.panels(1, 1)
    axis, widths = axes[0, 0], np.array(WIDTHS[: len(results)])
    fractions = np.array([np.mean(found["error"] < SUCCESS) for found in results.values()])
    runs = np.array([len(found["error"]) for found in results.values()])
    spread = 1.96 * np.sqrt(fractions * (1 - fractions) / runs)
    axis.plot(widths, [probability(K) for K in widths], color=style.INK[theme], label="formula")
    axis.errorbar(
        widths,
        fractions,
        spread,
        color=style.colour(RULE, theme),
        marker="s",
        linestyle="none",
        label="simulation",
    )
    axis.set(title="ReLU students that succeed", ylabel="fraction of runs", ylim=(0, 1.02))
    panel.count_axis(axis, "hidden units K", [int(K) for K in widths])
    axis.legend()
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """Success run by run, and its frequency."""
    found = []
    for label, case in results.items():
        K, success = CASES[label].num_students, case["error"] < SUCCESS
        predicted = case["positive"] >= NUM_TEACHERS
        expected = probability(K)
        sampling = 2.58 * math.sqrt(expected * (1 - expected) / len(success))
        found += [
            finding.count(
                f"{label}: runs that succeed just where M signs are positive",
                success == predicted,
                round(0.98 * len(success)),
                "the argument of the paper's abstract, and another program's 160 runs",
            ),
            finding.near(
                f"{label}: fraction of successes (tolerance: 99 % of samples of this size)",
                success.mean(),
                expected,
                sampling,
                "binomial formula",
            ),
        ]
    return found


RECIPE = Study(
    title="ReLU students: success against the number of hidden units",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=10,
    cases=CASES,
    draw=draw,
    findings=findings,
)
