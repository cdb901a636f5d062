"""LocalMixer: an MLP-Mixer made of blocks that can learn from losses of their own."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax.errors import InputError, check_choices
from dfa_jax.parts import layer_norm

MixerInit = Literal["kaiming", "lecun", "constant"]


def initializer(kind: MixerInit, fan_in: int) -> Any:
    """Normal with standard deviation min(gain / sqrt(fan_in), 0.1), see `LocalMixer`."""
    gain = {"kaiming": 2.0, "lecun": 1.0, "constant": float("inf")}[kind]
    return nn.initializers.normal(min(gain / fan_in**0.5, 0.1))


class TokenMixing(nn.Module):
    """One linear map over patches between two layer normalisations over channels."""

    kernel_init: MixerInit

    @nn.compact
    def __call__(self, x: Float[Array, "batch patch d"]) -> Float[Array, "batch patch d"]:
        """What a ReLU follows."""
        tokens = jnp.swapaxes(layer_norm(x), 1, 2)  # [batch, d, patch]
        init = initializer(self.kernel_init, tokens.shape[-1])
        mixed = nn.Dense(tokens.shape[-1], kernel_init=init)(tokens)
        return layer_norm(jnp.swapaxes(mixed, 1, 2))


class ChannelMixing(nn.Module):
    """One linear map over channels between two layer normalisations; the result in groups."""

    channels: int
    num_groups: int
    kernel_init: MixerInit

    @nn.compact
    def __call__(self, x: Float[Array, "batch patch d"]) -> Float[Array, "batch patch group c"]:
        """What a ReLU follows."""
        init = initializer(self.kernel_init, x.shape[-1])
        mixed = nn.Dense(self.channels, kernel_init=init)(layer_norm(x))
        return layer_norm(mixed).reshape(*x.shape[:2], self.num_groups, -1)


class GroupMixing(nn.Module):
    """A linear map within each group, between two normalisations of groups, and the skip path."""

    kernel_init: MixerInit

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch patch group c"], skip: Float[Array, "batch patch d"] | None
    ) -> Float[Array, "batch patch group c"]:
        """What a ReLU follows."""
        init = initializer(self.kernel_init, h.shape[-1])
        dense = nn.DenseGeneral(h.shape[-1], batch_dims=(0,), kernel_init=init)
        mixed = dense(jnp.moveaxis(layer_norm(h), 2, 0))  # [group, batch, patch, c]
        out = layer_norm(jnp.moveaxis(mixed, 0, 2))
        return out if skip is None else out + skip.reshape(out.shape)


class MixerBlock(nn.Module):
    """Token, channel and group mixing with a skip path; the first block has the last two alone."""

    channels: int
    num_groups: int
    is_first: bool
    kernel_init: MixerInit

    @nn.compact
    def __call__(self, x: Float[Array, "batch patch d_in"]) -> Float[Array, "batch patch d"]:
        """The activity after the last ReLU."""
        h = x
        if not self.is_first:
            h = nn.relu(TokenMixing(self.kernel_init, name="token_mixing")(h))
        mixing = ChannelMixing(
            self.channels, self.num_groups, self.kernel_init, name="channel_mixing"
        )
        h = nn.relu(mixing(h))
        skip = None if self.is_first else x
        h = nn.relu(GroupMixing(self.kernel_init, name="group_mixing")(h, skip))
        return h.reshape(*x.shape[:2], self.channels)


class LocalMixer(nn.Module):
    """Blocks `block_0`, `block_1`, ... on patches of an image, and a linear `readout`.

    Credit sites are in front of every ReLU, `block_*/*_mixing`; blocks end at `block_*`. Layer
    normalisation stands before and behind every linear map.

    Attributes:
        num_blocks: blocks; the first does not mix patches.
        patches_per_side: the image is cut into the square of it patches.
        channels: units of a patch, in every block.
        num_groups: equal groups of them, which the last map of a block keeps apart.
        num_outputs: units of the readout.
        normalize_readout: layer normalisation in front of the readout.
        zero_readout: start the readout at zero; else like the rest.
        kernel_init: normal with standard deviation min(gain / sqrt(fan_in), 0.1), where gain is 2
            (`kaiming`) or 1 (`lecun`); or 0.1 (`constant`).

    Raises:
        InputError: the groups do not divide the channels, the patches the image; or a size below 1.

    Source: Ren et al. (2023), arXiv 2210.03310, and for the initial weights the code published with
    it. There the biases of two of the maps are added twice, here once.
    """

    num_blocks: int = 4
    patches_per_side: int = 8
    channels: int = 512
    num_groups: int = 16
    num_outputs: int = 10
    normalize_readout: bool = False
    zero_readout: bool = True
    kernel_init: MixerInit = "kaiming"

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width c"]
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        check_choices(self)
        for name in ("num_blocks", "patches_per_side", "channels", "num_groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.channels % self.num_groups:
            raise InputError(
                f"num_groups is {self.num_groups} and channels is {self.channels}; expected a"
                " divisor of the channels"
            )
        h = patches(images, self.patches_per_side)
        for i in range(self.num_blocks):
            block = MixerBlock(
                self.channels, self.num_groups, i == 0, self.kernel_init, name=f"block_{i}"
            )
            h = block(h)
        pooled = h.mean(1)
        if self.normalize_readout:
            pooled = layer_norm(pooled)
        init = initializer(self.kernel_init, self.channels)
        if self.zero_readout:
            init = nn.initializers.zeros_init()
        return nn.Dense(self.num_outputs, kernel_init=init, name="readout")(pooled)


def patches(
    images: Float[Array, "batch height width c"], per_side: int
) -> Float[Array, "batch patch d"]:
    """The square of `per_side` patches, row by row; pixels of a patch row by row, then channels.

    >>> patches(jnp.zeros((2, 8, 8, 3)), 4).shape
    (2, 16, 12)
    """
    if images.ndim != 4 or images.shape[1] % per_side or images.shape[2] % per_side:
        raise InputError(
            f"patches_per_side is {per_side} and the images are {images.shape[1:]}; expected images"
            " [height, width, channels] whose sides it divides"
        )
    batch, height, width, c = images.shape
    split = images.reshape(batch, per_side, height // per_side, per_side, width // per_side, c)
    return split.swapaxes(2, 3).reshape(batch, per_side**2, -1)
