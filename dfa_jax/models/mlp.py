"""Multi-layer perceptron."""

from typing import Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from dfa_jax.errors import check_choices
from dfa_jax.parts import KERNEL_INITS, KernelInit

Activation = Literal["tanh", "relu", "erf", "linear"]

ACTIVATIONS = {
    "tanh": jax.numpy.tanh,
    "relu": jax.nn.relu,
    "erf": lambda a: jax.lax.erf(a / 2**0.5),
    "linear": lambda a: a,
}


class DenseLayer(nn.Module):
    """`h = phi(x W + b)`: `[*batch, d_in]` to `[*batch, width]`."""

    width: int
    activation: Activation
    use_bias: bool = True
    kernel_init: KernelInit = "lecun_normal"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """The activity after the nonlinearity."""
        kernel_init = KERNEL_INITS[self.kernel_init]
        dense = nn.Dense(self.width, use_bias=self.use_bias, kernel_init=kernel_init)
        return ACTIVATIONS[self.activation](dense(x))


class MLP(nn.Module):
    """A perceptron with hidden layers `layer_0`, `layer_1`, ... and a linear `readout`.

    Attributes:
        widths: units of each hidden layer.
        num_outputs: units of the readout.
        activation: `tanh`, `relu`, `erf` (that is erf(a / sqrt 2)) or `linear`.
        use_bias: whether layers and readout have biases.
        kernel_init: start of all kernels: `lecun_normal`, `uniform_fan_in` (on +-1 / sqrt(fan_in),
            PyTorch's default) or `zeros`.
    """

    widths: tuple[int, ...] = (256, 256)
    num_outputs: int = 10
    activation: Activation = "tanh"
    use_bias: bool = True
    kernel_init: KernelInit = "lecun_normal"

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
        """Flattens each example; returns the logits."""
        check_choices(self)
        h = inputs.reshape(inputs.shape[0], -1)
        for i, width in enumerate(self.widths):
            layer = DenseLayer(
                width, self.activation, self.use_bias, self.kernel_init, name=f"layer_{i}"
            )
            h = layer(h)
        return nn.Dense(
            self.num_outputs,
            use_bias=self.use_bias,
            kernel_init=KERNEL_INITS[self.kernel_init],
            name="readout",
        )(h)
