"""The activation functions of the shallow theory, with the Gaussian averages that it needs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfa_jax.errors import InputError, unknown
from dfa_jax.theory import erf, linear, relu


class Activation(NamedTuple):
    """An activation function and its averages over centred Gaussians.

    Attributes:
        g: the function, elementwise.
        derivative: of it.
        I2: `E[g(x1) g(x2)]` from the covariance `[2, 2]`.
        I3: `E[g'(x1) x2 g(x3)]` from `[3, 3]`.
        I4: `E[g'(x1) g'(x2) g(x3) g(x4)]` from `[4, 4]`.
        J2: `E[g'(x1) g'(x2)]` from `[2, 2]`.
    """

    g: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    I2: Callable[[Array], Array]
    I3: Callable[[Array], Array]
    I4: Callable[[Array], Array]
    J2: Callable[[Array], Array]


ACTIVATIONS: dict[str, Activation] = {
    "erf": Activation(
        lambda x: jax.lax.erf(x / 2**0.5),
        lambda x: (2 / np.pi) ** 0.5 * jnp.exp(-(x**2) / 2),
        erf.I2,
        erf.I3,
        erf.I4,
        erf.J2,
    ),
    "linear": Activation(lambda x: x, jnp.ones_like, linear.I2, linear.I3, linear.I4, linear.J2),
    "relu": Activation(
        jax.nn.relu, lambda x: (x > 0).astype(x.dtype), relu.I2, relu.I3, relu.I4, relu.J2
    ),
}
"""All of them by name."""


def get(name: str) -> Activation:
    """The activation function of this name.

    Raises:
        InputError: there is none.
    """
    if name not in ACTIVATIONS:
        raise InputError(unknown("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]


def over_units(
    integral: Callable[[Array], Array], C: Float[Array, "n n"], *units: range
) -> Float[Array, "..."]:
    """An integral at every choice of one unit from each range, one axis a range.

    >>> over_units(linear.I2, jnp.array([[1.0, 0.5], [0.5, 2.0]]), range(2), range(2)).tolist()
    [[1.0, 0.5], [0.5, 2.0]]
    """
    chosen = np.stack(np.meshgrid(*units, indexing="ij"), -1)
    sizes, chosen = chosen.shape[:-1], chosen.reshape(-1, len(units))
    blocks = C[chosen[:, :, None], chosen[:, None, :]]
    return jax.vmap(integral)(blocks).reshape(sizes)
