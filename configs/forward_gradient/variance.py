"""Table 1: the variance of forward gradients, perturbing weights or activities.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, table 1
Command: python scripts/reproduce.py forward_gradient/variance
Time: 1 min on 2 cores
Expect: with V the mean variance of an example's gradient, S the mean square of its mean, N
    examples, p inputs and q outputs: (pq + 2) V / N + (pq + 1) S with one weight perturbation for
    the batch, (pq + 1) S / N with one an example; with activity perturbations q in place of pq.

One linear map with Gaussian inputs of mean 0.7 and Gaussian errors of mean 0.5, so that V and S are
known in closed form; 40,000 batches for each size, by the library's own rules.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax.models import from_linen
from dfa_jax.report import ensembles, finding, panel
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.rules import ActivityForwardGradient, LearningRule, WeightForwardGradient, functional
from dfa_jax.types import Batch

MEAN_INPUT, MEAN_ERROR = 0.7, 0.5
SIZES = ((2, 2, 4), (4, 3, 5), (8, 4, 8), (4, 8, 16))  # inputs, outputs, examples
ESTIMATORS: dict[str, LearningRule] = {
    "weights, shared": WeightForwardGradient(),
    "weights, independent": WeightForwardGradient(per_example=True),
    "activities, shared": ActivityForwardGradient(sharing="batch"),
    "activities, independent": ActivityForwardGradient(),
}


class Linear(nn.Module):
    """One map with a site behind it; the readout hands its outputs on."""

    num_outputs: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.num_outputs, use_bias=False, name="site")(x)
        return nn.Dense(self.num_outputs, use_bias=False, name="readout")(h)


def linear_loss(outputs, errors):
    """`<outputs, errors>`, whose derivative with respect to the outputs is the given error."""
    return (outputs * errors).sum(-1)


@dataclasses.dataclass(frozen=True)
class Variance:
    """Mean variance of an entry of the estimate, measured at every size, with the formula's."""

    rule: LearningRule
    sizes: tuple[tuple[int, int, int], ...] = SIZES
    num_batches: int = 40_000

    def run(self) -> Mapping[str, np.ndarray]:
        measured = [self.measure(*size) for size in self.sizes]
        predicted = [formula(self.rule, *size) for size in self.sizes]
        return {"measured": np.array(measured), "predicted": np.array(predicted)}

    def measure(self, p: int, q: int, N: int) -> float:
        """Over independent batches and directions."""
        model = from_linen(Linear(q), "site", jnp.zeros((N, p)))
        params = {"site": {"kernel": jnp.zeros((p, q))}, "readout": {"kernel": jnp.eye(q)}}

        def one(key):
            x_key, e_key, rule_key = jax.random.split(key, 3)
            x = MEAN_INPUT + jax.random.normal(x_key, (N, p))
            errors = MEAN_ERROR + jax.random.normal(e_key, (N, q))
            found = functional.estimate(
                self.rule, model, linear_loss, params, (), (), Batch(x, errors), rule_key
            )
            return found.grads["site"]["kernel"]

        keys = jax.random.split(jax.random.key(0), self.num_batches)
        estimates = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=1000))(keys)
        return float(np.asarray(estimates, float).var(0).mean())

    def shrunk(self) -> "Variance":
        return dataclasses.replace(self, sizes=self.sizes[:1], num_batches=200)


def formula(rule: LearningRule, p: int, q: int, N: int) -> float:
    """The paper's."""
    S = MEAN_INPUT**2 * MEAN_ERROR**2
    V = (1 + MEAN_INPUT**2) * (1 + MEAN_ERROR**2) - S
    if isinstance(rule, WeightForwardGradient):
        dim, is_shared = p * q, not rule.per_example
    else:
        dim, is_shared = q, rule.sharing == "batch"  # type: ignore[attr-defined]
    return (dim + 2) / N * V + (dim + 1) * S / (1 if is_shared else N)


CASES = {label: Variance(rule) for label, rule in ESTIMATORS.items()}


def draw(results: Results, theme: Theme) -> Figure:
    """Measured against predicted, both logarithmic, a colour an estimator."""
    figure, axes = panel.panels(1, 1)
    axis = axes[0, 0]
    for place, (label, found) in enumerate(results.items()):
        colour = ensembles.layer_colour(place, theme)
        axis.plot(found["predicted"], found["measured"], "o", color=colour, label=label)
        axis.plot(found["predicted"], found["predicted"], color=colour, linewidth=0.8)
    axis.set(title="Mean variance of an entry", xscale="log", yscale="log")
    axis.set(xlabel="formula of table 1", ylabel="measured")
    if results:
        axis.legend()
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """The ratio at every size."""
    return [
        finding.near(
            f"{label}; {p} inputs, {q} outputs, {N} examples: measured over formula",
            measured / predicted,
            1.0,
            0.02,
            "the paper's table 1, derived again",
        )
        for label, found in results.items()
        for (p, q, N), measured, predicted in zip(
            SIZES, found["measured"], found["predicted"], strict=False
        )
    ]


RECIPE = Study(
    title="Table 1: the variance of forward gradients",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=1,
    cases=CASES,
    draw=draw,
    findings=findings,
)
