"""IsoFLOP minima: which size is best for a compute budget, under BP, DFA and a shallow control.

Paper: Hoffmann et al. (2022), Training Compute-Optimal Large Language Models, arXiv 2203.15556,
    approaches 2 and 3, here for the arms of Filipovich et al. (2022), arXiv 2210.14593
Command: python scripts/reproduce.py scaling_laws/isoflop
Time: 160 min on 2 cores, shared with scaling_laws/frontier
Expect: under BP and DFA the best size grows with compute; under the shallow control, whose blocks
    learn nothing, a larger one is only a wider head on more random features. That the best size
    grows more slowly under DFA is a guess of ours: no source known to us has it.

The runs are those of `scaling_laws/frontier`; compute is 6 N D for every arm, so that nothing but
loss tells them apart, and N are the weights of the matrices in blocks and unembedding. Budgets
where the smallest or the largest size is the best have no minimum to be read, and are counted, not
used.
Slopes are of small ladders: six sizes, a decade and a half of N, a constant batch.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from dfa_jax.report import catalogue, ladder, panel, style
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.style import Theme
from dfa_jax.scaling import Fit, Run, allocation, bootstrap, compute_optimal, laws
from dfa_jax.scaling.allocation import Allocation
from dfa_jax.scaling.fit import Interval
from dfa_jax.scaling.frontier import interpolate
from dfa_jax.train.records import RunRecord

FRONTIER = catalogue.run_file("scaling_laws/frontier")
RUNS, ARMS, CONFIG = FRONTIER["RUNS"], tuple(FRONTIER["ARMS"]), FRONTIER["CONFIG"]
NUM_BUDGETS = 12
SHOWN = slice(1, -1, 2)  # budgets whose slices are drawn
SEED_SAMPLES, FIT_SAMPLES = 200, 400
KAPLAN, CHINCHILLA = 0.73, 0.50


def by_arm(held: Sequence[RunRecord]) -> dict[str, tuple[Run, ...]]:
    """The points of each arm that has some."""
    points = ladder.points(RUNS.variants, held, "6ND")
    grouped = {arm: tuple(run for run in points if run.arm == arm) for arm in ARMS}
    return {arm: runs for arm, runs in grouped.items() if runs}


def budgets(runs: Sequence[Run]) -> np.ndarray:
    """Log-spaced where at least three sizes can be compared."""
    spent = [[run.flops for run in runs if run.size == size] for size in {run.size for run in runs}]
    third = min(3, len(spent))
    low, high = sorted(map(min, spent))[third - 1], sorted(map(max, spent))[-third]
    return np.geomspace(low * 1.001, high / 1.001, NUM_BUDGETS)


@functools.cache  # table and figures ask for the same
def read(runs: tuple[Run, ...]) -> Allocation:
    """The best sizes of one arm, and how they grow, by IsoFLOP minima."""
    key = jax.random.key(ARMS.index(runs[0].arm))
    return allocation.from_isoflops(key, runs, budgets(runs), num_samples=SEED_SAMPLES)


@functools.cache
def fitted(runs: tuple[Run, ...], num_samples: int) -> Fit | None:
    """The parametric law of one arm; None while too many runs are missing."""
    if len({run.num_params for run in runs}) < laws.CHINCHILLA.num_levels:
        return None
    key = jax.random.key(ARMS.index(runs[0].arm))
    return bootstrap(key, "chinchilla", runs, num_samples=num_samples)


def draw(held: Sequence[RunRecord], theme: Theme, *, num_samples: int) -> Figure:
    """Loss against size at equal compute, a panel an arm; below, the best size against compute."""
    grouped = by_arm(held)
    figure, axes = panel.panels(2, len(ARMS))
    for column, arm in enumerate(ARMS):
        if arm not in grouped:
            continue
        runs = grouped[arm]
        draw_slices(axes[0, column], runs, read(runs), theme)
        draw_path(axes[1, column], runs, fitted(runs, num_samples), theme)
        axes[0, column].set_title(arm)
    axes[0, 0].set_ylabel("test loss, nats a token")
    axes[1, 0].set_ylabel("best size, N")
    return figure


def draw_slices(axis: Axes, runs: Sequence[Run], found: Allocation, theme: Theme) -> None:
    """A line a budget, the darker the larger; its minimum as a mark, if there is one."""
    arm, shown = runs[0].arm, found.minima[SHOWN]
    curves = interpolate(runs, np.array([one.flops for one in shown]))
    for place, one in enumerate(shown):
        line = [(c.num_params, np.exp(c.log_losses[:, place].mean())) for c in curves]
        alpha = 0.3 + 0.7 * (place + 1) / len(shown)
        colour = style.colour(arm, theme)
        axis.plot(*zip(*line, strict=True), ".-", color=colour, alpha=alpha, linewidth=1)
        if not one.rejected:
            axis.plot(one.num_params, one.loss, "*", color=colour, markersize=10)
    axis.set(xscale="log", xlabel="size, N")
    panel.log_loss_axis(axis)


def draw_path(axis: Axes, runs: tuple[Run, ...], fit: Fit | None, theme: Theme) -> None:
    """Minima as marks, the parametric law's optimum as a line."""
    colour, found = style.colour(runs[0].arm, theme), read(runs)
    inside = [one for one in found.minima if not one.rejected]
    axis.plot(
        [one.flops for one in inside], [one.num_params for one in inside], "*", color=colour,
        markersize=10, label="IsoFLOP minima",
    )  # fmt: skip
    for one in found.minima:
        if one.rejected:
            axis.axvline(one.flops, color=colour, linewidth=0.6, linestyle=":")
    sizes = [run.num_params for run in runs]
    if fit and has_optimum(fit):
        at = budgets(runs)
        axis.plot(at, compute_optimal(fit, at).num_params, color=colour, label="parametric law")
    axis.set(xscale="log", yscale="log", xlabel="compute, 6 N D; dotted: no minimum inside")
    axis.set_ylim(min(sizes) / 3, max(sizes) * 3)
    axis.legend()


def has_optimum(fit: Fit) -> bool:
    """Whether both exponents of a parametric fit are positive."""
    return bool((fit.theta[-2:] > 0).all())


def findings(held: Sequence[RunRecord], *, num_samples: int) -> Sequence[Finding]:
    """How many budgets have a minimum, and how the best size grows, by two methods."""
    found = []
    exponents: dict[str, Interval] = {}
    for arm, runs in by_arm(held).items():
        fit = fitted(runs, num_samples)
        assert fit  # every size is in
        exponents[arm] = allocation.from_fit(fit)
        how = f"parametric law ({parameters(fit)})"
        found += [
            of_minima(arm, read(runs)),
            of_exponent(arm, "IsoFLOP minima", read(runs).exponent),
            of_exponent(arm, how, exponents[arm]),
        ]
    found.append(
        Finding(
            "parametric law: a of DFA below a of BP, intervals apart",
            "below",
            "own guess",
            f"{shown(exponents['DFA'])} against {shown(exponents['BP'])}",
            exponents["DFA"].high < exponents["BP"].low,
        )
    )
    return found


def of_minima(arm: str, found: Allocation) -> Finding:
    """How many budgets have a minimum inside of the ladder."""
    inside = sum(not one.rejected for one in found.minima)
    reasons = [one.rejected for one in found.minima if one.rejected]
    counted = ", ".join(f"{reasons.count(why)}: {why}" for why in dict.fromkeys(reasons))
    return Finding(
        f"{arm}: budgets whose best size lies inside of the ladder",
        "at least 4",
        "own choice; edges are rejected as in Porian et al. (2024)",
        f"{inside} of {len(found.minima)}" + (f" ({counted})" if counted else ""),
        inside >= 4,
    )


def of_exponent(arm: str, how: str, found: Interval) -> Finding:
    """The exponent of the best size; that of the two papers is context, from other ladders."""
    return Finding(
        f"{arm}: a in N_opt ~ C^a, {how}",
        f"above 0 (BP: {CHINCHILLA:.2f} in Hoffmann et al., {KAPLAN:.2f} in Kaplan et al.)",
        "own expectation; the papers' numbers are second-hand",
        shown(found),
        found.low > 0,
    )


def parameters(fit: Fit) -> str:
    """`E 1.2, alpha 0.31, beta 0.28`."""
    named = fit.parameters
    return ", ".join(f"{name} {named[name]:.3g}" for name in ("E", "alpha", "beta"))


def shown(found: Interval) -> str:
    """`0.51 [0.45, 0.57]`, or that there is none."""
    if np.isnan(found.estimate):
        return "none to be read"
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


RECIPE = RunStudy(
    title="IsoFLOP minima: the best size for a budget, under BP, DFA and a shallow control",
    paper="Hoffmann et al. (2022), Training Compute-Optimal Large Language Models, arXiv"
    " 2203.15556, approaches 2 and 3",
    minutes=RUNS.minutes,
    runs=RUNS,
    draw=functools.partial(draw, num_samples=FIT_SAMPLES),
    findings=functools.partial(findings, num_samples=FIT_SAMPLES),
    shares="scaling_laws/frontier",
)
