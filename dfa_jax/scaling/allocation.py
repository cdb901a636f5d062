"""How the best size grows with compute, `N_opt ~ C^a`: read off IsoFLOP minima, or off a fit."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from dfa_jax.scaling.fit import Fit, Interval, interval
from dfa_jax.scaling.frontier import IsoflopMinimum, isoflop_minima
from dfa_jax.scaling.runs import Run
from dfa_jax.types import PRNGKey

_NOTHING = Interval(np.nan, np.nan, np.nan)


class Allocation(NamedTuple):
    """The best size at several budgets, and how it grows.

    Attributes:
        minima: at every budget, rejected ones included.
        exponent: `a`; NaN where fewer than two budgets have a minimum.
        num_failed: bootstrap samples without two minima, which are in no interval.
    """

    minima: list[IsoflopMinimum]
    exponent: Interval
    num_failed: int


def from_isoflops(
    key: PRNGKey,
    runs: Sequence[Run],
    budgets: Sequence[float] | Float[np.ndarray, " budgets"],
    *,
    num_samples: int = 200,
) -> Allocation:
    """Fits `log N_opt = a log C + c` by least squares to IsoFLOP minima inside of the ladder.

    Within each size, n - 1 of its n seeds are drawn with replacement (Rao and Wu, 1988: a mean over
    so few keeps its variance), and minima are read anew. With one seed a size nothing varies.

    Args:
        key: for the bootstrap.
        runs: of one arm.
        budgets: FLOPs, within the curves.
        num_samples: of the bootstrap.

    Raises:
        InputError: as `isoflop_minima`.

    Source: Hoffmann et al. (2022), arXiv 2203.15556, approach 2.
    """
    minima = isoflop_minima(runs, budgets)
    slope = _slope(minima)
    if np.isnan(slope):
        return Allocation(minima, _NOTHING, num_samples)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    slopes = np.array(
        [_slope(isoflop_minima(_resampled(random, runs), budgets)) for _ in range(num_samples)]
    )
    failed = int(np.isnan(slopes).sum())
    found = interval(slope, slopes) if failed < num_samples else _NOTHING
    return Allocation(minima, found, failed)


def from_fit(fit: Fit) -> Interval:
    """`a = beta / (alpha + beta)` of a `chinchilla` fit with bootstrap samples.

    NaN where a fitted exponent is not positive: then no size is the best. Samples without a best
    size are in no interval.

    Source: Hoffmann et al. (2022), arXiv 2203.15556, equation 4.
    """
    assert fit.samples is not None
    alpha, beta = np.concatenate([fit.theta[None], fit.samples])[:, -2:].T
    known = (alpha > 0) & (beta > 0)
    if not known[0]:
        return _NOTHING
    found = beta[known] / (alpha[known] + beta[known])
    return interval(found[0], found[1:]) if known[1:].any() else _NOTHING


def _slope(minima: Sequence[IsoflopMinimum]) -> float:
    inside = [(one.flops, one.num_params) for one in minima if not one.rejected]
    if len(inside) < 2:
        return np.nan
    log_flops, log_params = np.log(inside).T
    return float(np.polyfit(log_flops - log_flops.mean(), log_params, 1)[0])


def _resampled(random: np.random.Generator, runs: Sequence[Run]) -> list[Run]:
    """Curves of drawn seeds, numbered anew."""
    found = []
    for size in dict.fromkeys(run.size for run in runs):
        ours = [run for run in runs if run.size == size]
        seeds = sorted({run.seed for run in ours})
        drawn = random.choice(seeds, max(1, len(seeds) - 1))
        for number, seed in enumerate(drawn):
            found += [run._replace(seed=number) for run in ours if run.seed == seed]
    return found
