"""Parts of networks that both models and rules are made of."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KernelInit = Literal["lecun_normal", "uniform_fan_in", "zeros"]

KERNEL_INITS = {
    "lecun_normal": nn.initializers.lecun_normal(),
    # Uniform on +-1 / sqrt(fan_in), PyTorch's default: a third of LeCun's variance.
    "uniform_fan_in": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "zeros": nn.initializers.zeros_init(),
}

_EPSILON = 1e-5


def layer_norm(x: Float[Array, "*any channel"]) -> Float[Array, "*any channel"]:
    """Layer normalisation over the last axis, without scale and bias.

    The root is taken before the axis is put back: then a forward gradient's passes stay alike under
    XLA's rewriting, and are computed once. Of a fused `jax.nn.standardize` they are not.
    """
    centred = x - x.mean(-1)[..., None]
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1) + _EPSILON)
    return centred * inverse[..., None]
