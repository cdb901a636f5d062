"""Step time of every rule on a decoder Transformer, against backpropagation and PyTorch.

`python scripts/benchmark.py transformer [--layers 4] [--width 128] [--rounds 10] [--output FILE]`

A step is the trainer's own: gradient, clipping, Adam. In each round every arm takes the same steps,
in a random order; ratios are to backpropagation within the round, beside the ratio of counted
matrix-product FLOPs (`scaling.flops`). Where PyTorch is installed, its eager backpropagation joins
in: the same network (`torch_transformer.py`) from the same weights on the same batches, as its
losses have to show before it is timed.
"""

import dataclasses
import importlib.util
import pathlib
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import side_by_side

from dfa_jax.errors import InputError
from dfa_jax.models import Transformer, from_linen
from dfa_jax.models.transformer import Granularity, credit_sites
from dfa_jax.optim import Optimizer
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    LearningRule,
    Shallow,
    WeightForwardGradient,
)
from dfa_jax.scaling import flops
from dfa_jax.train import loop, records, sharding
from dfa_jax.train.cli import Parser
from dfa_jax.train.process import prepare_process
from dfa_jax.types import Batch


class Arm(NamedTuple):
    """A rule, and where its errors arrive."""

    rule: LearningRule
    granularity: Granularity = "macro"
    frozen: tuple[str, ...] = ()


DFA = DirectFeedbackAlignment(feedback_sharing="shared")
ARMS = {
    "BP": Arm(Backprop()),
    "FA": Arm(FeedbackAlignment()),
    "DFA macro": Arm(DFA),
    "DFA micro": Arm(DFA, "micro"),
    "DFA linear": Arm(DFA, "linear"),
    "shallow": Arm(Shallow()),
    "frozen blocks": Arm(Backprop(), frozen=("block_*",)),
    "FG-W": Arm(WeightForwardGradient()),
    "FG-A": Arm(ActivityForwardGradient()),
}
TORCH = "BP, PyTorch"
OPTIMIZER = Optimizer("adam", learning_rate=1e-3, b2=0.98, clip_norm=1.0)
TOLERANCE = 1e-3  # of losses, over as many steps as a round has

Steps = Callable[[], Any]
"""Takes the steps of a round, and returns when they are done."""


def main(arguments: list[str]) -> None:
    """Prints the ratios' median and quartiles; appends them to a file if asked."""
    parser = Parser(prog="benchmark.py transformer", description="Step time on a Transformer.")
    for name, default in (("layers", 4), ("width", 128), ("heads", 8), ("context", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--norm", choices=["pre", "post"], default="pre")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="steps an arm and round")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse(arguments)
    if min(options.rounds, options.steps, options.batch_size) < 1:
        raise InputError("--rounds, --steps and --batch-size; expected at least 1 of each")
    prepare_process()
    model = Transformer(
        num_layers=options.layers,
        width=options.width,
        num_heads=options.heads,
        context=options.context,
        norm=options.norm,
    )
    print(f"{model.num_layers} blocks of {model.width}, batch {options.batch_size} x"
          f" {model.context}, {options.norm}-LN, Adam; {records.environment()}")  # fmt: skip
    seconds = measure(takers(model, options), options.rounds)
    found = summarise(model, seconds, options)
    for name, numbers in found.items():
        print(
            f"{name:<14} {numbers['milliseconds']:8.1f} ms a step   of BP:"
            f" {side_by_side.shown(numbers)}   FLOPs of BP: {numbers['flops']:.3f}"
        )
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    side_by_side.append(options.output, settings=settings, transformer=found)


def takers(model: Transformer, options: Any) -> dict[str, Steps]:
    """Every arm's way to take a round's steps; the first ones, which compile, are behind it."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (4 * options.batch_size, model.context + 1)).astype(np.int32)
    data = Batch(tokens[:, :-1], tokens[:, 1:])
    order = rng.integers(0, len(tokens), (options.steps, options.batch_size), np.int32)
    made = {}
    for name in dict.fromkeys(["BP", *options.arms]):
        made[name] = Taker(model, ARMS[name], data, order)
    if importlib.util.find_spec("torch"):
        made[TORCH] = torch_steps(model, made["BP"], data, order)
    return made


class Taker:
    """One arm's steps as the trainer takes them."""

    def __init__(self, model: Transformer, arm: Arm, data: Batch, order: np.ndarray):
        self.data, self.order = jax.device_put(data), order
        example = jax.tree.map(lambda a: a[: order.shape[1]], data)
        sites = credit_sites(model, arm.granularity)
        optimizer = dataclasses.replace(OPTIMIZER, frozen=arm.frozen)
        self.program = loop.Program(
            from_linen(model, sites, example.inputs),
            arm.rule,
            "softmax_cross_entropy",
            optimizer,
            10**6,
            sharding.make_mesh(),
        )
        init = loop.draw_state(jax.random.key(0), None, example, program=self.program)
        self.start = jax.tree.map(np.asarray, init.params)
        self.state = init
        self.first_loss = self()

    def __call__(self) -> float:
        """The mean loss of the steps."""
        number = len(self.order)
        self.state, totals = loop.run_steps(
            self.state, self.data, self.order, number, program=self.program
        )
        jax.block_until_ready(self.state)
        return float(totals["loss"]) / number


def torch_steps(model: Transformer, ours: Taker, data: Batch, order: np.ndarray) -> Steps:
    """PyTorch's way to take the same steps.

    Raises:
        InputError: its losses are not ours.
    """
    import torch_transformer  # beside this file; imports PyTorch

    trainer = torch_transformer.Trainer(
        model, ours.start, OPTIMIZER.learning_rate, OPTIMIZER.b2, OPTIMIZER.clip_norm or 0.0
    )

    def steps() -> float:
        losses = [trainer.step(data.inputs[rows], data.targets[rows]) for rows in order]
        return sum(losses) / len(losses)

    theirs = steps()
    if abs(theirs - ours.first_loss) > TOLERANCE:
        raise InputError(
            f"PyTorch's mean loss over {len(order)} steps is {theirs:.5f}, and ours"
            f" {ours.first_loss:.5f}; expected the same network, so nothing was timed"
        )
    return steps


def measure(made: dict[str, Steps], rounds: int) -> dict[str, list[float]]:
    """Seconds of a round's steps by arm."""
    seconds = {name: [] for name in made}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(made), len(made)):
            start = time.perf_counter()
            made[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(
    model: Transformer, seconds: dict[str, list[float]], options: Any
) -> dict[str, dict[str, float]]:
    """By arm: median time, median and quartiles of the ratio to BP, and the ratio of FLOPs."""
    base = np.array(seconds["BP"])
    return {
        name: {
            "milliseconds": round(1e3 * float(np.median(times)) / options.steps, 2),
            **side_by_side.quartiles(np.array(times) / base),
            "flops": round(counted(model, name, options) / counted(model, "BP", options), 4),
        }
        for name, times in seconds.items()
    }


def counted(model: Transformer, name: str, options: Any) -> float:
    """Matrix-product FLOPs of an arm's gradient, a token."""
    arm = ARMS.get(name, ARMS["BP"])
    found = flops.count(
        model,
        arm.rule,
        batch=options.batch_size,
        time=model.context,
        granularity=arm.granularity,
        frozen_blocks=bool(arm.frozen),
    )
    return found.per_token
