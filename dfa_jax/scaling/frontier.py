"""The least loss for a compute budget, read off training curves: lower envelope and IsoFLOP minima.

Curves are interpolated in logarithms, never extrapolated: a size counts at a budget only where each
of its seeds has points on both sides (or one at the budget). The seeds' log-losses are averaged
before sizes are compared, since a minimum over single seeds would reward luck.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from dfa_jax.errors import InputError
from dfa_jax.scaling import runs as points
from dfa_jax.scaling.runs import Run

NUM_BUDGETS = 50
SEED_MEAN = -1
"""Seed of a point that stands for the mean over seeds."""


class SizeCurves(NamedTuple):
    """The training curves of one arm and size at shared budgets; NaN where a curve has no points.

    Attributes:
        size: its name.
        num_params: N.
        log_losses: of each seed at each budget.
        log_tokens: tokens at each budget.
    """

    size: str
    num_params: int
    log_losses: Float[np.ndarray, "seeds budgets"]
    log_tokens: Float[np.ndarray, " budgets"]


def interpolate(runs: Sequence[Run], budgets: Float[np.ndarray, " budgets"]) -> list[SizeCurves]:
    """Every size's curves at the budgets, from the smallest size on.

    Monotone cubic interpolation (PCHIP) of log-loss in log-FLOPs; a curve of one point counts at
    its own budget.

    Raises:
        InputError: a size has several numbers of parameters, or a curve two points at one budget.
    """
    found = []
    for size in dict.fromkeys(run.size for run in runs):
        ours = [run for run in runs if run.size == size]
        numbers = sorted({run.num_params for run in ours})
        if len(numbers) > 1:
            raise InputError(f"size '{size}' has {numbers} parameters; expected one number")
        seeds = sorted({run.seed for run in ours})
        curves = [_curve([r for r in ours if r.seed == seed], budgets) for seed in seeds]
        log_tokens = np.mean([tokens for _, tokens in curves], axis=0)
        log_losses = np.stack([losses for losses, _ in curves])
        log_losses[:, np.isnan(log_losses).any(0)] = np.nan  # else the mean jumps where one ends
        found.append(SizeCurves(size, numbers[0], log_losses, log_tokens))
    return sorted(found, key=lambda curves: curves.num_params)


def lower_envelope(
    runs: Sequence[Run],
    budgets: Sequence[float] | Float[np.ndarray, " budgets"] | None = None,
    *,
    interior: bool = False,
) -> list[Run]:
    """The least loss over sizes at each budget, as Kaplan et al. read their curves.

    Args:
        runs: of one arm.
        budgets: FLOPs; without them 50, log-spaced over all curves. Those in a gap between curves
            are left out.
        interior: also leaves out budgets where the smallest or the largest size wins. A size
            outside of the ladder might have been better there, so that these ends of an envelope
            are upper bounds, and bend a fit.

    Returns:
        One point a budget, of the size that wins there, with `seed` -1 (the mean over seeds);
        `num_tokens` is interpolated. Fit a law to them by `fit_law`.

    Raises:
        InputError: as `interpolate`; a budget lies outside of all curves; or no budget has its
            minimum inside of the ladder though `interior` asks for it.

    Source: Kaplan et al. (2020), arXiv 2001.08361.
    """
    points.check(runs)
    grid = log_spaced(runs) if budgets is None else check_budgets(runs, budgets)
    curves = interpolate(runs, grid)
    means = np.stack([curve.log_losses.mean(0) for curve in curves])  # [sizes, budgets]
    covered = np.flatnonzero(~np.isnan(means).all(0))
    winners = {int(i): int(np.nanargmin(means[:, i])) for i in covered}
    if interior:
        winners = {i: best for i, best in winners.items() if 0 < best < len(curves) - 1}
        if not winners:
            raise InputError(
                f"arm '{runs[0].arm}': the smallest or the largest of {len(curves)} sizes wins at"
                " every budget; expected a ladder whose inner sizes win somewhere: add sizes, or"
                " ask for the whole envelope with interior=False"
            )
    return [
        Run(
            runs[0].arm,
            curves[best].size,
            curves[best].num_params,
            round(math.exp(curves[best].log_tokens[i])),
            float(grid[i]),
            math.exp(means[best, i]),
            SEED_MEAN,
        )
        for i, best in winners.items()
    ]


class IsoflopMinimum(NamedTuple):
    """The best size at one budget.

    Attributes:
        flops: the budget.
        num_params: of the best size; NaN if rejected.
        num_tokens: that it sees; NaN if rejected.
        loss: nats per token; NaN if rejected.
        rejected: why there is no minimum inside of the ladder; "" if there is.
    """

    flops: float
    num_params: float
    num_tokens: float
    loss: float
    rejected: Literal["", "the smallest size wins", "the largest size wins", "under three sizes"]


def isoflop_minima(
    runs: Sequence[Run], budgets: Sequence[float] | Float[np.ndarray, " budgets"]
) -> list[IsoflopMinimum]:
    """The minimum of loss over sizes at each budget, where it lies inside of the ladder.

    At each budget the lowest size and its two neighbours are joined by a parabola of log-loss in
    log-parameters. Where the smallest or the largest size is the lowest, there is no minimum to be
    read, and the budget is reported as rejected. A parabola is a little off where sizes are far
    apart, since the curves are not symmetric (arXiv 2603.22339): prefer a parametric fit for
    numbers, and this to look at the data.

    Raises:
        InputError: as `lower_envelope`.

    Source: Hoffmann et al. (2022), arXiv 2203.15556, approach 2; that edges must be rejected, the
    code of Porian et al. (2024), arXiv 2406.19146.
    """
    points.check(runs)
    grid = check_budgets(runs, budgets)
    curves = interpolate(runs, grid)
    return [_minimum(curves, i, float(flops)) for i, flops in enumerate(grid)]


def check_budgets(runs: Sequence[Run], budgets: Sequence[float] | np.ndarray) -> np.ndarray:
    """Refuses budgets that no curve reaches.

    Raises:
        InputError: names the budget and the range of the curves.
    """
    grid = np.asarray(budgets, float)
    low, high = min(run.flops for run in runs), max(run.flops for run in runs)
    outside = grid[~((grid >= low) & (grid <= high))]
    if outside.size:
        raise InputError(
            f"budget {outside[0]:.4g} FLOPs is outside of the runs, {low:.4g} to {high:.4g};"
            " nothing is extrapolated here: fit a law for that"
        )
    return grid


def log_spaced(runs: Sequence[Run]) -> Float[np.ndarray, " budgets"]:
    """50 budgets from the cheapest point to the dearest."""
    flops = [run.flops for run in runs]
    # geomspace rounds its ends past the points
    return np.clip(np.geomspace(min(flops), max(flops), NUM_BUDGETS), min(flops), max(flops))


def _curve(runs: list[Run], budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-loss and log-tokens of one curve at the budgets."""
    runs = sorted(runs, key=lambda run: run.flops)
    flops = np.array([run.flops for run in runs])
    if (np.diff(flops) <= 0).any():
        run = runs[int(np.argmin(np.diff(flops)))]
        raise InputError(
            f"arm '{run.arm}', size '{run.size}', seed {run.seed} has two points at"
            f" {run.flops:.4g} FLOPs; expected one"
        )
    both = np.log([[run.loss, run.num_tokens] for run in runs])
    if len(runs) == 1:
        at = np.where(budgets == flops, 0.0, np.nan)
        return both[0, 0] + at, both[0, 1] + at
    from scipy.interpolate import PchipInterpolator  # slow to import

    between = np.where((budgets >= flops[0]) & (budgets <= flops[-1]), np.log(budgets), np.nan)
    log_loss, log_tokens = PchipInterpolator(np.log(flops), both, extrapolate=False)(between).T
    return log_loss, log_tokens


def _minimum(curves: list[SizeCurves], i: int, flops: float) -> IsoflopMinimum:
    """At budget number `i`."""
    here = [curve for curve in curves if not np.isnan(curve.log_losses[0, i])]
    losses = np.array([curve.log_losses[:, i].mean() for curve in here])
    nothing = (math.nan, math.nan, math.nan)
    if len(here) < 3:
        return IsoflopMinimum(flops, *nothing, "under three sizes")
    best = int(losses.argmin())
    if best == 0:
        return IsoflopMinimum(flops, *nothing, "the smallest size wins")
    if best == len(here) - 1:
        return IsoflopMinimum(flops, *nothing, "the largest size wins")
    around = slice(best - 1, best + 2)
    x = np.log([curve.num_params for curve in here[around]])
    parabola = np.polyfit(x - x[1], losses[around], 2)
    top = -parabola[1] / (2 * parabola[0])
    tokens = np.interp(top + x[1], x, [curve.log_tokens[i] for curve in here[around]])
    loss = np.polyval(parabola, top)
    return IsoflopMinimum(flops, math.exp(top + x[1]), math.exp(tokens), math.exp(loss), "")
