"""The shallow theory against simulation: generalisation error over time, under two rules.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of theory and simulation
Command: python scripts/reproduce.py align_then_memorise/theory_vs_simulation
Time: 5 min on 2 cores
Expect: simulations of online learning in D dimensions fall on the solution of the equations of
    motion, with deviations that fall as the root of D.

Students with K = 2 units learn from teachers with M = 2 units and second layer A = (1, 1); both
layers are trained at the rate 0.2, from N(0, 1), on feedback that all runs share. The paper has no
theory for ReLU students; ours does, by quadrature of one of the averages.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dfa_jax import theory
from dfa_jax.report import finding, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.theory.clock import log_times

RULES = ("direct_feedback_alignment", "backprop")
ACTIVATIONS = ("erf", "relu")
DIMS = (100, 400, 1600)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Errors of runs in `dim` dimensions, simulated and solved from the same starts."""

    activation: str
    rule: str
    feedback: tuple[float, ...]
    dim: int = 500
    num_runs: int = 10
    last_time: float = 500.0
    num_times: int = 25
    learning_rate: float = 0.2
    step_size: float | None = None

    def run(self) -> Mapping[str, np.ndarray]:
        setup = theory.TeacherStudent(
            self.activation, self.rule, self.learning_rate, self.learning_rate
        )
        times = log_times(0.1, self.last_time, self.num_times)
        keys = jax.random.split(jax.random.key(0), self.num_runs)
        run_keys = jax.random.split(jax.random.key(1), self.num_runs)

        def both(key, run_key):
            weights = theory.draw_weights(
                key, self.dim, v_teacher=np.ones(2), feedback=np.array(self.feedback)
            )
            op = theory.from_weights(weights)
            simulated = theory.simulate(run_key, setup, op, self.dim, times)
            return simulated, theory.solve(op, setup, times, step_size=self.step_size)

        with jax.enable_x64(True):
            simulated, solved = jax.jit(jax.vmap(both))(keys, run_keys)
            error, predicted = (
                theory.generalization_error(op, self.activation) for op in (simulated, solved)
            )
            gaps = [
                np.asarray(getattr(simulated, name) - getattr(solved, name)).reshape(
                    self.num_runs, self.num_times, -1
                )
                for name in ("Q", "R", "v")
            ]
        deviation = np.sqrt(np.mean(np.concatenate(gaps, -1) ** 2, -1))
        return {
            "time": times,
            "simulated": np.asarray(error),
            "solved": np.asarray(predicted),
            "deviation": deviation,
        }

    def shrunk(self) -> "Curves":
        return dataclasses.replace(self, dim=30, num_runs=2, last_time=2.0, num_times=4)


FEEDBACK = {"erf": (1.0, -0.6), "relu": (1.0, 0.6)}  # a ReLU cannot mend a wrong sign
STEP_SIZE = {"erf": None, "relu": 0.5}  # the quadrature's last digits disturb adaptive steps
CASES = {
    f"{activation}/{rule}": Curves(
        activation, rule, FEEDBACK[activation], step_size=STEP_SIZE[activation]
    )
    for activation in ACTIVATIONS
    for rule in RULES
} | {
    f"D = {dim}": Curves(
        "erf", "direct_feedback_alignment", FEEDBACK["erf"], dim, 20, last_time=20.0, num_times=8
    )
    for dim in DIMS
}


def draw(results: Results, theme: Theme) -> Figure:
    """Error against time, lines solved and symbols simulated; one panel an activation."""
    figure, axes = panel.panels(1, len(ACTIVATIONS))
    for axis, activation in zip(axes[0], ACTIVATIONS, strict=True):
        for rule in RULES:
            found = results.get(f"{activation}/{rule}")
            if found:
                colour = style.colour(rule, theme)
                time = found["time"][1:]
                axis.plot(time, found["solved"].mean(0)[1:], color=colour)
                axis.plot(
                    time,
                    found["simulated"].mean(0)[1:],
                    color=colour,
                    linestyle="none",
                    marker=style.rule_style(rule).marker,
                )
        axis.set(xscale="log", yscale="log", title=f"{activation} students")
        axis.set(xlabel="time, steps / D", ylabel="generalisation error")
    panel.rule_legend(figure, RULES, theme)
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """Deviations by dimension, and errors before the plateau ends."""
    theorem, measured = "limit theorem", "another program's simulation"
    scaled = {dim: deviation(results[f"D = {dim}"]) * dim**0.5 for dim in DIMS}
    found = [
        finding.near(
            f"rms deviation of Q, R, v times sqrt(D), D = {dim}", value, 0.155, 0.03, measured
        )
        for dim, value in scaled.items()
    ]
    flatness = max(scaled.values()) / min(scaled.values())
    found.append(finding.at_most("largest of them over smallest", flatness, 1.3, theorem))
    for label in (f"{activation}/{rule}" for activation in ACTIVATIONS for rule in RULES):
        found.append(
            finding.at_most(
                f"{label}: gap between mean errors up to t = 85, D = 500",
                gap(results[label]),
                0.02,
                theorem,
            )
        )
    return found


def deviation(found: Mapping[str, np.ndarray]) -> float:
    """Root mean square over runs and times after the start."""
    return float(np.sqrt(np.mean(found["deviation"][:, 1:] ** 2)))


def gap(found: Mapping[str, np.ndarray]) -> float:
    """Largest relative difference of the mean errors before specialisation."""
    early = (found["time"] > 0) & (found["time"] <= 85)
    simulated, solved = (found[name].mean(0)[early] for name in ("simulated", "solved"))
    return float(np.max(np.abs(simulated / solved - 1)))


RECIPE = Study(
    title="Theory against simulation: shallow networks under direct feedback alignment",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=5,
    cases=CASES,
    draw=draw,
    findings=findings,
)
