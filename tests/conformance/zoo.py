"""Models in the shapes that other people's have, tiny: how they are called, what they return."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax.models import Model, from_linen
from dfa_jax.types import Batch
from tests import helpers


class Kind(NamedTuple):
    """A model of the table.

    Attributes:
        module: as its author would write it.
        sites: its credit sites; those of one leaf of a tuple name it.
        batch: inputs and targets.
        values: the loss, one number a row of the outputs: `[batch]`, `[batch, time]`.
        readout: a parameter above the last site.
        first: a kernel below the first site that has another map above it.
        options: of `from_linen`.
        labels: whether there are labels to project.
    """

    module: nn.Module
    sites: list[str]
    batch: Batch
    values: Callable[[Any, Any], Any]
    readout: tuple[str, ...]
    first: tuple[str, ...]
    options: dict[str, Any] = {}  # noqa: RUF012 -- never changed
    labels: bool = True


class Case(NamedTuple):
    """A model with numbers."""

    kind: Kind
    model: Model
    params: Any
    state: Any
    batch: Batch


def cross_entropy(logits, labels):
    """One value a label."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]


class ResNet(nn.Module):
    """Convolutions, batch statistics, additions."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(x)
        for i in range(2):
            x = Residual(name=f"block_{i}")(x, train=train)
        return nn.Dense(3, name="readout")(x.mean((1, 2)))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        h = nn.relu(norm(name="norm_0")(nn.Conv(4, (3, 3), use_bias=False, name="conv_0")(x)))
        h = norm(name="norm_1")(nn.Conv(4, (3, 3), use_bias=False, name="conv_1")(h))
        return jnp.tanh(x + h)


class ViT(nn.Module):
    """Patches, a class token, dropout; blocks return their attention too."""

    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.Dense(8, name="patches")(x)
        token = self.param("cls", nn.initializers.normal(0.5), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 8)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.5), (1, x.shape[1], 8))
        for i in range(2):
            x, _ = Block(name=f"block_{i}")(x, deterministic)
        return nn.Dense(3, name="readout")(nn.LayerNorm(name="norm")(x[:, 0]))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic, mask=None):
        h = nn.LayerNorm(name="norm")(x)
        q, k, v = (nn.Dense(8, name=name)(h) for name in ("q", "k", "v"))
        scores = jnp.einsum("bqd,bkd->bqk", q, k) / np.float32(np.sqrt(8))
        scores = scores if mask is None else jnp.where(mask, scores, -1e9)
        attention = jax.nn.softmax(scores)
        h = nn.Dropout(0.3)(attention @ v, deterministic=deterministic)
        return x + jnp.tanh(nn.Dense(8, name="out")(h)), attention


class Recurrent(nn.Module):
    """An LSTM over time, with its hidden sequence as the site."""

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(4, name="embed")(x))
        h = nn.RNN(nn.OptimizedLSTMCell(4), name="lstm")(h)
        return nn.Dense(3, name="readout")(h)


class MaskedLanguageModel(nn.Module):
    """Dict inputs by keyword, padding masked, the embedding used again by `attend`."""

    @nn.compact
    def __call__(self, ids, *, mask, deterministic: bool = True):
        embed = nn.Embed(7, 8, name="embed")
        x = embed(ids) + self.param("positions", nn.initializers.normal(0.5), (1, 4, 8))
        for i in range(2):
            x, _ = Block(name=f"block_{i}")(x, deterministic, mask[:, None, :])
        h = jnp.tanh(nn.Dense(8, name="transform")(x))
        return {"logits": embed.attend(h) + self.param("bias", nn.initializers.zeros, (1, 1, 7))}


class Decoder(nn.Module):
    """Causal attention over tokens, unembedded by the embedding itself."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(5, 8, name="embed")
        x = embed(tokens)
        past = np.tril(np.ones((1, tokens.shape[1], tokens.shape[1]), bool))
        for i in range(2):
            x, _ = Block(name=f"block_{i}")(x, True, past)
        return embed.attend(x) + self.param("bias", nn.initializers.zeros, (1, 1, 5))


class ActorCritic(nn.Module):
    """Two heads on one trunk."""

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.Sequential([nn.Dense(6), jnp.tanh], name=f"layer_{i}")(x)
        return nn.Dense(3, name="readout")(x), nn.Dense(1, name="value")(x)[:, 0]


class Experts(nn.Module):
    """Two experts a layer, weighed by a router that sows a loss which balances it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, name="embed")(x)
        for i in range(2):
            x = x + jnp.tanh(Mixture(name=f"block_{i}")(x))
        return nn.Dense(3, name="readout")(x)


class Mixture(nn.Module):
    @nn.compact
    def __call__(self, x):
        share = jax.nn.softmax(nn.Dense(2, name="router")(x))
        self.sow("losses", "balance", jnp.square(share.mean(0) - 0.5).sum())
        self.sow("diagnostics", "largest", share.max())
        kernels = self.param("experts", nn.initializers.normal(0.5), (2, 5, 5))
        return jnp.einsum("bd,edh,be->bh", x, kernels, share)


class LoRA(nn.Module):
    """A dense map and a low-rank one beside it, in one scope."""

    features: int

    def setup(self):
        self.dense = nn.Dense(self.features)
        self.low_rank = LowRank(self.features)
        nn.share_scope(self, self.dense)

    def __call__(self, x):
        return jnp.tanh(self.dense(x) + self.low_rank(x))


class LowRank(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        a = self.param("a", nn.initializers.normal(0.5), (x.shape[-1], 2))
        b = self.param("b", nn.initializers.normal(0.5), (2, self.features))
        return x @ a @ b


class Adapted(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = LoRA(6, name=f"layer_{i}")(x)
        return nn.Dense(3, name="readout")(x)


class Keywords(nn.Module):
    """Several inputs by keyword, submodules called by keyword, a stream of noise of its own."""

    @nn.compact
    def __call__(self, *, image, table, train: bool):
        a = nn.Dense(6, name="image")(inputs=image)
        h = jnp.tanh(a + nn.Dense(6, name="table")(inputs=table))
        if train:
            h = h + 0.1 * jax.random.normal(self.make_rng("noise"), h.shape)
        h = jnp.tanh(nn.Dense(5, name="layer")(inputs=h))
        return nn.Dense(3, name="readout")(inputs=h)


class Squeezed(nn.Module):
    """One number an example."""

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.Sequential([nn.Dense(6), jnp.tanh], name=f"layer_{i}")(x)
        return nn.Dense(1, name="readout")(x)[:, 0]


N, T = 6, 4


def rows(*shape: int, seed: int = 0) -> Any:
    """Standard normal numbers for `N` examples."""
    return helpers.normals(np.zeros((N, *shape), np.float32), seed)


def labels(*shape: int, classes: int = 3, seed: int = 1) -> Any:
    """Random labels for `N` examples."""
    drawn = np.random.default_rng(seed).integers(classes, size=(N, *shape), dtype=np.int32)
    return jax.device_put(drawn)


def masked_language() -> Kind:
    """Padded sequences of several lengths, each with its weights among the targets."""
    mask = np.arange(T) < np.array([[4], [3], [4], [2], [3], [4]])
    batch = Batch(
        {"ids": labels(T, classes=7, seed=2), "mask": jax.device_put(mask)},
        {"labels": labels(T, classes=7), "weights": jax.device_put(mask.astype(np.float32))},
    )
    return Kind(
        MaskedLanguageModel(),
        ["block_0:0", "block_1:0"],
        batch,
        lambda outputs, targets: cross_entropy(outputs["logits"], targets["labels"]),
        ("bias",),
        ("block_0", "v", "kernel"),
        {
            "call": lambda m, x, train: m(x["ids"], mask=x["mask"], deterministic=not train),
            "tap": "logits",
        },
    )


KINDS: dict[str, Callable[[], Kind]] = {
    "ResNet, batch statistics": lambda: Kind(
        ResNet(),
        ["block_*"],
        Batch(rows(5, 5, 2), labels()),
        cross_entropy,
        ("readout", "kernel"),
        ("block_0", "conv_0", "kernel"),
    ),
    "ViT, blocks return tuples": lambda: Kind(
        ViT(),
        ["block_0:0", "block_1:0"],
        Batch(rows(3, 5), labels()),
        cross_entropy,
        ("readout", "kernel"),
        ("block_0", "v", "kernel"),
    ),
    "LSTM over time": lambda: Kind(
        Recurrent(),
        ["embed", "lstm"],
        Batch(rows(T, 2), labels(T)),
        cross_entropy,
        ("readout", "kernel"),
        ("embed", "kernel"),
    ),
    "masked language model, tied": masked_language,
    "causal decoder, tied": lambda: Kind(
        Decoder(),
        ["block_0:0", "block_1:0"],
        Batch(labels(T, classes=5, seed=2), labels(T, classes=5)),
        cross_entropy,
        ("bias",),
        ("block_0", "v", "kernel"),
    ),
    "actor and critic": lambda: Kind(
        ActorCritic(),
        ["layer_*"],
        Batch(rows(4), {"actions": labels(), "returns": rows(seed=3)}),
        lambda outputs, targets: (
            cross_entropy(outputs[0], targets["actions"])
            + jnp.square(outputs[1] - targets["returns"])
        ),
        ("readout", "kernel"),
        ("Dense_0", "kernel"),
        {"tap": ("0", "1")},
    ),
    "experts, a sown loss": lambda: Kind(
        Experts(),
        ["block_*"],
        Batch(rows(4), labels()),
        cross_entropy,
        ("readout", "kernel"),
        ("block_0", "experts"),
        {"auxiliary": "losses"},
    ),
    "low-rank adapters": lambda: Kind(
        Adapted(),
        ["layer_*"],
        Batch(rows(4), labels()),
        cross_entropy,
        ("readout", "kernel"),
        ("layer_0", "low_rank", "a"),
    ),
    "inputs by keyword, noise": lambda: Kind(
        Keywords(),
        ["layer:input:inputs", "readout:input:inputs"],
        Batch({"image": rows(4), "table": rows(2, seed=4)}, labels()),
        cross_entropy,
        ("readout", "kernel"),
        ("image", "kernel"),
        {"call": lambda m, x, train: m(image=x["image"], table=x["table"], train=train)},
    ),
    "squeezed head": lambda: Kind(
        Squeezed(),
        ["layer_*"],
        Batch(rows(4), rows(seed=5)),
        lambda outputs, targets: jnp.square(outputs - targets),
        ("readout", "kernel"),
        ("Dense_0", "kernel"),
        labels=False,
    ),
}


@functools.cache
def made(name: str) -> Case:
    """The model with random numbers, which no test changes."""
    kind = KINDS[name]()
    model = from_linen(kind.module, kind.sites, kind.batch.inputs, **kind.options)
    like, state, _ = jax.eval_shape(model.init_variables, jax.random.key(0), kind.batch.inputs)
    params, state = helpers.normals(like, 1, 0.5), helpers.normals(state, 2, 0.1)
    positive = jax.tree.map_with_path(
        lambda path, leaf: 1 + leaf**2 if path[-1].key == "var" else leaf, state
    )
    return Case(kind, model, params, positive, kind.batch)
