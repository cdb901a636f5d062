"""Align, then memorise: the second layer turns to the feedback before the error falls.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    figure of the two phases of learning in shallow networks
Command: python scripts/reproduce.py align_then_memorise/phases
Time: 1 min on 2 cores
Expect: from zero weights, cos(v, F) reaches 1 while the error still has its starting value; it
    falls a little when the network memorises, since |v| must then be |A|.

erf students, K = M = 2, A = (1, 1), both layers trained at the rate 0.1; lines are solutions of the
equations of motion, symbols simulations with D = 500. From random weights, the same two phases
follow after the start is forgotten.
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


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Error and overlap along one solution, and along simulations from the same start."""

    scale: float
    feedback: tuple[float, float] = (0.9, -1.3)
    learning_rate: float = 0.1
    dim: int = 500
    num_runs: int = 10
    last_time: float = 3000.0
    num_times: int = 60

    def run(self) -> Mapping[str, np.ndarray]:
        setup = theory.TeacherStudent("erf", RULE, self.learning_rate, self.learning_rate)
        times = log_times(0.1, self.last_time, self.num_times)
        with jax.enable_x64(True):
            op = theory.from_weights(
                theory.draw_weights(
                    jax.random.key(0),
                    self.dim,
                    v_teacher=np.ones(2),
                    feedback=np.array(self.feedback),
                    scale=self.scale,
                )
            )
            keys = jax.random.split(jax.random.key(1), self.num_runs)
            simulated = jax.vmap(lambda key: theory.simulate(key, setup, op, self.dim, times))(keys)
            solved = theory.solve(op, setup, times)
            return {
                "time": times,
                **measures("solved", solved),
                **measures("simulated", simulated),
            }

    def shrunk(self) -> "Trajectory":
        return dataclasses.replace(self, dim=30, num_runs=2, last_time=2.0, num_times=4)


RULE = "direct_feedback_alignment"
CASES = {"from zero": Trajectory(0.0), "from N(0, 1)": Trajectory(1.0)}


def measures(name: str, op: theory.OrderParameters) -> dict[str, np.ndarray]:
    """Error, and overlap of v with F, by name."""
    return {
        f"{name} error": np.asarray(theory.generalization_error(op, "erf")),
        f"{name} overlap": np.asarray(theory.overlap(op)),
    }


def draw(results: Results, theme: Theme) -> Figure:
    """Above the error, below the overlap; one column a start."""
    figure, axes = panel.panels(2, len(results))
    colour = style.colour(RULE, theme)
    for column, (label, found) in zip(axes.T, results.items(), strict=True):
        for axis, name in zip(column, ("error", "overlap"), strict=True):
            time = found["time"][1:]
            axis.plot(time, found[f"solved {name}"][1:], color=colour)
            axis.plot(
                time[::3],
                found[f"simulated {name}"].mean(0)[1::3],
                color=colour,
                linestyle="none",
                marker="s",
            )
            axis.set(xscale="log", xlabel="time, steps / D")
        column[0].set(title=f"Generalisation error, {label}", ylabel="generalisation error")
        column[1].set(title=f"Overlap, {label}", ylabel="cos(v, F)")
        column[1].set_ylim(-1.05, 1.05)
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """When alignment and when memory come."""
    zero, drawn = results["from zero"], results["from N(0, 1)"]
    error, overlap = zero["solved error"], zero["solved overlap"]
    aligning = (np.abs(error / error[0] - 1) < 0.01) & (zero["time"] > 0)
    claims = "theory, and another program's solution"
    return [
        finding.near("from zero: error at the start, about M / 6", error[0], 1 / 3, 0.02, "theory"),
        finding.at_least(
            "from zero: smallest cos(v, F) while the error is within 1 % of its start",
            overlap[aligning].min(),
            0.999,
            claims,
            digits=5,
        ),
        finding.near("from zero: cos(v, F) at the end", overlap[-1], 0.984, 0.005, claims),
        finding.at_most("from zero: error at the end", error[-1], 1e-3, claims, digits=6),
        finding.at_least(
            "from N(0, 1): largest cos(v, F)", drawn["solved overlap"].max(), 0.99, claims
        ),
        finding.at_least(
            "from N(0, 1), simulated: largest cos(v, F) of each run",
            drawn["simulated overlap"].max(1),
            0.99,
            claims,
        ),
    ]


RECIPE = Study(
    title="Align, then memorise: two phases of learning in shallow networks",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=1,
    cases=CASES,
    draw=draw,
    findings=findings,
)
