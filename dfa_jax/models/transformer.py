"""Causal decoder-only Transformer, and where its credit sites are."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from dfa_jax.errors import InputError, check_choices, unknown
from dfa_jax.parts import layer_norm

Norm = Literal["pre", "post"]
Positions = Literal["learned", "sinusoidal", "rotary"]
Granularity = Literal["macro", "micro", "linear"]
EmbeddingCredit = Literal["block_1", "own"]

ACTIVATIONS = {"gelu": nn.gelu, "relu": nn.relu}

_WAVELENGTH = 10_000.0  # the longest, over 2 pi, of sinusoidal and rotary positions


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What a block needs to know of its `Transformer`; `dtype` None keeps that of the input."""

    num_layers: int
    num_heads: int
    mlp_factor: int
    norm: Norm
    rotary: bool
    use_bias: bool
    activation: str
    std: float
    dtype: Any

    def dense(self, features: int, name: str, std: float | None = None) -> nn.Dense:
        """A linear map with normal weights."""
        return nn.Dense(
            features,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.normal(std or self.std),
            dtype=self.dtype,
            dot_general=product,
            name=name,
        )

    def onto_stream(self, features: int, name: str) -> nn.Dense:
        """A linear map whose output is added to the residual stream, as 2 `num_layers` are."""
        return self.dense(features, name, self.std / math.sqrt(2 * self.num_layers))


class LayerNorm(nn.Module):
    """Layer normalisation with gains and biases.

    Flax's own would do, but for forward gradients: see `local_mixer.layer_norm`. With it, a step
    of theirs computes the whole forward pass twice.
    """

    use_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch time d"]) -> Float[Array, "batch time d"]:
        """In the type of `x`; mean and variance in float32 at least."""
        y = layer_norm(x.astype(at_least_float32(x)))
        y = y * self.param("scale", nn.initializers.ones_init(), x.shape[-1:])[None, None]
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])[None, None]
        return y.astype(x.dtype)


class Transformer(nn.Module):
    r"""Token embedding `embed`, blocks, `final_norm` (pre-LN only) and `unembed` (untied only).

    A block is a sub-layer `attention` (maps `qkv`, `out`) and a sub-layer `mlp` (maps `up`,
    `down`), each with a `norm`. The output of a sub-layer is the residual stream behind it:

        x + F(norm(x))   (pre-LN),   or   norm(x + F(x))   (post-LN).

    Blocks are `block_0`, `block_1`, ..., or with `scan` one stack, `blocks`. The stream behind the
    last block goes through `last_hidden`, a module that does nothing but bear a name, to the
    unembedding. `credit_sites` names places for errors.

    Every matrix starts normal with variance 2 / (5 width), GPT-2's 0.02 at its width, those that
    write to the stream with 1 / (2 num_layers) of it, as there. There is no dropout.

    Attributes:
        num_outputs: size of the vocabulary.
        num_layers: blocks.
        width: units of the residual stream.
        num_heads: heads of attention; they divide the width.
        mlp_factor: units of an MLP's hidden layer over `width`.
        context: longest window, in tokens.
        norm: layer normalisation in front of each sub-layer (`pre`), or behind the sum (`post`).
        positions: `learned` rows of a table, or fixed `sinusoidal` ones, are added to the token's
            (which is then multiplied by the root of the width); or queries and keys are turned by
            their place (`rotary`).
        tied: the unembedding is the embedding's transpose.
        use_bias: whether maps, norms and unembedding have biases.
        activation: of the MLPs: `gelu` (by tanh) or `relu`.
        scan: compile one block for all layers; its parameters have the layer axis in front.
        remat: compute a block anew in the backward pass and keep its input only.
        dtype: of what is computed; parameters, softmax, norms' statistics and logits are float32.

    Raises:
        InputError: inputs are no tokens `[batch, time]`, or more of them than `context`; heads do
            not divide the width; an odd head under rotary positions; a size below 1.

    Sources: Vaswani et al. (2017), arXiv 1706.03762; Radford et al. (2019), GPT-2; initial
    variance: Nguyen and Salazar (2019), arXiv 1910.05895; rotary: Su et al. (2021), arXiv
    2104.09864.
    """

    num_outputs: int = 256
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    mlp_factor: int = 4
    context: int = 128
    norm: Norm = "pre"
    positions: Positions = "learned"
    tied: bool = False
    use_bias: bool = True
    activation: Literal["gelu", "relu"] = "gelu"
    scan: bool = False
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(self, tokens: Integer[Array, "batch time"]) -> Float[Array, "batch time vocab"]:
        """Returns the logits of the next token at every place."""
        check_sizes(self)
        check_tokens(self, tokens)
        options = self.options()
        embed = Embedding(
            self.num_outputs,
            self.width,
            self.context,
            self.positions,
            options.std,
            options.dtype,
            name="embed",
        )
        x = Stream(name="last_hidden")(self.blocks(options, embed(tokens)))
        if self.norm == "pre":
            x = LayerNorm(self.use_bias, name="final_norm")(x)
        if self.tied:
            return embed.attend(x)  # in float32, as the table is
        init = nn.initializers.normal(options.std)
        unembed = nn.Dense(
            self.num_outputs,
            use_bias=self.use_bias,
            kernel_init=init,
            dot_general=product,
            name="unembed",
        )
        return unembed(x)

    def options(self) -> BlockOptions:
        """What the blocks are told."""
        return BlockOptions(
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            mlp_factor=self.mlp_factor,
            norm=self.norm,
            rotary=self.positions == "rotary",
            use_bias=self.use_bias,
            activation=self.activation,
            std=math.sqrt(2 / (5 * self.width)),
            dtype=jnp.bfloat16 if self.dtype == "bfloat16" else None,
        )

    def blocks(
        self, options: BlockOptions, x: Float[Array, "batch time d"]
    ) -> Float[Array, "batch time d"]:
        """The residual stream behind all blocks."""
        # In a scan the loop keeps the compiler from merging the two passes.
        kind = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        if self.scan:
            stack = nn.scan(
                kind,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=self.num_layers,
            )
            return stack(options, name="blocks")(x, None)[0]
        for i in range(self.num_layers):
            x, _ = kind(options, name=f"block_{i}")(x, None)
        return x


class Embedding(nn.Module):
    """Rows of the table of tokens, plus those of positions, unless these are rotary."""

    vocabulary: int
    width: int
    context: int
    positions: Positions
    std: float
    dtype: Any

    def setup(self):
        """The tables."""
        init = nn.initializers.normal(self.std)
        self.tokens = nn.Embed(self.vocabulary, self.width, embedding_init=init)
        if self.positions == "learned":
            self.table = self.param("positions", init, (self.context, self.width))

    def __call__(self, tokens: Integer[Array, "batch time"]) -> Float[Array, "batch time d"]:
        """The stream in front of the first block."""
        x, time = self.tokens(tokens), tokens.shape[1]
        if self.positions == "learned":
            x = x + self.table[None, :time]
        elif self.positions == "sinusoidal":
            x = math.sqrt(self.width) * x + sinusoids(time, self.width).astype(x.dtype)[None]
        return x.astype(self.dtype or x.dtype)

    def attend(self, x: Float[Array, "batch time d"]) -> Float[Array, "batch time vocab"]:
        """Logits by the transpose of the tokens' table."""
        return self.tokens.attend(x)


class Stream(nn.Module):
    """The identity: a name for a place in the residual stream."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch time d"]) -> Float[Array, "batch time d"]:
        """The same."""
        return x


class Block(nn.Module):
    """Two sub-layers, in the form that `nn.scan` wants."""

    options: BlockOptions

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time d"], _: None
    ) -> tuple[Float[Array, "batch time d"], None]:
        """The residual stream behind both."""
        x = Attention(self.options, name="attention")(x)
        return MLPSublayer(self.options, name="mlp")(x), None


class Attention(nn.Module):
    """Causal self-attention with its norm, added to the residual stream."""

    options: BlockOptions

    @nn.compact
    def __call__(self, x: Float[Array, "batch time d"]) -> Float[Array, "batch time d"]:
        """The residual stream behind it."""
        options, width = self.options, x.shape[-1]
        norm = LayerNorm(options.use_bias, name="norm")
        h = norm(x) if options.norm == "pre" else x
        qkv = options.dense(3 * width, "qkv")(h)
        mixed = causal_attention(qkv, options.num_heads, rotary=options.rotary)
        y = x + options.onto_stream(width, "out")(mixed)
        return y if options.norm == "pre" else norm(y)


class MLPSublayer(nn.Module):
    """A hidden layer with its norm, added to the residual stream."""

    options: BlockOptions

    @nn.compact
    def __call__(self, x: Float[Array, "batch time d"]) -> Float[Array, "batch time d"]:
        """The residual stream behind it."""
        options, width = self.options, x.shape[-1]
        norm = LayerNorm(options.use_bias, name="norm")
        h = norm(x) if options.norm == "pre" else x
        h = ACTIVATIONS[options.activation](options.dense(options.mlp_factor * width, "up")(h))
        y = x + options.onto_stream(width, "down")(h)
        return y if options.norm == "pre" else norm(y)


def product(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    dimension_numbers: Any,
    precision: Any = None,
) -> Float[Array, "*batch outputs"]:
    """`x W`, whose gradient by `W` is computed as that by its transpose; see `_turned`."""
    del dimension_numbers  # of a dense layer
    return jax.lax.dot_general(x, _turned(kernel), (((x.ndim - 1,), (1,)), ((), ())), precision)


@jax.custom_jvp
def _turned(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch n m"]:
    """Its transpose, whose gradient is computed as such on a CPU.

    Products over batch and time, and over time in attention, take half of the time there if their
    result is not transposed at once (XLA of jaxlib 0.10.2 hands them to another library).
    """
    return x.swapaxes(-1, -2)


@_turned.defjvp
def _turned_jvp(primals, tangents):
    # A barrier's transpose is a barrier: without it the compiler turns the product back.
    turned = tangents[0].swapaxes(-1, -2)
    return _turned(*primals), jax.lax.platform_dependent(
        turned, cpu=jax.lax.optimization_barrier, default=lambda x: x
    )


def causal_attention(
    qkv: Float[Array, "batch time qkv"], num_heads: int, *, rotary: bool
) -> Float[Array, "batch time d"]:
    r"""Scaled dot-product attention of each place to itself and to those before it.

        softmax(q k^T / sqrt(d_head)) v

    Args:
        qkv: queries, keys and values side by side, each with its heads side by side.
        num_heads: how many.
        rotary: turn queries and keys by their place.
    """
    batch, time, _ = qkv.shape
    # Split, then transposed one by one: on a CPU the backward pass takes 3/4 of the time that it
    # takes with one transpose of all three.
    q, k, v = (
        x.reshape(batch, time, num_heads, -1).transpose(0, 2, 1, 3)  # [batch, head, time, d_head]
        for x in jnp.split(qkv, 3, axis=-1)
    )
    if rotary:
        q, k = turned(q), turned(k)
    scores = jnp.einsum("bhqd,bhdk->bhqk", q / math.sqrt(q.shape[-1]), _turned(k))
    future = np.where(np.tri(time, dtype=bool), 0.0, -np.inf)
    scores = scores.astype(at_least_float32(scores)) + future.astype(np.float32)[None, None]
    # Softmax whose sum divides what is mixed, not the weights: a fifth off the time on a CPU.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v)
    mixed = mixed / weights.sum(-1)[..., None].astype(v.dtype)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, time, -1)


def turned(x: Float[Array, "batch head time d"]) -> Float[Array, "batch head time d"]:
    """Rotary positions: the pair (i, i + d/2) turned by `place * 10000^(-2i/d)`."""
    angle = angles(x.shape[-2], x.shape[-1])
    cos, sin = (jnp.asarray(f(angle), x.dtype)[None, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def sinusoids(time: int, width: int) -> Float[Array, "time d"]:
    """Sines in the first half of the units, cosines in the second, of `place * 10000^(-2i/d)`."""
    angle = angles(time, width + width % 2)
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], -1)[:, :width])


def angles(time: int, width: int) -> np.ndarray:
    """Place times frequency, in double precision, `[time, width / 2]`."""
    frequency = _WAVELENGTH ** (-np.arange(0, width, 2) / width)
    return np.arange(time)[:, None] * frequency


def at_least_float32(x: Array) -> Any:
    """The type in which half-precision values are summed."""
    return jnp.promote_types(x.dtype, jnp.float32)


def check_sizes(model: Transformer) -> None:
    """Refuses a Transformer that cannot be built."""
    check_choices(model)
    for name in ("num_outputs", "num_layers", "width", "num_heads", "mlp_factor", "context"):
        if getattr(model, name) < 1:
            raise InputError(f"{name} is {getattr(model, name)}; expected at least 1")
    if model.width % model.num_heads:
        raise InputError(
            f"num_heads is {model.num_heads} and width is {model.width}; expected a divisor of the"
            " width"
        )
    if model.positions == "rotary" and (model.width // model.num_heads) % 2:
        raise InputError(
            f"a head has {model.width // model.num_heads} units (width {model.width}, num_heads"
            f" {model.num_heads}); rotary positions turn pairs of them, so choose an even number"
        )


def check_tokens(model: Transformer, tokens: Any) -> None:
    """Refuses inputs that are no windows of tokens."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(
            f"the inputs are {tokens.dtype} {tokens.shape}; expected integer tokens [batch, time]"
        )
    if tokens.shape[1] > model.context:
        raise InputError(
            f"the inputs are windows of {tokens.shape[1]} tokens and context is {model.context};"
            " shorten the windows, or choose a larger context"
        )


def credit_sites(
    model: Transformer,
    granularity: Granularity,
    *,
    embedding: EmbeddingCredit = "block_1",
    last_hidden: bool = False,
) -> tuple[str, ...]:
    """Names of credit sites for `from_linen`, for blocks that are written out or scanned.

    Args:
        model: whose.
        granularity: a site behind every block (`macro`); behind attention, the MLP's activation
            and the block (`micro`), as in Launay et al. (2020); or behind every linear map, norm
            and sub-layer (`linear`), so that no error passes a matrix.
        embedding: it learns from what block 1 hands down (`block_1`), or from an error of its
            `own`.
        last_hidden: make the last hidden state the last site, as `error_tap="last_hidden"` needs.

    >>> credit_sites(Transformer(), "macro")
    ('block_*',)
    >>> credit_sites(Transformer(scan=True), "macro", embedding="own", last_hidden=True)
    ('embed', 'blocks', 'last_hidden')
    """
    if granularity not in ("macro", "micro", "linear"):
        raise InputError(unknown("granularity", granularity, ("macro", "micro", "linear")))
    if embedding not in ("block_1", "own"):
        raise InputError(unknown("embedding credit", embedding, ("block_1", "own")))
    block = "blocks" if model.scan else "block_*"
    inside = {
        "macro": (),
        "micro": ("attention", "mlp/down:input"),
        "linear": _behind_maps(model.norm),
    }[granularity]
    ends = () if granularity == "linear" and model.norm == "post" else (block,)
    sites = (*(f"{block}/{place}" for place in inside), *ends)
    below = ("embed",) if embedding == "own" else ()
    # Written out, the last block's output is the last site already.
    above = ("last_hidden",) if last_hidden and model.scan else ()
    return (*below, *sites, *above)


def granularity_of(
    model: Transformer, sites: Sequence[str]
) -> tuple[Granularity, EmbeddingCredit] | None:
    """The options that give these sites, the other way round; None if none do.

    >>> granularity_of(Transformer(), ("embed", "block_*"))
    ('macro', 'own')
    """
    options = itertools.product(get_args(Granularity), get_args(EmbeddingCredit), (False, True))
    for granularity, embedding, last_hidden in options:
        made = credit_sites(model, granularity, embedding=embedding, last_hidden=last_hidden)
        if made == tuple(sites):
            return granularity, embedding
    return None


def _behind_maps(norm: Norm) -> tuple[str, ...]:
    """Places behind the maps and norms of a block; a post-LN sub-layer ends with its norm."""
    maps = {"attention": ("qkv", "out"), "mlp": ("up", "down")}
    if norm == "post":
        return tuple(f"{layer}/{m}" for layer in maps for m in (*maps[layer], "norm"))
    within = {layer: tuple(f"{layer}/{m}" for m in ("norm", *maps[layer])) for layer in maps}
    return (*within["attention"], "attention", *within["mlp"])
