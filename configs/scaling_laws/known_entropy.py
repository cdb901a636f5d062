"""A language of known entropy: does the floor of a fitted law find it?

Paper: none
Command: python scripts/reproduce.py scaling_laws/known_entropy
Time: 17 min on 2 cores
Expect: the law's floor covers the entropy of the source, which no model can beat, and its exponent
    1; the loss stays above the entropy.

The irreducible loss of real text is known to nobody, so nobody can tell whether a fit finds it.
Here text is a stationary Markov chain over 16 symbols with random transitions, whose entropy rate
is known in closed form. A Transformer of one block that is wide enough to hold all transitions
learns it under backpropagation; `L = E + (C_c / C)^a` is fitted to its curve, and E compared.

A floor can only be found where the curve has the law's form. A model with enough data for all that
there is to learn is such a case: what an efficient estimate of the probabilities loses above the
entropy falls as 1 / D. So the symbols are few and about equally frequent (a concentration of 2):
rare ones are learned last, and the curve's slope changes all along. The rate is high, and each
branch decays it over as many steps as lie behind it.

What the source's own probabilities lose on the test text differs from the entropy by chance; that
difference is taken off every loss: a control variate, which leaves the expected loss as it is.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dfa_jax.data import MarkovData
from dfa_jax.models import Transformer
from dfa_jax.models.transformer import credit_sites
from dfa_jax.optim import Optimizer
from dfa_jax.report import finding, ladder, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.style import Theme
from dfa_jax.rules import Backprop
from dfa_jax.scaling import Interval, Run, bootstrap, fit_law
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import RunRecord

SOURCE = MarkovData(  # more tokens than a run and its longest branch see: none comes twice
    num_symbols=16, order=1, concentration=2.0, context=64, num_train=2**23, num_test=2**19
)
MODEL = Transformer(
    num_outputs=SOURCE.num_symbols, num_layers=1, width=64, num_heads=2, context=SOURCE.context
)
STEPS, FITTED_FROM = 3000, 100  # before, the loss is that of learning at all
LAW = "power_law_with_floor"
CONFIG = TrainConfig(
    data=SOURCE,
    model=MODEL,
    sites=credit_sites(MODEL, "macro"),
    rule=Backprop(),
    optimizer=Optimizer("adam", 1.6e-2, b2=0.98, clip_norm=1.0, warmup_fraction=0.03),
    batch_size=16,
    num_tokens=STEPS * 16 * SOURCE.context,
    log_evaluations=30,
    decay_fraction=1.0,
    alignment_examples=0,
)
RUNS = Recipe(
    title="A language of known entropy: does the floor of a fitted law find it?",
    paper="none",
    minutes=17,
    variants={"1x64/BP": CONFIG},
    seeds=(0, 1, 2, 3, 4),
)


@functools.cache
def chance() -> float:
    """What the source's own probabilities lose on the test text, less the entropy."""
    few = dataclasses.replace(SOURCE, num_train=SOURCE.context)  # the test text is the same
    test: Any = few.load().test
    own = -np.log(SOURCE.transition[test.inputs, test.targets])  # [windows, time]
    return float(own.mean()) - SOURCE.optimal_loss


def curves(held: Sequence[RunRecord]) -> list[Run]:
    """The points that are fitted; all of them where the runs are shorter than that."""
    measured = ladder.points(RUNS.variants, held, "6ND")
    every = [run._replace(loss=run.loss - chance()) for run in measured]
    first = FITTED_FROM * CONFIG.batch_size * SOURCE.context
    return [run for run in every if run.num_tokens >= first] or every


def fitted(runs: Sequence[Run]) -> dict[str, Interval]:
    """Floor and exponent of the law with their intervals over seeds; of one seed there is none."""
    if len({run.seed for run in runs}) == 1:
        alone = fit_law(LAW, runs).parameters
        return {name: Interval(value, value, value) for name, value in alone.items()}
    return bootstrap(jax.random.key(0), LAW, runs, num_samples=500).intervals


def draw(held: Sequence[RunRecord], theme: Theme) -> Figure:
    """The loss above the entropy of the source, and the law above its own floor."""
    figure, axes = panel.panels(1, 2)
    runs, entropy = curves(held), SOURCE.optimal_loss
    colour = style.colour("BP", theme)
    for seed in dict.fromkeys(run.seed for run in runs):
        own = [run for run in runs if run.seed == seed]
        at = [run.flops for run in own]
        axes[0, 0].plot(at, [run.loss for run in own], color=colour, alpha=0.6, linewidth=1)
        above = [run.loss - entropy for run in own]
        axes[0, 1].plot(at, above, color=colour, alpha=0.6, linewidth=1)
    axes[0, 0].axhline(entropy, color=colour, linestyle="--", label="entropy of the source")
    axes[0, 0].set(xscale="log", xlabel="compute, FLOPs", ylabel="test loss, nats a token")
    axes[0, 0].legend()
    axes[0, 1].set(
        xscale="log", yscale="log", xlabel="compute, FLOPs", ylabel="test loss above the entropy"
    )
    return figure


def findings(held: Sequence[RunRecord]) -> Sequence[Finding]:
    """Floor and exponent against closed forms."""
    runs, entropy = curves(held), SOURCE.optimal_loss
    intervals = fitted(runs)
    floor, exponent = intervals["E"], intervals["alpha"]
    losses = np.array([run.loss for run in runs])
    return [
        Finding(
            "floor E of the fitted law, 95 % interval",
            f"covers {entropy:.5f}, the entropy of the source",
            "closed form",
            f"{floor.estimate:.5f} [{floor.low:.5f}, {floor.high:.5f}]",
            floor.low <= entropy <= floor.high,
        ),
        Finding(
            "exponent of the fitted law, 95 % interval",
            "covers 1",
            "what an efficient estimate loses: the number of free probabilities over 2 D",
            f"{exponent.estimate:.2f} [{exponent.low:.2f}, {exponent.high:.2f}]",
            exponent.low <= 1 <= exponent.high,
        ),
        finding.at_least(
            "test loss, nats a token, less the entropy", losses - entropy, 0.0,
            "no model beats it", digits=4,
        ),
    ]  # fmt: skip


RECIPE = RunStudy(
    title=RUNS.title,
    paper=RUNS.paper,
    minutes=RUNS.minutes,
    runs=RUNS,
    draw=draw,
    findings=findings,
)
