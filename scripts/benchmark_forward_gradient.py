"""Memory and step time of forward gradients with local losses, against backpropagation.

`python scripts/benchmark.py forward_gradient [--sizes M/8/16 L/8/64] [--rounds 10] [--output FILE]`

Memory is what the compiled gradient needs beside its arguments, and nothing need run for it; time
is of one gradient, all arms in turns in each round, as a ratio to backpropagation. The replicated
losses of one block are measured by themselves too, fused against naive.
"""

import functools
import pathlib
import random
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import side_by_side

from dfa_jax.autodiff.replicate import REPLICATED
from dfa_jax.losses import softmax_cross_entropy
from dfa_jax.models import LocalMixer, from_linen
from dfa_jax.rules import ActivityForwardGradient, Backprop, LearningRule, LocalLosses
from dfa_jax.train import records
from dfa_jax.train.cli import Parser
from dfa_jax.train.process import prepare_process
from dfa_jax.types import Batch

SIZES = {"M/8/16": LocalMixer(), "L/8/64": LocalMixer(channels=2048, num_groups=64)}
IMAGES, CLASSES = (32, 32, 3), 10
BYTES_TO_RUN = 4e9  # arms that need more are compiled only


def main(arguments: list[str]) -> None:
    """Prints memory, and the ratios' median and quartiles; appends them to a file if asked."""
    parser = Parser(prog="benchmark.py forward_gradient", description="Memory and step time.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10, help="0 for memory alone")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse(arguments)
    prepare_process()
    print(f"batch {options.batch_size}, {options.rounds} rounds; {records.environment()}")
    found = {}
    for size in options.sizes:
        found[size] = {
            **measure(gradients(SIZES[size], options.batch_size), options.rounds, "BP"),
            **measure(aggregators(SIZES[size], options.batch_size), options.rounds, "fused losses"),
        }
        for name, numbers in found[size].items():
            print(f"{size:<8} {name:<16} {line(numbers)}", flush=True)
    side_by_side.append(options.output, forward_gradient=found)


def line(numbers: dict[str, float]) -> str:
    """Memory, FLOPs, and the time if there is one."""
    text = f"{numbers['megabytes']:9.1f} MB {numbers['gigaflops']:8.1f} GFLOP"
    if "ratio" not in numbers:
        return text
    return f"{text} {numbers['milliseconds']:9.1f} ms   ratio {side_by_side.shown(numbers)}"


def arms(groups: int) -> dict[str, LearningRule]:
    """The rules compared; noise is signs, which cost a random bit each."""
    estimator = ActivityForwardGradient(noise="rademacher", relu_mask=True)
    local = functools.partial(LocalLosses, estimator, patchwise=True, num_groups=groups)
    return {
        "BP": Backprop(),
        "LG-BP": LocalLosses(),
        "LG-FG-A fused": local(),
        "LG-FG-A naive": local(aggregator="naive"),
    }


def gradients(module: LocalMixer, batch_size: int) -> dict[str, tuple[Callable, Any]]:
    """A gradient function a rule, and its arguments as shapes."""
    batch = Batch(
        jax.ShapeDtypeStruct((batch_size, *IMAGES), jnp.float32),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    )
    model = from_linen(module, "block_*/*_mixing", batch.inputs, blocks="block_*")
    key = jax.random.key(0)
    found = {}
    for name, rule in arms(module.num_groups).items():
        params = jax.eval_shape(model.init, key, batch.inputs)
        params, state = jax.eval_shape(
            lambda p, b, rule=rule: rule.init(key, model, p, b), params, batch
        )

        def gradient(params, state, batch, rule=rule):
            loss_fn = softmax_cross_entropy
            return rule.estimate(jax.random.key(1), model, loss_fn, params, state, batch).grads

        found[name] = gradient, (params, state, batch)
    return found


def aggregators(module: LocalMixer, batch_size: int) -> dict[str, tuple[Callable, Any]]:
    """Tangents of one block's replicated losses, fused and naive."""
    patches, groups = module.patches_per_side**2, module.num_groups
    shape = (batch_size, patches, groups, module.channels // groups)
    features = jax.ShapeDtypeStruct(shape, jnp.float32)
    head = jax.ShapeDtypeStruct((module.channels, CLASSES), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def loss(pooled, head, labels):
        return softmax_cross_entropy(pooled.reshape(*pooled.shape[:-2], -1) @ head, labels)

    def slopes(features, tangent, head, labels, replicate):
        return jax.jvp(lambda x: replicate(loss, x, head, labels), (features,), (tangent,))[1]

    return {
        f"{name} losses": (
            functools.partial(slopes, replicate=replicate),
            (features, features, head, labels),
        )
        for name, replicate in REPLICATED.items()
    }


def measure(
    functions: dict[str, tuple[Callable, Any]], rounds: int, base: str
) -> dict[str, dict[str, float]]:
    """Temporary memory and FLOPs of every function; times of those that fit, in turns."""
    found, running = {}, {}
    for name, (function, shapes) in functions.items():
        compiled: Any = jax.jit(function).lower(*shapes).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        found[name] = {
            "megabytes": memory / 1e6,
            "gigaflops": compiled.cost_analysis()["flops"] / 1e9,
        }
        if memory < BYTES_TO_RUN and rounds:
            running[name] = compiled, filled(shapes)
    times = {name: [] for name in running}
    for turn in range(-1, rounds):  # the first round is not counted
        for name in random.Random(turn).sample(list(running), len(running)):
            compiled, values = running[name]
            start = time.perf_counter()
            jax.block_until_ready(compiled(*values))
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        ratios = np.array(seconds) / np.array(times[base])
        milliseconds = 1e3 * float(np.median(seconds))
        found[name] |= {"milliseconds": milliseconds, **side_by_side.quartiles(ratios)}
    return found


def filled(shapes: Any) -> Any:
    """Small random numbers, or labels, of these shapes."""
    generator = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return generator.integers(0, CLASSES, leaf.shape).astype(leaf.dtype)
        return (0.05 * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.device_put(jax.tree.map(fill, shapes))
