"""Memory and step time of forward gradients with local losses, against backpropagation.

`python scripts/benchmark.py forward_gradient [--sizes M/8/16 L/8/64] [--rounds 10] [--output FILE]`

The cases of the recipe `forward_gradient/memory`, with rounds and batch of one's own: memory is
what the compiled gradient needs beside its arguments, and nothing need run for it; time is of one
gradient, all arms in turns in each round, as a ratio to backpropagation. The replicated losses of
one block are measured by themselves too, fused against naive.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import side_by_side

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue
from dfa_jax.train import records
from dfa_jax.train.cli import Parser
from dfa_jax.train.process import prepare_process


def main(arguments: list[str]) -> None:
    """Prints memory, and the ratios' median and quartiles; appends them to a file if asked."""
    recipe = catalogue.run_file("forward_gradient/memory")
    sizes = recipe["SIZES"]
    parser = Parser(prog="benchmark.py forward_gradient", description="Memory and step time.")
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=list(sizes))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10, help="0 for memory alone")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse(arguments)
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size}; expected at least 1")
    prepare_process()
    print(f"batch {options.batch_size}, {options.rounds} rounds; {records.environment()}")
    found = {}
    for size in options.sizes:
        block = f"losses of one block, {size}"
        arms = summarised(recipe["GRADIENTS"][size], recipe["ARMS"], options)
        losses = summarised(recipe["BLOCKS"][block], recipe["LOSSES"], options)
        found[size] = arms | {f"{name} losses": numbers for name, numbers in losses.items()}
        for name, numbers in found[size].items():
            print(f"{size:<8} {name:<16} {line(numbers)}", flush=True)
    side_by_side.append(options.output, forward_gradient=found)


def summarised(case: Any, names: tuple[str, ...], options: Any) -> dict[str, dict[str, float]]:
    """A case's numbers by name; ratios are to the first."""
    case = dataclasses.replace(case, rounds=options.rounds, batch_size=options.batch_size)
    measured = case.run()
    megabytes, gigaflops = (measured[name].ravel() for name in ("megabytes", "gigaflops"))
    seconds = measured["seconds"].reshape(len(names), -1)
    found = {}
    for place, name in enumerate(names):
        found[name] = {
            "megabytes": float(megabytes[place]),
            "gigaflops": float(gigaflops[place]),
        }
        if options.rounds and np.isfinite(seconds[place]).all():
            milliseconds = 1e3 * float(np.median(seconds[place]))
            ratios = side_by_side.quartiles(seconds[place] / seconds[0])
            found[name] |= {"milliseconds": milliseconds, **ratios}
    return found


def line(numbers: dict[str, float]) -> str:
    """Memory, FLOPs, and the time if there is one."""
    text = f"{numbers['megabytes']:9.1f} MB {numbers['gigaflops']:8.1f} GFLOP"
    if "ratio" not in numbers:
        return text
    return f"{text} {numbers['milliseconds']:9.1f} ms   ratio {side_by_side.shown(numbers)}"
