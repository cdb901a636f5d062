"""Exact compute of a training step of a `Transformer`: matrix products, from the structure.

A multiply-add is two FLOPs. Attention is counted as the whole square of places, since that is what
runs. Everything else (norms, activations, softmax, look-ups, the optimiser) counts as nothing.
"""

import dataclasses
import fnmatch
import math
from typing import Literal

import jax
import jax.numpy as jnp

from dfa_jax.autodiff.site_gradients import ErrorTap
from dfa_jax.errors import InputError, check_choices, unknown
from dfa_jax.models.transformer import (
    EmbeddingCredit,
    Granularity,
    Transformer,
    check_sizes,
    credit_sites,
)
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    ChainRule,
    DirectFeedbackAlignment,
    LearningRule,
    Shallow,
    WeightForwardGradient,
)

Pass = Literal["forward", "tangents", "weight_gradients", "activation_gradients", "projections"]
"""What a product is for; `tangents` are those of `jax.jvp`, `projections` are `e B`."""

Convention = Literal["6ND", "4ND", "2ND"]
"""FLOPs of a run with N parameters and D tokens, in multiples of N D.

2 for the forward pass, 2 for gradients of weights, 2 for those of activities. DFA at every map
needs no gradients of activities (4ND); 2ND says that the whole backward pass is free.
"""

CONVENTIONS: dict[Convention, int] = {"6ND": 6, "4ND": 4, "2ND": 2}


Parts = dict[tuple[str, Pass], int]
"""FLOPs by place and pass."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """Matrix-product FLOPs of one step, by place and pass.

    Attributes:
        parts: `(place, pass) -> FLOPs`. Places are the linear maps by name
            (`block_0/attention/qkv`), `block_0/attention/scores`, `block_0/attention/values`,
            `unembed` (tied or not), and of projections the credit sites, or `shared`.
        num_tokens: tokens in the step's batch.
    """

    parts: Parts
    num_tokens: int

    def of(self, place: str = "*", kind: str = "*") -> int:
        """The sum over the places and passes that two glob patterns match.

        >>> import dfa_jax
        >>> found = count(dfa_jax.models.Transformer(), dfa_jax.rules.Backprop(), batch=1, time=8)
        >>> found.of("unembed", "forward")
        524288
        """
        return sum(
            number
            for (where, what), number in self.parts.items()
            if fnmatch.fnmatchcase(where, place) and fnmatch.fnmatchcase(what, kind)
        )

    @property
    def total(self) -> int:
        """Of the step."""
        return self.of()

    @property
    def per_token(self) -> float:
        """Of the step, over its tokens."""
        return self.total / self.num_tokens


def count(
    model: Transformer,
    rule: LearningRule,
    *,
    batch: int,
    time: int,
    granularity: Granularity = "macro",
    embedding: EmbeddingCredit = "block_1",
    frozen_blocks: bool = False,
) -> Flops:
    """FLOPs of one gradient estimate, as it runs when what nobody reads is left out.

    A gradient of a map's input is needed where a trained parameter lies between that input and the
    site below; an error is projected to the sites behind trained parameters. Scanned blocks count
    like those written out (in a loop, the first block does what the others do). Under `Shallow`
    everything below the last site is run forward only. Draws of a forward gradient share one
    forward pass, as under `draws="vmap"` (the compiler finds that out unless the batch is one
    window, where it computes most of it twice). Without `remat`.

    Args:
        model: the network.
        rule: `Backprop`, a chain rule such as `FeedbackAlignment` (which costs the same),
            `Shallow`, `DirectFeedbackAlignment` (tap and sharing are read from it), or a forward
            gradient, the mean of its draws.
        batch: windows a step.
        time: tokens a window.
        granularity: of the sites, see `credit_sites`.
        embedding: who trains the embedding, see `credit_sites`.
        frozen_blocks: blocks keep their start, under backpropagation; embedding and head learn.

    Raises:
        InputError: another rule, frozen blocks under another rule than backpropagation, or a size
            below 1.
    """
    _check(model, rule, batch, time, frozen_blocks)
    patterns = credit_sites(model.clone(scan=False), granularity, embedding=embedding)
    names = frozenset(p.replace("*", str(i)) for p in patterns for i in range(model.num_layers))
    sites = frozenset() if isinstance(rule, (Backprop, ChainRule, WeightForwardGradient)) else names
    walk = _Walk(model, batch * time, time, sites, trains_blocks=not frozen_blocks)
    walk.run()
    parts: Parts = {(op.place, "forward"): op.flops for op in walk.products}
    if isinstance(rule, Shallow):
        parts |= _backward(walk, "logits", below=False)
    elif isinstance(rule, WeightForwardGradient):
        parts |= _weight_tangents(walk, rule.num_draws, exact_readout=rule.exact_readout)
    elif isinstance(rule, ActivityForwardGradient):
        parts |= _backward(walk, "logits") | _activity_tangents(walk, rule.num_draws)
    elif isinstance(rule, DirectFeedbackAlignment):
        parts |= _backward(walk, rule.tap) | _projections(walk, rule)
    else:
        parts |= _backward(walk, "logits")
    return Flops(parts, batch * time)


def num_params(model: Transformer, *, embeddings: bool = True) -> int:
    """Parameters, with or without the tables of tokens and positions and the unembedding.

    >>> num_params(Transformer(num_layers=2, width=4, num_outputs=10, context=8), embeddings=False)
    496
    """
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    stacked = model.clone(scan=True)  # traced once for all blocks
    params = jax.eval_shape(stacked.init, jax.random.key(0), tokens)["params"]
    kept = {name: part for name, part in params.items() if embeddings or name not in _EMBEDDINGS}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))


_EMBEDDINGS = ("embed", "unembed")


def conventional(convention: Convention, num_params: int, num_tokens: int) -> int:
    """FLOPs of a run by a convention.

    >>> conventional("6ND", 1000, 10)
    60000
    """
    if convention not in CONVENTIONS:
        raise InputError(unknown("compute convention", convention, CONVENTIONS))
    return CONVENTIONS[convention] * num_params * num_tokens


@dataclasses.dataclass(frozen=True)
class _Product:
    """A matrix product of the forward pass.

    Attributes:
        place: its name.
        flops: of the forward pass.
        has_weights: whether one operand is a weight; else both are activities.
        is_trained: whether the weight is trained.
        is_live: whether a trained parameter lies below its input, with no site between.
        is_above_first: whether a site lies below its input, at whatever distance.
    """

    place: str
    flops: int
    has_weights: bool
    is_trained: bool
    is_live: bool
    is_above_first: bool


class _Walk:
    """One walk through the forward pass, which notes what depends on what."""

    def __init__(
        self,
        model: Transformer,
        num_tokens: int,
        time: int,
        sites: frozenset[str],
        *,
        trains_blocks: bool,
    ):
        self.model, self.num_tokens, self.time = model, num_tokens, time
        self.sites, self.trains_blocks = sites, trains_blocks
        self.products: list[_Product] = []
        self.fed: dict[str, int] = {}  # width of every site with a trained parameter behind it
        self.passed_site = False

    def run(self) -> None:
        """From the embedding to the logits."""
        model = self.model
        stream = self._site("embed", model.width, is_live=True)
        for i in range(model.num_layers):
            for layer in ("attention", "mlp"):
                stream = self._sublayer(f"block_{i}/{layer}", layer, stream)
            stream = self._site(f"block_{i}", model.width, is_live=stream)
        self.normed = model.norm == "pre"  # the final norm is trained
        self._map("unembed", model.width, model.num_outputs, stream or self.normed, trained=True)

    def _sublayer(self, name: str, layer: str, stream: bool) -> bool:
        """Whether the stream behind it depends on a trained parameter above the last site."""
        model, width = self.model, self.model.width
        hidden = model.mlp_factor * width
        trains = self.trains_blocks
        h = stream
        if model.norm == "pre":
            h = self._site(f"{name}/norm", width, is_live=h or trains)
        if layer == "attention":
            h = self._map(f"{name}/qkv", width, 3 * width, h)
            for product in ("scores", "values"):
                self._note(f"{name}/{product}", 2 * self.num_tokens * self.time * width, h)
            h = self._map(f"{name}/out", width, width, h)
        else:
            h = self._map(f"{name}/up", width, hidden, h)
            h = self._site(f"{name}/down:input", hidden, is_live=h)
            h = self._map(f"{name}/down", hidden, width, h)
        stream = stream or h
        if model.norm == "post":
            stream = self._site(f"{name}/norm", width, is_live=stream or trains)
        return self._site(name, width, is_live=stream)

    def _map(
        self, place: str, d_in: int, d_out: int, is_live: bool, trained: bool | None = None
    ) -> bool:
        trained = self.trains_blocks if trained is None else trained
        self._note(place, 2 * self.num_tokens * d_in * d_out, is_live, trained)
        return self._site(place, d_out, is_live=is_live or trained)

    def _note(self, place: str, flops: int, is_live: bool, trained: bool | None = None) -> None:
        has_weights = trained is not None
        self.products.append(
            _Product(place, flops, has_weights, bool(trained), is_live, self.passed_site)
        )

    def _site(self, name: str, width: int, *, is_live: bool) -> bool:
        """Nothing is live behind a site."""
        if name not in self.sites:
            return is_live
        self.passed_site = True
        if is_live:
            self.fed[name] = width
        return False


def _backward(walk: _Walk, tap: ErrorTap, *, below: bool = True) -> Parts:
    """Local VJPs; not `below` the last site where all errors are zero."""
    parts: Parts = {}
    for op in walk.products:
        is_head = op.place == "unembed"
        if not (below or is_head):
            continue
        if op.is_trained:
            parts[op.place, "weight_gradients"] = op.flops
        if op.is_live or (is_head and tap == "last_hidden"):
            # Of one operand, or of both if neither is a weight.
            parts[op.place, "activation_gradients"] = op.flops * (1 if op.has_weights else 2)
    return parts


def _projections(walk: _Walk, rule: DirectFeedbackAlignment) -> Parts:
    """`e B_l` at every site that feeds a parameter; with one shared matrix, once for each width."""
    model = walk.model
    d_e = model.num_outputs if rule.tap == "logits" else model.width
    if rule.feedback_sharing == "shared":
        widths = sum(set(walk.fed.values()))
        return {("shared", "projections"): 2 * walk.num_tokens * d_e * widths}
    return {
        (site, "projections"): 2 * walk.num_tokens * d_e * width for site, width in walk.fed.items()
    }


def _weight_tangents(walk: _Walk, num_draws: int, *, exact_readout: bool) -> Parts:
    """Of every operand: every weight but the readout's moves, and so does every activity."""
    parts: Parts = {}
    for op in walk.products:
        is_exact = exact_readout and op.place == "unembed"
        is_tied = is_exact and walk.model.tied  # then it lies in the embedding, and moves
        moving = 1 if is_exact and not is_tied else 2
        parts[op.place, "tangents"] = num_draws * moving * op.flops
        if is_exact and not is_tied:
            parts[op.place, "weight_gradients"] = op.flops
        if is_exact and walk.normed:
            parts[op.place, "activation_gradients"] = op.flops
    return parts


def _activity_tangents(walk: _Walk, num_draws: int) -> Parts:
    """Of every activity above the first site; no weight moves."""
    return {
        (op.place, "tangents"): num_draws * op.flops * (1 if op.has_weights else 2)
        for op in walk.products
        if op.is_above_first
    }


def _check(
    model: Transformer, rule: LearningRule, batch: int, time: int, frozen_blocks: bool
) -> None:
    check_sizes(model)
    check_choices(rule)
    known = (
        Backprop,
        ChainRule,
        Shallow,
        DirectFeedbackAlignment,
        WeightForwardGradient,
        ActivityForwardGradient,
    )
    if not isinstance(rule, known):
        raise InputError(
            f"no count is known for {type(rule).__name__}; expected one of"
            f" {', '.join(kind.__name__ for kind in known)}"
        )
    if frozen_blocks and not isinstance(rule, Backprop):
        raise InputError(
            f"blocks are frozen under {type(rule).__name__}; expected backpropagation, whose"
            " gradients alone pass through frozen blocks to the embedding"
        )
    for name, size in (("batch", batch), ("time", time)):
        if size < 1:
            raise InputError(f"{name} is {size}; expected at least 1")
    if time > model.context:
        raise InputError(f"time is {time} and context is {model.context}; expected no more than it")
