"""Gaussian integrals of `g(x) = x`: entries of the covariance (Wick's theorem)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def I2(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    """`E[x1 x2] = c12`."""
    return C[0, 1]


def I3(C: Float[Array, "3 3"]) -> Float[Array, ""]:
    """`E[x2 x3] = c23`."""
    return C[1, 2]


def I4(C: Float[Array, "4 4"]) -> Float[Array, ""]:
    """`E[x3 x4] = c34`."""
    return C[2, 3]


def J2(C: Float[Array, "2 2"]) -> Float[Array, ""]:
    """`1`."""
    return jnp.ones_like(C[0, 1])
