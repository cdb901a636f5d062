"""The ConvNet of `dfa_jax.models` in PyTorch, with the same weights, for `benchmark.py`."""

# pyright: reportMissingImports=false
# PyTorch is no dependency: what needs it is skipped where it is missing.

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dfa_jax.models import ConvNet
from dfa_jax.types import Batch, Params


class Trainer:
    """Its network under Adam; images are `[batch, height, width, channels]`, as ours."""

    def __init__(self, model: ConvNet, params: Params, learning_rate: float):
        names = [f"layer_{i}" for i in range(len(model.channels))]
        kernels = [params[name]["Conv_0"]["kernel"] for name in names]  # [h, w, in, out]
        self.layers = nn.ModuleList(
            nn.Conv2d(kernel.shape[2], kernel.shape[3], model.kernel_size, padding="same")
            for kernel in kernels
        )
        inputs, outputs = params["readout"]["kernel"].shape
        self.readout = nn.Linear(inputs, outputs)
        with torch.no_grad():
            for layer, name in zip(self.layers, names, strict=True):
                held = params[name]["Conv_0"]
                layer.weight.copy_(torch.from_numpy(held["kernel"].transpose(3, 2, 0, 1).copy()))
                layer.bias.copy_(torch.from_numpy(held["bias"].copy()))
            self.readout.weight.copy_(torch.from_numpy(params["readout"]["kernel"].T.copy()))
            self.readout.bias.copy_(torch.from_numpy(params["readout"]["bias"].copy()))
        held = [*self.layers.parameters(), *self.readout.parameters()]
        self.adam = torch.optim.Adam(held, learning_rate)

    def steps(self, data: Batch, order: np.ndarray) -> float:
        """The mean loss of these steps; `order` is `[step, batch]`."""
        losses = [self.step(data.inputs[rows], data.targets[rows]) for rows in order]
        return sum(losses) / len(losses)

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The loss before the step, nats an image."""
        self.adam.zero_grad(set_to_none=True)
        h = torch.from_numpy(images).permute(0, 3, 1, 2)
        for layer in self.layers:
            h = functional.avg_pool2d(torch.tanh(layer(h)), 2)
        logits = self.readout(h.permute(0, 2, 3, 1).flatten(1))
        loss = functional.cross_entropy(logits, torch.from_numpy(labels).long())
        loss.backward()
        self.adam.step()
        return float(loss.detach())
