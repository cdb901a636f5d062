r"""Gaussian integrals of `g(x) = max(x, 0)`; `g'` is the step `s`.

`I2`, `I3`, `J2` are closed forms (the first is the arc-cosine kernel of Cho and Saul, 2009); `I4`
needs the probability of a four-dimensional orthant, which is one integral over an interval. All
follow from Stein's lemma, `E[x_i f(x)] = sum_j c_ij E[d_j f(x)]`, and are finite where arguments
coincide, as a unit's do with its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfa_jax.theory.gaussian import (
    arcsine,
    conditioned,
    correlation,
    density,
    quadrant,
    ratio,
    reordered,
    root,
)

NUM_NODES = 32  # error below 1e-7, on covariances without any structure below 1e-12

_EACH_FIRST_OF_3 = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
_EACH_FIRST_OF_4 = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3]])  # the fourth stays last


def I2(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    r"""`E[g(x1) g(x2)] = (d + c12 (pi/2 + asin rho)) / (2 pi)`, `d = sqrt(c11 c22 - c12^2)`."""
    rho = correlation(C)
    d = root(C[0, 0] * C[1, 1]) * root(1 - rho**2)
    return (d + C[0, 1] * (jnp.pi / 2 + arcsine(rho))) / (2 * jnp.pi)


def I3(C: Float[Array, "3 3"]) -> Float[Array, ""]:
    r"""`E[g'(x1) x2 g(x3)] = c12 sqrt(c11 c33 - c13^2) / (2 pi c11) + c23 P(x1, x3 > 0)`."""
    pair = C[jnp.array([[0], [2]]), jnp.array([0, 2])]
    boundary = ratio(root(C[2, 2]) * root(1 - correlation(pair) ** 2), root(C[0, 0]))
    return C[0, 1] * boundary / (2 * jnp.pi) + C[1, 2] * quadrant(pair)


def I4(C: Float[Array, "4 4"]) -> Float[Array, ""]:
    r"""`E[s(x1) s(x2) g(x3) g(x4)]`, the orthant's probability by Gauss-Legendre quadrature.

    `I4 = sum_{i=1..3} c_3i E[delta(x_i) s s g(x4)] + c34 P(x1, x2, x3, x4 > 0)`.
    """

    def boundary(order, covariance):
        P = reordered(C, order)  # x_i first, x4 last
        return covariance * density(P[0, 0]) * _steps_and_ramp(conditioned(P))

    return jax.vmap(boundary)(_EACH_FIRST_OF_4, C[2, :3]).sum() + C[2, 3] * orthant(C)


def J2(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    r"""`E[s(x1) s(x2)] = P(x1 > 0, x2 > 0) = 1/4 + asin(rho) / (2 pi)`."""
    return quadrant(C)


def orthant(C: Float[Array, "4 4"]) -> Float[Array, ""]:
    r"""`P(x1, x2, x3, x4 > 0)` of a centred Gaussian.

    With the correlations `rho_i4` of the fourth variable switched on by a factor `t` from 0 to 1,
    `P = P(x1, x2, x3 > 0) / 2 + sum_i int rho_i4 (dP / d rho_i4) dt`, where the derivative is a
    density at `x_i = x_4 = 0` times the quadrant probability of the other two (Plackett, 1954).
    """
    scale = jax.vmap(lambda variance: ratio(1.0, root(variance)))(jnp.diagonal(C))
    P = (C * jnp.outer(scale, scale)).clip(-1, 1)
    triple = 0.125 + jax.vmap(arcsine)(jnp.stack([P[0, 1], P[0, 2], P[1, 2]])).sum() / (4 * jnp.pi)
    parts = jax.vmap(lambda order: _switched_on(reordered(P, order)))(_EACH_FIRST_OF_4)
    return triple / 2 + parts.sum()


def _switched_on(P: Float[Array, "4 4"]) -> Float[Array, ""]:
    """The part of the integral that the correlation of the first variable and the fourth brings.

    With `t rho_14 = sin(theta)` the density cancels; nodes cluster at the end, where the quadrant
    probability has a square-root singularity if the fourth variable is one of the others.
    """
    nodes, weights = (jnp.asarray(a, P.dtype) for a in np.polynomial.legendre.leggauss(NUM_NODES))
    u = (1 - nodes) / 2  # in (0, 1); theta / end = 1 - u^2
    end = arcsine(P[0, 3])
    t = jax.vmap(ratio, (0, None))(jnp.sin(end * (1 - u**2)), P[0, 3])

    def others(t):
        """`P(x2, x3 > 0 | x1 = x4 = 0)` with the fourth variable's correlations times `t`."""
        scale = jnp.ones(4, P.dtype).at[3].set(t)
        scaled = (P * jnp.outer(scale, scale)).at[3, 3].set(1)
        given_fourth = conditioned(reordered(scaled, jnp.array([3, 0, 1, 2])))
        return quadrant(conditioned(given_fourth))

    return end * (weights * u * jax.vmap(others)(t)).sum() / (2 * jnp.pi)


def _steps_and_ramp(C: Float[Array, "3 3"]) -> Float[Array, ""]:
    """`E[s(x1) s(x2) g(x3)] = sum_j c_3j E[delta(x_j) s s]`."""

    def boundary(order, covariance):
        P = reordered(C, order)
        return covariance * density(P[0, 0]) * quadrant(conditioned(P))

    return jax.vmap(boundary)(_EACH_FIRST_OF_3, C[2]).sum()
