r"""Gaussian integrals of `g(x) = erf(x / sqrt 2)`, in closed form.

Source: Saad and Solla (1995), Physical Review E 52, 4225; with second layers Goldt et al. (2019),
arXiv 1906.08632. All take the covariance of their arguments, in the order of the arguments.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax.theory.gaussian import arcsine


def I2(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    r"""`E[g(x1) g(x2)] = (2/pi) asin(c12 / sqrt((1 + c11)(1 + c22)))`."""
    scale = jnp.sqrt((1 + C[0, 0]) * (1 + C[1, 1]))
    return 2 / jnp.pi * jnp.arcsin(C[0, 1] / scale)


def I3(C: Float[Array, "3 3"]) -> Float[Array, ""]:
    r"""`E[g'(x1) x2 g(x3)] = (2/pi) (c23 (1 + c11) - c12 c13) / (sqrt(L3) (1 + c11))`.

    `L3 = (1 + c11)(1 + c33) - c13^2`.
    """
    one = 1 + C[0, 0]
    L3 = one * (1 + C[2, 2]) - C[0, 2] ** 2
    top = C[1, 2] * one - C[0, 1] * C[0, 2]
    return 2 / jnp.pi * top / (jnp.sqrt(L3) * one)


def I4(C: Float[Array, "4 4"]) -> Float[Array, ""]:
    r"""`E[g'(x1) g'(x2) g(x3) g(x4)] = (4/pi^2) asin(L0 / sqrt(L1 L2)) / sqrt(L4)`."""
    one, two = 1 + C[0, 0], 1 + C[1, 1]
    c12, c13, c14 = C[0, 1], C[0, 2], C[0, 3]
    c23, c24, c34 = C[1, 2], C[1, 3], C[2, 3]
    L4 = one * two - c12**2
    L0 = L4 * c34 - c23 * c24 * one - c13 * c14 * two + c12 * (c13 * c24 + c14 * c23)
    L1 = L4 * (1 + C[2, 2]) - c23**2 * one - c13**2 * two + 2 * c12 * c13 * c23
    L2 = L4 * (1 + C[3, 3]) - c24**2 * one - c14**2 * two + 2 * c12 * c14 * c24
    # Rounding could take the ratio past 1 where the two arguments coincide.
    return 4 / jnp.pi**2 * arcsine(L0 / jnp.sqrt(L1 * L2)) / jnp.sqrt(L4)


def J2(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    r"""`E[g'(x1) g'(x2)] = (2/pi) / sqrt((1 + c11)(1 + c22) - c12^2)`."""
    determinant = (1 + C[0, 0]) * (1 + C[1, 1]) - C[0, 1] ** 2
    return 2 / jnp.pi / jnp.sqrt(determinant)
