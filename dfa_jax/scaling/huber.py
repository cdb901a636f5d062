r"""Sums of Huber losses of log-residuals, minimised by a damped Newton method.

    F(theta) = sum_i w_i H(r_i),   r_i = log sum_k exp(T_ik . theta) - log L_i,
    H(r) = r^2 / 2 for |r| <= delta, delta (|r| - delta / 2) beyond.

With delta = 1e-3 and losses known to a percent this is almost a sum of absolute values: flat
curvature but for the few points inside delta. A step solves `(H + lambda M) s = -grad F`, where `H`
is the exact Hessian and `M` the Gauss-Newton matrix of the reweighted least squares that majorise
the Huber losses (weights `min(1, delta / |r|)`), plus a small multiple of the identity in the
scale of the coordinates, for terms that vanish. Lambda falls after a good step, so that it ends as
Newton's method, and rises after one that does not descend.

The loop stops on the predicted decrease relative to F itself, so that scaling F (a mean for the
sum) changes nothing: quasi-Newton methods that stop on absolute changes end early on such small
numbers (Besiroglu et al., 2024, arXiv 2404.10102).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

TOLERANCE = 1e-13
"""Of the predicted decrease, relative to the objective: a few roundings of double precision."""

MAX_STEPS = 300
SMALL_DAMPING = 1e-4
"""Of the identity beside `M`: 1e-2 takes half as long again, 1e-6 strands starts that are far."""

LANES = 256
"""Fits that run side by side; the slowest of them decides when all are done."""

PADDED_POINTS = 64
"""Points come in multiples of so many."""


class Solution(NamedTuple):
    """Where fits ended.

    Attributes:
        theta: `[fits, params]`.
        objective: `F`, `[fits]`.
        converged: whether the predicted decrease fell below the tolerance, `[fits]`.
    """

    theta: Any
    objective: Any
    converged: Any


def objective(
    theta: Float[Array, " params"],
    design: Float[Array, "points terms params"],
    log_losses: Float[Array, " points"],
    weights: Float[Array, " points"],
    delta: float | Float[Array, ""],
) -> Float[Array, ""]:
    """`F(theta)`: the weighted sum, never the mean."""
    r = jnp.abs(logsumexp(design @ theta, axis=-1) - log_losses)
    return jnp.sum(weights * jnp.where(r <= delta, r**2 / 2, delta * (r - delta / 2)))


@jax.jit
def objectives(
    thetas: Float[Array, "fits params"],
    design: Float[Array, "points terms params"],
    log_losses: Float[Array, " points"],
    weights: Float[Array, " points"],
    delta: float | Float[Array, ""],
) -> Float[Array, " fits"]:
    """`F` at many `theta`."""
    return jax.vmap(lambda theta: objective(theta, design, log_losses, weights, delta))(thetas)


def minimise(
    starts: Float[np.ndarray, "fits params"],
    design: Float[np.ndarray, "points terms params"],
    log_losses: Float[np.ndarray, "fits points"],
    weights: Float[np.ndarray, "fits points"],
    delta: float,
    *,
    max_steps: int = MAX_STEPS,
) -> Solution:
    """Many fits at once on one design: over starts, over samples of weights or of losses.

    In double precision, whatever JAX's default is: single precision cannot meet the tolerance.
    Points are padded with weight zero, and fits with the last one, to sizes that compilations
    share.
    """
    fits, points = log_losses.shape
    more_points = (0, -points % PADDED_POINTS)
    more_fits = (0, -fits % min(LANES, 2 ** math.ceil(math.log2(fits))))
    design = np.pad(design, (more_points, (0, 0), (0, 0)), mode="edge")
    log_losses, weights = (np.pad(a, ((0, 0), more_points)) for a in (log_losses, weights))
    lanes = [np.pad(a, (more_fits, (0, 0)), mode="edge") for a in (starts, log_losses, weights)]
    with jax.enable_x64(True):
        found = _minimise(*lanes, design, delta, max_steps)
        return Solution(*(np.asarray(leaf)[:fits] for leaf in found))


@jax.jit
def _minimise(starts, log_losses, weights, design, delta, max_steps) -> Solution:
    """All lanes, `LANES` of them side by side."""
    return jax.lax.map(
        lambda lane: _descend(lane[0], design, lane[1], lane[2], delta, max_steps),
        (starts, log_losses, weights),
        batch_size=min(LANES, len(starts)),
    )


class _State(NamedTuple):
    theta: Float[Array, " params"]
    value: Float[Array, ""]
    damping: Float[Array, ""]
    step: Array
    done: Bool[Array, ""]


def _descend(start, design, log_losses, weights, delta, max_steps) -> Solution:
    """One fit."""

    def value_at(theta):
        return objective(theta, design, log_losses, weights, delta)

    def advance(state: _State) -> _State:
        theta, value, damping, step, _ = state
        gradient, hessian, majoriser = _derivatives(theta, design, log_losses, weights, delta)
        matrix = hessian + damping * majoriser
        move = -cho_solve((jnp.linalg.cholesky(matrix), True), gradient)
        solved = jnp.isfinite(move).all()  # NaN where the matrix is not positive definite
        move = jnp.where(solved, move, 0.0)
        predicted = -(gradient @ move) - move @ matrix @ move / 2
        moved = value_at(theta + move)
        descends = solved & (moved < value)
        good = descends & (value - moved > predicted / 4)
        # A small decrease under heavy damping is no sign of a minimum.
        done = (solved & (damping <= 1) & (predicted <= TOLERANCE * value)) | (damping > 1e12)
        kept = jnp.where(descends, damping, jnp.maximum(damping, 1e-6) * 5)
        return _State(
            jnp.where(descends, theta + move, theta),
            jnp.where(descends, moved, value),
            jnp.where(good, damping / 5, kept),
            step + 1,
            done,
        )

    first = _State(start, value_at(start), jnp.ones_like(start[0]), jnp.array(0), jnp.array(False))
    last = jax.lax.while_loop(lambda s: ~s.done & (s.step < max_steps), advance, first)
    return Solution(last.theta, last.value, last.done)


def _derivatives(theta, design, log_losses, weights, delta):
    """Gradient and Hessian of the objective, and the damping's matrix."""
    points, terms, params = design.shape
    rows = design.reshape(points * terms, params)
    logits = (rows @ theta).reshape(points, terms)
    log_loss = logsumexp(logits, axis=-1)
    shares = jnp.exp(logits - log_loss[:, None])  # of each term in the loss
    slopes = jnp.einsum("nk,nkp->np", shares, design)  # d log L / d theta
    r = log_loss - log_losses
    score = weights * jnp.clip(r, -delta, delta)
    # Hessian of a log-sum-exp: sum_k share_k t_k t_k^T - slope slope^T. The outer products of the
    # rows are the same in every fit, so that the sum over points is one matrix product for all.
    outer = (rows[:, :, None] * rows[:, None, :]).reshape(points * terms, params**2)
    curved = ((score[:, None] * shares).reshape(-1) @ outer).reshape(params, params)
    inside = weights * (jnp.abs(r) <= delta) - score
    hessian = curved + jnp.einsum("n,ni,nj->ij", inside, slopes, slopes)
    pull = weights * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(r), delta))
    majoriser = jnp.einsum("n,ni,nj->ij", pull, slopes, slopes)
    scale = weights.sum() * jnp.square(rows).mean(0)
    return score @ slopes, hessian, majoriser + SMALL_DAMPING * jnp.diag(scale)
