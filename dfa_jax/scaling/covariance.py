r"""Covariance of a robust fit, by the sandwich `H^-1 S H^-1`.

With `g_i = d log L_i / d theta` and the score `psi_i = clip(r_i, -delta, delta)`,

    H = sum_i (delta / h) 1[|r_i| <= h] g_i g_i^T,
    S = G / (G - 1) sum_c s_c s_c^T,    s_c = sum_{i on curve c} psi_i g_i.

`H` is the objective's expected curvature. The curvature itself counts the residuals within delta,
often a handful; so that, as Powell (1991) does for medians, it counts those within a wider `h` and
scales them back: `h` is Silverman's bandwidth of a box kernel, and at least delta. `S` sums scores
over each training curve before it squares them, since points of one curve err together.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

BOX_BANDWIDTH = 1.06 * 1.74  # Silverman's rule, and a box's canonical width against a Gaussian's


def sandwich(
    slopes: Float[np.ndarray, "points params"],
    residuals: Float[np.ndarray, " points"],
    curves: Int[np.ndarray, " points"],
    delta: float,
) -> Float[np.ndarray, "params params"]:
    """Covariance of `theta`; NaN where the data do not determine it.

    Args:
        slopes: `g_i`.
        residuals: `r_i`, predicted minus measured log-losses.
        curves: numbers the curve of each point, from 0 on.
        delta: of the Huber loss.
    """
    low, high = np.quantile(residuals, [0.25, 0.75])
    spread = min(float(np.std(residuals)), float(high - low) / 1.34)
    width = max(delta, BOX_BANDWIDTH * spread * len(residuals) ** -0.2)
    near = slopes[np.abs(residuals) <= width]
    hessian = delta / width * near.T @ near
    scores = np.zeros((curves.max() + 1, slopes.shape[1]))
    np.add.at(scores, curves, np.clip(residuals, -delta, delta)[:, None] * slopes)
    count = len(scores)
    middle = count / max(count - 1, 1) * scores.T @ scores
    # Coordinates differ by orders of magnitude: scaled to unit diagonal before the inverse.
    scale = np.sqrt(np.diag(hessian))
    if not (scale > 0).all():
        return np.full_like(hessian, np.nan)
    unit = hessian / np.outer(scale, scale)
    if np.linalg.cond(unit) > 1e13:
        return np.full_like(hessian, np.nan)
    inverse = np.linalg.inv(unit) / np.outer(scale, scale)
    return inverse @ middle @ inverse


def slopes_at(
    theta: Float[np.ndarray, " params"], design: Float[np.ndarray, "points terms params"]
) -> Float[np.ndarray, "points params"]:
    """`g_i`: the terms' rows, each by its share of the loss."""
    return np.einsum("nk,nkp->np", softmax(design @ theta, axis=-1), design)
