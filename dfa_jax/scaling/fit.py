"""Scaling laws fitted to runs: parameters with their uncertainty, and compute-optimal sizes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dfa_jax.errors import InputError
from dfa_jax.scaling import covariance, huber, laws
from dfa_jax.scaling import runs as points
from dfa_jax.scaling.laws import Law
from dfa_jax.scaling.runs import Run
from dfa_jax.types import PRNGKey

CONFIDENCE = 0.95
NUM_STARTS = 128
"""Of the grid's starts, those of the smallest objective, are descended from."""

FIRST_STEPS, NUM_FINALISTS = 50, 16
"""All starts take so many steps; so many of them, the best that differ, go on to convergence."""

RIVALS = 2.0
"""Minima whose objective is within this factor of the least may become the least in a resample."""

NUM_BOOTSTRAP_STARTS = 3
"""At most: the optimum, and its rivals."""


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval lies on one side of the value."""
        return not self.low <= value <= self.high


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to runs.

    Attributes:
        law: that was fitted.
        runs: that it was fitted to.
        theta: unconstrained, in the order of `law.coordinates`.
        covariance: of the named parameters, by the sandwich formula of `scaling.covariance`; NaN
            where the runs do not determine them.
        residuals: log of predicted over measured loss, run by run.
        objective: the sum of Huber losses at `theta`.
        huber_delta: of the Huber loss, in log-loss.
        minima: that the starts led to, each once: the optimum, and its rivals within a factor of 2
            of its objective.
        converged: whether the descent met its tolerance. It does not where the runs leave a
            direction open, as a floor far below losses that follow a pure power law: `theta` is
            then one of many that are as good.
        samples: `theta` of each bootstrap sample, the best found if its descent did not meet the
            tolerance; None without bootstrap.
    """

    law: Law
    runs: tuple[Run, ...]
    theta: Float[np.ndarray, " params"]
    covariance: Float[np.ndarray, "params params"]
    residuals: Float[np.ndarray, " points"]
    objective: float
    huber_delta: float
    minima: Float[np.ndarray, "minima params"]
    converged: bool
    samples: Float[np.ndarray, "samples params"] | None = None

    @functools.cached_property
    def parameters(self) -> dict[str, float]:
        """The numbers that people quote, by name, unrounded."""
        return dict(zip(self.law.parameters, _named(self.law, self.theta).tolist(), strict=True))

    @functools.cached_property
    def standard_errors(self) -> dict[str, float]:
        """Of the named parameters: roots of the covariance's diagonal."""
        errors = np.sqrt(np.diag(self.covariance))
        return dict(zip(self.law.parameters, errors.tolist(), strict=True))

    @functools.cached_property
    def intervals(self) -> dict[str, Interval]:
        """Percentiles 2.5 and 97.5 of the named parameters over bootstrap samples.

        Raises:
            InputError: the fit has none.
        """
        if self.samples is None:
            raise InputError("this fit has no intervals; make them by `bootstrap`")
        named = _named(self.law, self.samples)
        return {
            name: interval(self.parameters[name], named[:, i])
            for i, name in enumerate(self.law.parameters)
        }

    def predict(self, **features: Any) -> Float[np.ndarray, " points"]:
        """The law's loss, nats per token, at `flops`, or at `num_params` and `num_tokens`."""
        return predict(self.law, self.theta[None], **features)[0]


def interval(estimate: float, samples: Float[np.ndarray, " samples"]) -> Interval:
    """The percentile interval of bootstrap samples; infinite ends where samples are infinite."""
    tail = (1 - CONFIDENCE) / 2
    # "nearest": no average of infinity and minus infinity
    low, high = np.nanquantile(samples, [tail, 1 - tail], method="nearest")
    return Interval(float(estimate), float(low), float(high))


def predict(
    law: Law, thetas: Float[np.ndarray, "samples params"], **features: Any
) -> Float[np.ndarray, "samples points"]:
    """The loss of a law under many parameters at once."""
    if set(features) != set(law.features):
        raise InputError(
            f"{law.name} predicts from {' and '.join(law.features)}; got {', '.join(features)}"
        )
    columns = np.broadcast_arrays(*(np.atleast_1d(features[name]) for name in law.features))
    design = law.design(np.stack(columns, -1).astype(float))
    with jax.enable_x64(True):
        return np.exp(np.asarray(jax.vmap(law.log_loss, (0, None))(*_device(thetas, design))))


def fit_law(law: Law | str, runs: Sequence[Run], *, huber_delta: float = 1e-3) -> Fit:
    r"""Fits a law to the runs of one arm.

    Minimises `sum_i Huber_delta(log L(run_i) - log loss_i)` in double precision. All of the law's
    grid is evaluated, the 128 best starts are descended from for 50 steps of a damped Newton method
    (`scaling.huber`), and the 16 best ends that differ until nothing is left to gain.

    Args:
        law: one of `LAWS`, or its name.
        runs: of one arm.
        huber_delta: where the loss turns from quadratic to linear, in log-loss.

    Raises:
        InputError: the law is unknown; there are no runs, several arms, fewer points than
            parameters, or too few sizes or budgets; a number has no logarithm.

    >>> runs = [Run("backprop", "s", 1, 1, 10.0**k, 5 * 10 ** (-0.07 * k), 0) for k in range(9)]
    >>> round(fit_law("power_law", runs).parameters["alpha"], 6)
    0.07

    Source: Hoffmann et al. (2022), arXiv 2203.15556, D.3; that the sum, not the mean, must be
    minimised, Besiroglu et al. (2024), arXiv 2404.10102.
    """
    law = laws.get(law)
    _check(law, runs)
    if not huber_delta > 0:
        raise InputError(f"huber_delta is {huber_delta}; expected a positive number")
    design = law.design(laws.features_of(law, runs))
    log_losses = np.log([run.loss for run in runs])
    found = _from_grid(law, design, log_losses, huber_delta)
    ends = _distinct(found)
    minima = found.theta[ends[found.objective[ends] <= RIVALS * found.objective.min()]]
    theta, converged = minima[0], bool(found.converged[ends[0]])
    with jax.enable_x64(True):
        residuals = np.asarray(law.log_loss(*_device(theta, design))) - log_losses
    slopes = covariance.slopes_at(theta, design)
    spread = covariance.sandwich(slopes, residuals, points.curve_indices(runs), huber_delta)
    jacobian = laws.jacobian_of_named(law, theta)
    with np.errstate(over="ignore", invalid="ignore"):  # C_c of a flat curve may be out of range
        named = jacobian @ spread @ jacobian.T
    return Fit(
        law,
        tuple(runs),
        theta,
        named,
        residuals,
        float(found.objective.min()),
        huber_delta,
        minima,
        converged,
    )


def bootstrap(
    key: PRNGKey,
    law: Law | str,
    runs: Sequence[Run],
    *,
    num_samples: int = 4000,
    huber_delta: float = 1e-3,
) -> Fit:
    r"""`fit_law` with percentile intervals over resampled training curves.

    Points of one training curve err together, so that curves are resampled, never points: every
    sample weighs each curve by an independent `w ~ Exp(1)` and minimises the weighted sum (the
    Bayesian bootstrap, Rubin, 1981; for such estimators Chatterjee and Bose, 2005). Counts drawn
    with replacement have the same mean and variance, but now and then leave out so many sizes that
    the law is no longer identified; positive weights never do. Where each curve is one point, as in
    a set of final losses, this is the usual bootstrap over points.

    Samples start from the optimum and, where the grid of starts led to other minima whose objective
    is within a factor of 2, from the best two of these. Intervals are those of many curves; with
    fewer than some twenty they are a little short.

    Raises:
        InputError: as `fit_law`; or there is only one curve, or no sample.
    """
    law = laws.get(law)
    if num_samples < 2:
        raise InputError(f"num_samples is {num_samples}; expected at least 2")
    fit = fit_law(law, runs, huber_delta=huber_delta)
    curves = points.curve_indices(runs)
    if curves.max() == 0:
        raise InputError(
            "all runs lie on one training curve, which says nothing of how others would differ;"
            " expected several curves (sizes or seeds), or use `fit_law`"
        )
    with jax.enable_x64(True):
        weights = jax.random.exponential(key, (num_samples, int(curves.max()) + 1))
    samples = refit(fit, np.asarray(weights)[:, curves])
    return with_samples(fit, samples)


def with_samples(fit: Fit, samples: Float[np.ndarray, "samples params"]) -> Fit:
    """The fit with bootstrap samples of `theta`."""
    return dataclasses.replace(fit, samples=samples)


def refit(
    fit: Fit,
    weights: Float[np.ndarray, "samples points"],
    log_losses: Float[np.ndarray, "samples points"] | None = None,
) -> Float[np.ndarray, "samples params"]:
    """`theta` under other weights of the runs and, if given, other losses: all fits at once."""
    design = fit.law.design(laws.features_of(fit.law, fit.runs))
    if log_losses is None:
        log_losses = np.broadcast_to(np.log([run.loss for run in fit.runs]), weights.shape)
    starts = fit.minima[:NUM_BOOTSTRAP_STARTS]
    lanes = (len(weights), len(starts))
    found = huber.minimise(
        np.tile(starts, (lanes[0], 1)),
        design,
        np.repeat(log_losses, lanes[1], axis=0),
        np.repeat(weights, lanes[1], axis=0),
        fit.huber_delta,
    )
    best = found.objective.reshape(lanes).argmin(1)
    return found.theta.reshape(*lanes, -1)[np.arange(lanes[0]), best]


class Optimum(NamedTuple):
    """The best size for a compute budget, under a law.

    Attributes:
        num_params: N.
        num_tokens: D.
        loss: nats per token.
    """

    num_params: Any
    num_tokens: Any
    loss: Any


def compute_optimal(fit: Fit, flops: Any, *, flops_per_param_token: float = 6.0) -> Optimum:
    r"""Parameters and tokens of least loss under `C = k N D`.

        N = G (C / k)^(beta / (alpha + beta)),   D = (C / k)^(alpha / (alpha + beta)) / G,
        G = (alpha A / (beta B))^(1 / (alpha + beta)).

    Args:
        fit: of `chinchilla`.
        flops: C, one budget or an array of them.
        flops_per_param_token: k: 6 where backpropagation is charged in full, 4 without gradients
            of activations, 2 with a free backward pass.

    Raises:
        InputError: another law, a budget that is not positive, or a law that has no optimum
            because a fitted exponent is not positive.

    Source: Hoffmann et al. (2022), arXiv 2203.15556, equation 4.
    """
    if fit.law.name != laws.CHINCHILLA.name:
        raise InputError(
            f"{fit.law.name} knows nothing of sizes; expected a fit of {laws.CHINCHILLA.name}"
        )
    budget = np.asarray(flops, float)
    if not (np.isfinite(budget) & (budget > 0)).all():
        raise InputError(f"flops is {flops}; expected finite positive numbers")
    _, log_A, log_B, alpha, beta = fit.theta
    if not (alpha > 0 and beta > 0):
        raise InputError(
            f"alpha is {alpha:.4g} and beta {beta:.4g}; both must be positive for a best size"
        )
    log_product = np.log(budget / flops_per_param_token)
    log_G = (np.log(alpha / beta) + log_A - log_B) / (alpha + beta)
    num_params = np.exp(log_G + beta / (alpha + beta) * log_product)
    num_tokens = np.exp(-log_G + alpha / (alpha + beta) * log_product)
    loss = fit.predict(num_params=num_params, num_tokens=num_tokens).reshape(budget.shape)
    return Optimum(num_params, num_tokens, loss)


def _check(law: Law, runs: Sequence[Run]) -> None:
    points.check(runs)
    arms = list(dict.fromkeys(run.arm for run in runs))
    if len(arms) > 1:
        raise InputError(f"runs are of the arms {', '.join(arms)}; expected one: fit each alone")
    count = len(law.parameters)
    if len(runs) < count:
        raise InputError(
            f"{law.name} has {count} parameters but there are {len(runs)} points; expected at"
            " least as many points, better five times as many"
        )
    for name in law.features:
        levels = len({getattr(run, name) for run in runs})
        if levels < law.num_levels:
            raise InputError(
                f"{law.name} needs at least {law.num_levels} different {name}; the runs have"
                f" {levels}"
            )


def _device(*arrays: Any) -> list[Array]:
    """As JAX's arrays, in the precision of the context, without a program for each shape."""
    return [jax.device_put(array) for array in arrays]


def _named(law: Law, theta: Float[np.ndarray, "*many params"]) -> Float[np.ndarray, "*many params"]:
    with jax.enable_x64(True):
        return np.asarray(law.named(*_device(theta)))


def _from_grid(law: Law, design: Any, log_losses: Any, delta: float) -> huber.Solution:
    """Where the grid's best starts lead to."""
    starts, ones = law.starts(), np.ones(len(log_losses))
    with jax.enable_x64(True):
        values = huber.objectives(*_device(starts, design, log_losses, ones), delta)
    best = starts[np.argsort(np.asarray(values), kind="stable")[:NUM_STARTS]]

    def descend(thetas: np.ndarray, **options: int) -> huber.Solution:
        shape = (len(thetas), len(log_losses))
        y = np.broadcast_to(log_losses, shape)
        return huber.minimise(thetas, design, y, np.ones(shape), delta, **options)

    first = descend(best, max_steps=FIRST_STEPS)
    return descend(first.theta[_distinct(first)[:NUM_FINALISTS]])


def _distinct(found: huber.Solution) -> Int[np.ndarray, " distinct"]:
    """Which of the ends differ, in the order of their objectives."""
    order = np.argsort(found.objective, kind="stable")
    values = found.objective[order]
    # Minima that differ have objectives that differ; rounding moves those of one by far less.
    fresh = np.concatenate([[True], np.diff(values) > 1e-6 * values[:-1]])
    return order[fresh]
