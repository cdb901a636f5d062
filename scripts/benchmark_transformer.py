"""Step time of every rule on a decoder Transformer, against backpropagation and PyTorch.

`python scripts/benchmark.py transformer [--layers 4] [--width 128] [--rounds 10] [--output FILE]`

A step is the trainer's own: gradient, clipping, Adam. In each round every arm takes the same steps,
in a random order; ratios are to backpropagation within the round, beside the ratio of counted
matrix-product FLOPs (`scaling.flops`). Where PyTorch is installed, its eager backpropagation joins
in: the same network (`torch_transformer.py`) from the same weights on the same batches, as its
losses have to show before it is timed. `DFA scanned` loops over blocks, forward and backward, and
`DFA at once` has the layer-parallel backward pass.
"""

import dataclasses
import functools
import pathlib
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
    scan: bool = False


DFA = DirectFeedbackAlignment(feedback_sharing="shared")
ARMS = {
    "BP": Arm(Backprop()),
    "FA": Arm(FeedbackAlignment()),
    "DFA macro": Arm(DFA),
    "DFA micro": Arm(DFA, "micro"),
    "DFA linear": Arm(DFA, "linear"),
    "DFA scanned": Arm(DirectFeedbackAlignment(), scan=True),
    "DFA at once": Arm(DirectFeedbackAlignment(backward="layer_parallel"), scan=True),
    "shallow": Arm(Shallow()),
    "frozen blocks": Arm(Backprop(), frozen=("block_*",)),
    "FG-W": Arm(WeightForwardGradient()),
    "FG-A": Arm(ActivityForwardGradient()),
}
TORCH = "BP, PyTorch"
OPTIMIZER = Optimizer("adam", learning_rate=1e-3, b2=0.98, clip_norm=1.0)
TOLERANCE = 1e-3  # of losses, over as many steps as a round has


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
    for name in ("rounds", "steps", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}; expected at least 1")
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
    found = side_by_side.in_turns(takers(model, options), options.rounds, "BP")
    for name, numbers in found.items():
        numbers["flops"] = round(counted(model, name) / counted(model, "BP"), 4)
        print(
            f"{name:<14} {numbers['milliseconds'] / options.steps:8.1f} ms a step   of BP:"
            f" {side_by_side.shown(numbers)}   FLOPs of BP: {numbers['flops']:.3f}"
        )
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    side_by_side.append(options.output, settings=settings, transformer=found)


def takers(model: Transformer, options: Any) -> dict[str, Callable[[], float]]:
    """Every arm on the same batches, backpropagation first, and PyTorch's if it is there."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (4 * options.batch_size, model.context + 1)).astype(np.int32)
    data = Batch(tokens[:, :-1], tokens[:, 1:])
    order = rng.integers(0, len(tokens), (options.steps, options.batch_size), np.int32)
    example = data.inputs[: options.batch_size]
    ours = {
        name: side_by_side.Taker(program_of(model, ARMS[name], example), data, order)
        for name in dict.fromkeys(["BP", *options.arms])
    }
    try:
        import torch_transformer  # beside this file; imports PyTorch
    except ImportError as error:
        print(f"without PyTorch, which cannot be imported here ({error})")
        return {**ours}
    start = jax.tree.map(np.asarray, ours["BP"].state.params)
    trainer = torch_transformer.Trainer(model, start, OPTIMIZER)
    theirs = functools.partial(trainer.steps, data, order)
    check_same(ours["BP"](), theirs())
    return {**ours, TORCH: theirs}


def program_of(model: Transformer, arm: Arm, example: np.ndarray) -> loop.Program:
    """What the trainer makes of an arm."""
    model = model.clone(scan=arm.scan)
    return loop.Program(
        from_linen(model, credit_sites(model, arm.granularity), example),
        arm.rule,
        "softmax_cross_entropy",
        dataclasses.replace(OPTIMIZER, frozen=arm.frozen),
        10**6,
        sharding.make_mesh(),
    )


def check_same(ours: float, theirs: float) -> None:
    """Refuses to time two networks that are not the same."""
    if abs(theirs - ours) > TOLERANCE:
        raise InputError(
            f"PyTorch's mean loss over the first steps is {theirs:.5f}, and ours {ours:.5f};"
            f" expected the same network, with losses within {TOLERANCE}, so nothing was timed"
        )


def counted(model: Transformer, name: str) -> float:
    """Matrix-product FLOPs of an arm's gradient, a token."""
    arm = ARMS.get(name, ARMS["BP"])
    found = flops.count(
        model.clone(scan=arm.scan),
        arm.rule,
        batch=1,
        time=model.context,
        granularity=arm.granularity,
        frozen_blocks=bool(arm.frozen),
    )
    return found.per_token
