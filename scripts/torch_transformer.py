"""The Transformer of `dfa_jax.models` in PyTorch, with the same weights, for `benchmark.py`."""

# pyright: reportMissingImports=false
# PyTorch is no dependency: what needs it is skipped where it is missing.

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dfa_jax.models import Transformer
from dfa_jax.optim import Optimizer
from dfa_jax.types import Batch, Params


class Block(nn.Module):
    """Attention and an MLP, each with its norm, in front or behind."""

    def __init__(self, model: Transformer):
        super().__init__()
        width, hidden = model.width, model.mlp_factor * model.width
        self.pre, self.heads = model.norm == "pre", model.num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream behind the block, `[batch, time, width]`."""
        for sublayer, norm in zip((self.attention, self.mlp), self.norms, strict=True):
            x = x + sublayer(norm(x)) if self.pre else norm(x + sublayer(x))
        return x

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Causal self-attention, by PyTorch's own fused function."""
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, -1).transpose(1, 2)  # [batch, head, time, d_head]
            for part in self.qkv(x).split(width, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """GELU by tanh, as there."""
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


class Decoder(nn.Module):
    """Learned positions, blocks, untied unembedding."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.tokens = nn.Embedding(model.num_outputs, model.width)
        self.positions = nn.Parameter(torch.zeros(model.context, model.width))
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.num_layers))
        self.final_norm = nn.LayerNorm(model.width) if model.norm == "pre" else nn.Identity()
        self.unembed = nn.Linear(model.width, model.num_outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, `[batch, time, vocabulary]`."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.final_norm(x))


class Trainer:
    """Adam with clipping, as `dfa_jax.optim.Optimizer` has it."""

    def __init__(self, model: Transformer, params: Params, optimizer: Optimizer):
        self.decoder, self.clip = Decoder(model), optimizer.clip_norm
        _load(self.decoder, model, params)
        betas = (0.9, optimizer.b2)
        self.adam = torch.optim.Adam(self.decoder.parameters(), optimizer.learning_rate, betas)

    def steps(self, data: Batch, order: np.ndarray) -> float:
        """The mean loss of these steps; `order` is `[step, batch]`."""
        losses = [self.step(data.inputs[rows], data.targets[rows]) for rows in order]
        return sum(losses) / len(losses)

    def step(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """The loss before the step, nats a token; both arrays are `[batch, time]`."""
        self.adam.zero_grad(set_to_none=True)
        logits = self.decoder(torch.from_numpy(inputs).long())
        labels = torch.from_numpy(targets).long().flatten()
        loss = functional.cross_entropy(logits.flatten(0, 1), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), self.clip)
        self.adam.step()
        return float(loss.detach())


def _load(decoder: Any, model: Transformer, held: dict[str, Any]) -> None:
    """Our parameters into its modules."""
    with torch.no_grad():
        decoder.tokens.weight.copy_(torch.from_numpy(held["embed"]["tokens"]["embedding"].copy()))
        decoder.positions.copy_(torch.from_numpy(held["embed"]["positions"].copy()))
        _copy(decoder.unembed, held["unembed"])
        if model.norm == "pre":
            _copy(decoder.final_norm, held["final_norm"])
        for i, block in enumerate(decoder.blocks):
            own = held[f"block_{i}"]
            for layer, (first, second), norm in (
                ("attention", ("qkv", "out"), block.norms[0]),
                ("mlp", ("up", "down"), block.norms[1]),
            ):
                _copy(getattr(block, first), own[layer][first])
                _copy(getattr(block, second), own[layer][second])
                _copy(norm, own[layer]["norm"])


def _copy(module: Any, held: dict[str, np.ndarray]) -> None:
    """A linear map's kernel and bias, or a norm's scale and bias."""
    weight = held["kernel"].T if "kernel" in held else held["scale"]
    module.weight.copy_(torch.from_numpy(weight.copy()))
    module.bias.copy_(torch.from_numpy(held["bias"].copy()))
