"""Step time of every rule against backpropagation, side by side in one process.

`python scripts/benchmark.py [--widths 512 512 ...] [--rules NAME ...] [--rounds 20]`;
`python scripts/benchmark.py theory` is about the shallow theory, see `benchmark_theory.py`, and
`python scripts/benchmark.py forward_gradient` about local losses, `benchmark_forward_gradient.py`;
`python scripts/benchmark.py fits` about scaling laws, `benchmark_fits.py`, and
`python scripts/benchmark.py transformer` about decoders, `benchmark_transformer.py`;
`python scripts/benchmark.py convnet` about the trainer's loops, `benchmark_convnet.py`.

In each round every rule takes the same number of steps, in a random order; the ratio to
backpropagation is taken within the round, so a machine that slows down slows down both.
"""

import pathlib
import sys

import benchmark_convnet  # beside this file
import benchmark_fits
import benchmark_forward_gradient
import benchmark_theory
import benchmark_transformer
import numpy as np
import side_by_side

from dfa_jax.models import MLP, from_linen
from dfa_jax.optim import Optimizer
from dfa_jax.rules import RULES
from dfa_jax.train import loop, records, sharding
from dfa_jax.train.cli import Parser, exit_on_bad_input
from dfa_jax.train.process import prepare_process
from dfa_jax.types import Batch


def main(arguments: list[str]) -> None:
    """Prints the ratios' median and quartiles; appends them to a file if asked."""
    others = {
        "theory": benchmark_theory,
        "forward_gradient": benchmark_forward_gradient,
        "fits": benchmark_fits,
        "transformer": benchmark_transformer,
        "convnet": benchmark_convnet,
    }
    if arguments and arguments[0] in others:
        others[arguments[0]].main(arguments[1:])
        return
    parser = Parser(prog="benchmark.py", description="Step time of rules against backpropagation.")
    parser.add_argument("--widths", type=int, nargs="+", default=[512] * 20)
    parser.add_argument("--inputs", type=int, default=784, help="features of an example")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="steps a rule and round")
    parser.add_argument("--optimizer", choices=["sgd", "adam", "rmsprop"], default="sgd")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse(arguments)
    prepare_process()
    ratios = side_by_side.in_turns(takers(options), options.rounds, "backprop")
    print(
        f"{len(options.widths)} hidden layers, batch {options.batch_size}, {options.optimizer};"
        f" {options.rounds} rounds of {options.steps} steps; {records.environment()}"
    )
    for name, found in ratios.items():
        print(
            f"{name:<34} {found['milliseconds'] / options.steps:8.2f} ms a step   of backprop:"
            f" {side_by_side.shown(found)}"
        )
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    side_by_side.append(options.output, settings=settings, rules=ratios)


def takers(options) -> dict[str, side_by_side.Taker]:
    """Every rule on the same network and batches, backpropagation first."""
    generator = np.random.default_rng(0)
    data = Batch(
        generator.standard_normal((4 * options.batch_size, options.inputs)).astype(np.float32),
        generator.integers(0, 10, 4 * options.batch_size).astype(np.int32),
    )
    order = generator.integers(0, len(data.targets), (options.steps, options.batch_size), np.int32)
    model = from_linen(MLP(tuple(options.widths)), "layer_*", data.inputs[: options.batch_size])
    optimizer, mesh = Optimizer(options.optimizer, learning_rate=1e-4), sharding.make_mesh()
    made = {}
    for name in dict.fromkeys(["backprop", *options.rules]):
        program = loop.Program(
            model, RULES[name](), "softmax_cross_entropy", optimizer, 10**6, mesh
        )
        made[name] = side_by_side.Taker(program, data, order)
    return made


if __name__ == "__main__":
    with exit_on_bad_input("benchmark.py"):
        main(sys.argv[1:])
