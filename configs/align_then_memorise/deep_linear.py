"""Deep linear networks: weight alignment is set by the conditioning of the alignment matrices.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    section on deep linear networks
Command: python scripts/reproduce.py align_then_memorise/deep_linear
Time: 2 min on 2 cores
Expect: early on, each layer squares the ill-conditioning of the one below, so low layers align
    first; at convergence all layers are far better conditioned. White targets align everywhere.

Networks of 600 units a layer with Gaussian feedback, zero start, white inputs, two outputs with the
input-target singular values (1, s_2); small gradient steps. Predictions are for F^T F = 1, which
600 units have up to about 4 %.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax.report import finding, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.theory import deep_linear
from dfa_jax.theory.clock import log_times

SPECTRA = (1.0, 0.5, 0.2)
RULES = ("direct_feedback_alignment", "feedback_alignment")


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Weight alignment by layer along training, for some feedbacks of one depth and spectrum."""

    num_layers: int
    second: float
    width: int = 600
    num_runs: int = 5
    learning_rate: float = 0.01
    last_step: int = 20_000
    num_times: int = 40

    def run(self) -> Mapping[str, np.ndarray]:
        steps = np.unique(np.round(log_times(10, self.last_step, self.num_times)).astype(int))[1:]
        targets = jnp.diag(jnp.array([1.0, self.second]))

        def one(key):
            keys = jax.random.split(key, self.num_layers - 1)
            F = [jax.random.normal(k, (self.width, 2)) / self.width**0.5 for k in keys]

            def until(carry, end):
                A, start = carry
                A = jax.lax.fori_loop(start, end, lambda _, A: step(A, F), A)
                aligned = deep_linear.weight_alignments(deep_linear.weights(A, F), F)
                return (A, end), jnp.stack(aligned)

            def step(A, F):
                return deep_linear.alignment_step(A, F, jnp.eye(2), targets, self.learning_rate)

            start = (deep_linear.zero_alignment(F, 2), jnp.zeros((), steps.dtype))
            return jax.lax.scan(until, start, jnp.asarray(steps))[1]

        with jax.enable_x64(True):
            aligned = jax.lax.map(jax.jit(one), jax.random.split(jax.random.key(0), self.num_runs))
            return {"time": steps * self.learning_rate, "alignment": np.asarray(aligned)}

    def shrunk(self) -> "Spectrum":
        return dataclasses.replace(self, width=20, num_runs=2, last_step=30, num_times=4)


@dataclasses.dataclass(frozen=True)
class Structure:
    """How far weights trained from zero are from the structure theorem, and two alignments."""

    rule: str
    width: int = 200
    num_classes: int = 4
    num_layers: int = 4
    num_inputs: int = 10
    num_steps: int = 5000
    learning_rate: float = 0.02

    def run(self) -> Mapping[str, np.ndarray]:
        with jax.enable_x64(True):
            keys = jax.random.split(jax.random.key(1), self.num_layers)
            F, backward = self.feedback(keys[1:])
            teacher = jax.random.normal(keys[0], (self.num_inputs, self.num_classes))
            W = deep_linear.weights(deep_linear.zero_alignment(F, self.num_inputs), F)
            W, A = self.train(W, deep_linear.zero_alignment(F, self.num_inputs), F, teacher)
            expected = deep_linear.weights(A, F)
            found = {
                "deviation": max(
                    float(jnp.abs(w - e).max()) for w, e in zip(W, expected, strict=True)
                ),
                "alignment": np.stack(deep_linear.weight_alignments(W, F)),
                "trace": np.stack([deep_linear.trace_alignment(a) for a in A[1:]]),
            }
            if backward:
                found["textbook"] = np.stack(
                    [
                        jnp.vdot(w, B.T) / jnp.linalg.norm(w) / jnp.linalg.norm(B)
                        for w, B in zip(W[1:], backward, strict=True)
                    ]
                )
            return found

    def feedback(self, keys):
        """Direct feedback, and the chain's matrices where it comes from a chain."""
        n, C = self.width, self.num_classes
        if self.rule == "direct_feedback_alignment":
            return [jax.random.normal(key, (n, C)) / n**0.5 for key in keys], None
        widths = [*[n] * (len(keys) - 1), C]
        B = [jax.random.normal(k, (n, m)) / n**0.5 for k, m in zip(keys, widths, strict=True)]
        return deep_linear.direct_from_chain(B), B

    def train(self, W, A, F, teacher):
        """Online learning of a linear teacher, in weights and in alignment matrices."""

        def step(i, both):
            key = jax.random.fold_in(jax.random.key(2), i)
            x = jax.random.normal(key, (1, self.num_inputs))
            y = x @ teacher / self.num_inputs**0.5
            W, A = both
            W = deep_linear.train_step(W, F, x, y, self.learning_rate)
            return W, deep_linear.alignment_step(A, F, x, y, self.learning_rate)

        return jax.jit(lambda W, A: jax.lax.fori_loop(0, self.num_steps, step, (W, A)))(W, A)

    def shrunk(self) -> "Structure":
        return dataclasses.replace(self, width=12, num_steps=20)


CURVES = {f"L = {L}, s = (1, {s:g})": Spectrum(L, s) for L in (3, 4) for s in SPECTRA}
NETWORKS = {f"structure/{rule}": Structure(rule) for rule in RULES}


def draw(results: Results, theme: Theme) -> Figure:
    """Alignment by layer against time, a panel a spectrum; dashes predict the two ends."""
    labels = [label for label in CURVES if label in results and label.startswith("L = 4")]
    figure, axes = panel.panels(1, max(len(labels), 1))
    for axis, label in zip(axes[0], labels, strict=True):
        case, found = CURVES[label], results[label]
        for layer, aligned in enumerate(found["alignment"].mean(0).T, start=2):
            shown = style.SPARE[layer - 2]
            colour = getattr(shown, theme)
            axis.plot(found["time"], aligned, color=colour, label=f"layer {layer}")
            for x, exponent in (
                (found["time"][0], deep_linear.early_exponent(layer)),
                (found["time"][-1], deep_linear.converged_exponent(layer, case.num_layers)),
            ):
                axis.plot(x, predicted(case.second, exponent), "o", color=colour)
        axis.set(xscale="log", xlabel="time, steps x rate", ylim=(0.65, 1.02))
        axis.set(title=label, ylabel="weight alignment")
        axis.legend(loc="lower right")
    return figure


def predicted(second: float, exponent: float) -> float:
    """Weight alignment of modes `(1, s_2^exponent)`."""
    return float(deep_linear.predicted_alignment(jnp.array([1.0, second]), exponent))


def findings(results: Results) -> Sequence[Finding]:
    """The ends of every curve, and the theorem."""
    found = [
        finding.at_most(
            f"{label}: largest deviation from the structure theorem",
            results[label]["deviation"],
            1e-12,
            "theorem",
            digits=17,
        )
        for label in NETWORKS
    ]
    for label, case in CURVES.items():
        aligned = results[label]["alignment"]  # [run, time, layer]
        for layer in range(2, case.num_layers + 1):
            for when, place, exponent in (
                ("early", 0, deep_linear.early_exponent(layer)),
                ("at the end", -1, deep_linear.converged_exponent(layer, case.num_layers)),
            ):
                found.append(
                    finding.near(
                        f"{label}: weight alignment of layer {layer} {when}",
                        aligned[:, place, layer - 2],
                        predicted(case.second, exponent),
                        0.03,
                        "theory for F^T F = 1",
                    )
                )
    textbook = results["structure/feedback_alignment"]["textbook"][:-1]
    found.append(
        finding.at_most(
            "feedback alignment: cos(W_l, B_l^T) of inner layers, of order sqrt(C / n) = 0.14",
            textbook,
            0.25,
            "W_l has the rank C, B_l is full",
        )
    )
    return found


RECIPE = Study(
    title="Deep linear networks: alignment and conditioning",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=2,
    cases=CURVES | NETWORKS,
    draw=draw,
    findings=findings,
)
