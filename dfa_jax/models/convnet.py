"""Convolutional network."""

import flax.linen as nn
from jaxtyping import Array, Float

from dfa_jax.errors import check_choices
from dfa_jax.models.mlp import ACTIVATIONS, Activation


class ConvLayer(nn.Module):
    """Convolution, nonlinearity, then 2x2 average pooling.

    `[batch, H, W, C]` to `[batch, H/2, W/2, channels]`.
    """

    channels: int
    kernel_size: int
    activation: Activation
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width c_in"]
    ) -> Float[Array, "batch h w c_out"]:
        """The activity after pooling, where feedback enters a convolutional layer."""
        side = (self.kernel_size, self.kernel_size)
        a = nn.Conv(self.channels, side, use_bias=self.use_bias)(x)
        return nn.avg_pool(ACTIVATIONS[self.activation](a), (2, 2), strides=(2, 2))


class ConvNet(nn.Module):
    """Convolutional layers `layer_0`, `layer_1`, ... and a linear `readout` of the last one.

    Attributes:
        channels: channels of each layer; each halves both sides of the image.
        kernel_size: side of the square kernels, in pixels.
        num_outputs: units of the readout.
        activation: as in `MLP`.
        use_bias: whether layers and readout have biases.
    """

    channels: tuple[int, ...] = (32, 64)
    kernel_size: int = 5
    num_outputs: int = 10
    activation: Activation = "tanh"
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width c_in"]
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        check_choices(self)
        h = images
        for i, channels in enumerate(self.channels):
            name = f"layer_{i}"
            h = ConvLayer(channels, self.kernel_size, self.activation, self.use_bias, name=name)(h)
        h = h.reshape(h.shape[0], -1)
        return nn.Dense(self.num_outputs, use_bias=self.use_bias, name="readout")(h)
