"""Pieces of Gaussian integrals that stay finite where variables coincide.

Where two variables are one and the same, conditioning on the first leaves nothing of the second,
and whether nothing is positive has no answer. All integrals here are continuous, though: any
vanishing noise of their own, put on all variables, gives the limit. What a variable keeps when
another determines it is therefore such a noise, of relative variance `VANISHING`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

VANISHING = 1e-30


def conditioned(C: Float[Array, "n n"]) -> Float[Array, "m m"]:
    """Covariance of the other variables given that the first is zero, `C - c c^T / c_11`."""
    inner, cross = C[1:, 1:], C[1:, 0]
    explained = jnp.outer(cross, cross) * ratio(1.0, C[0, 0])
    left, before = jnp.diagonal(inner - explained), jnp.diagonal(inner)
    free = left > _rounding(C) * before
    # The noises of x_j and of the first variable, seen from x_1 + noise = 0.
    noise = VANISHING * (jnp.diag(before) + explained)
    determined = jnp.where(jnp.outer(~free, ~free), noise, 0)
    return jnp.where(jnp.outer(free, free), inner - explained, determined)


def reordered(C: Float[Array, "n n"], order: Int[Array, " n"]) -> Float[Array, "n n"]:
    """The covariance of the variables in another order."""
    return C[order[:, None], order[None, :]]


def quadrant(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    """`P(x1 > 0, x2 > 0) = 1/4 + asin(rho) / (2 pi)`."""
    return 0.25 + arcsine(correlation(C)) / (2 * jnp.pi)


def correlation(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    """`c12 / sqrt(c11 c22)`; 0 where a variance is 0."""
    return ratio(C[0, 1], root(C[0, 0]) * root(C[1, 1])).clip(-1, 1)


def density(variance: Float[Array, ""]) -> Float[Array, ""]:
    """Of a centred Gaussian at 0; 0 for a constant."""
    return ratio(1.0, root(2 * jnp.pi * variance))


def arcsine(x: Float[Array, ""]) -> Float[Array, ""]:
    """The arcsine, with derivative 0 at the ends, where the true one is infinite."""
    inside = jnp.abs(x) < 1
    return jnp.where(inside, jnp.arcsin(jnp.where(inside, x, 0)), jnp.pi / 2 * jnp.sign(x))


def ratio(top: Float[Array, ""] | float, bottom: Float[Array, ""]) -> Float[Array, ""]:
    """The quotient; 0, with derivative 0, where the divisor is 0."""
    defined = bottom != 0
    return jnp.where(defined, top / jnp.where(defined, bottom, 1), 0)


def root(x: Float[Array, ""]) -> Float[Array, ""]:
    """The square root of what is positive, else 0; its derivative stays finite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def factor(C: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The lower triangular `L` with `L L^T = C`, also where `C` is singular (rows of zeros).

    Unrolled, since the matrices are small and come by the thousand.
    """
    n = C.shape[0]
    L: list[list[Array]] = [[jnp.zeros((), C.dtype)] * n for _ in range(n)]
    for j in range(n):
        pivot = C[j, j] - sum(L[j][m] ** 2 for m in range(j))
        diagonal = root(jnp.where(pivot > _rounding(C) * C[j, j], pivot, 0))
        L[j][j] = diagonal
        for i in range(j + 1, n):
            L[i][j] = ratio(C[i, j] - sum(L[i][m] * L[j][m] for m in range(j)), diagonal)
    return jnp.stack([jnp.stack(row) for row in L])


def _rounding(C: Array) -> float:
    """Relative variance below which only rounding is left: 3e-13 in float64, 3e-6 in float32."""
    return float(jnp.finfo(C.dtype).eps) ** 0.8
