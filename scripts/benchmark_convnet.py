"""What the trainer's loops add to a convolutional network's work, against a jitted step alone.

`python scripts/benchmark.py convnet [--rules NAME ...] [--rounds 10] [--output FILE]`

Every work of the trainer that runs in a loop, beside the same work by calls of jitted functions of
one's own, in turns: steps of each rule, a step of a batch in two parts, steps of two runs at once,
the evaluation. Ratios are taken within the round, and above 1 where the loop costs time. Where
PyTorch is installed, its eager step joins in: the same network (`torch_convnet.py`) from the same
weights on the same batches, as its losses have to show before it is timed.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import benchmark_transformer
import jax
import jax.numpy as jnp
import numpy as np
import side_by_side

from dfa_jax.models import ConvNet, from_linen
from dfa_jax.optim import Optimizer
from dfa_jax.rules import RULES
from dfa_jax.train import compiled, loop, records, sharding, train_step
from dfa_jax.train.cli import Parser
from dfa_jax.train.process import prepare_process
from dfa_jax.types import Batch

OPTIMIZER = Optimizer("adam", learning_rate=1e-3)
OWN, TORCH = "own jitted step", "PyTorch"
Work = Callable[[], Any]


def main(arguments: list[str]) -> None:
    """Prints the ratios' median and quartiles; appends them to a file if asked."""
    parser = Parser(prog="benchmark.py convnet", description="The trainer's loops on a CPU.")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--side", type=int, default=32, help="of the square images, in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    default = ["backprop", "direct_feedback_alignment"]
    parser.add_argument("--rules", nargs="+", choices=RULES, default=default)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="steps of a work and round")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse(arguments)
    prepare_process()
    data, order, model = drawn(options)
    print(
        f"ConvNet of {options.channels} channels, side {options.side}, batch {options.batch_size},"
        f" Adam; {options.rounds} rounds of {options.steps} steps; {records.environment()}"
    )
    found = {}
    for name, (ours, others) in works(options, model, data, order).items():
        ratios = side_by_side.in_turns({"ours": ours, **others}, options.rounds, OWN)
        found[name] = ratios
        print(
            f"{name:<34} {ratios['ours']['milliseconds'] / options.steps:8.2f} ms a step"
            f"   of one's own: {side_by_side.shown(ratios['ours'])}"
        )
        if TORCH in ratios:
            print(f"{'':<34} {ratios[TORCH]['milliseconds'] / options.steps:8.2f} ms in PyTorch"
                  f"   of one's own: {side_by_side.shown(ratios[TORCH])}")  # fmt: skip
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    side_by_side.append(options.output, settings=settings, convnet=found)


def drawn(options: Any) -> tuple[Batch, np.ndarray, Any]:
    """Images of noise, which of them make each step, and the network."""
    generator = np.random.default_rng(0)
    number = 4 * options.batch_size
    shape = (number, options.side, options.side, 3)
    data = Batch(
        generator.standard_normal(shape).astype(np.float32),
        generator.integers(0, 10, number).astype(np.int32),
    )
    order = generator.integers(0, number, (options.steps, options.batch_size), np.int32)
    module = ConvNet(tuple(options.channels))
    return data, order, from_linen(module, "layer_*", data.inputs[: options.batch_size])


def works(
    options: Any, model: Any, data: Batch, order: np.ndarray
) -> dict[str, tuple[Work, dict[str, Work]]]:
    """The trainer's work, and the others that it is measured against, by name."""
    programs = {
        name: loop.Program(
            model, RULES[name](), "softmax_cross_entropy", OPTIMIZER, 10**6, sharding.make_mesh()
        )
        for name in options.rules
    }
    first = programs[options.rules[0]]
    takers = {name: side_by_side.Taker(one, data, order) for name, one in programs.items()}
    found: dict[str, tuple[Work, dict[str, Work]]] = {
        f"a step, {name}": (one, {OWN: own_steps(one)}) for name, one in takers.items()
    }
    if options.rules[0] == "backprop":
        found["a step, backprop"][1].update(torch_steps(model.module, takers["backprop"], data))
    parted = side_by_side.Taker(dataclasses.replace(first, num_parts=2), data, order)
    found["a batch in two parts"] = (parted, {OWN: own_steps(takers[options.rules[0]])})
    found["two runs at once"] = (together(first, data, order), {OWN: own_together(first, takers)})
    params = takers[options.rules[0]].state.params
    own = {OWN: own_evaluation(first, params, data)}
    found["evaluation of all images"] = (evaluation(first, params, data), own)
    return found


def own_steps(taker: side_by_side.Taker) -> Work:
    """The same steps, one call of a jitted `train_step` each."""
    step = jax.jit(functools.partial(train_step, **taker.program.parts), donate_argnums=0)
    batches = [jax.tree.map(lambda a, r=rows: a[r], taker.data) for rows in taker.order]
    return by_calls(step, jax.tree.map(jnp.copy, taker.state), batches)


def by_calls(step: Callable[..., Any], state: Any, batches: Sequence[Batch]) -> Work:
    """A call for each batch."""

    def take() -> None:
        nonlocal state
        for batch in batches:
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return take


def together(program: loop.Program, data: Batch, order: np.ndarray) -> Work:
    """Steps of two runs under one `vmap`, as `fit_together` takes them."""
    placed, both = jax.device_put(data), np.stack([order, order], 1)
    states = _two_states(program, placed, order)
    factors = np.ones(2, np.float32)

    def take() -> None:
        nonlocal states
        states, _ = compiled.run_steps_together(
            states, placed, both, len(both), factors, program=program
        )
        jax.block_until_ready(states)

    return take


def own_together(program: loop.Program, takers: dict[str, side_by_side.Taker]) -> Work:
    """A jitted `vmap` of `train_step` over two states."""
    taker = next(iter(takers.values()))
    step = jax.jit(jax.vmap(functools.partial(train_step, **program.parts), (0, 0)))
    two = _two_states(program, taker.data, taker.order)
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *two)
    rows = [np.stack([one, one]) for one in taker.order]
    return by_calls(step, state, [jax.tree.map(lambda a, r=row: a[r], taker.data) for row in rows])


def _two_states(program: loop.Program, data: Batch, order: np.ndarray) -> tuple[Any, ...]:
    example = jax.tree.map(lambda a: a[: order.shape[1]], data)
    return tuple(
        loop.draw_state(jax.random.key(seed), None, example, program=program) for seed in range(2)
    )


def evaluation(program: loop.Program, params: Any, data: Batch) -> Work:
    """The trainer's."""
    placed, params = jax.device_put(data), jax.tree.map(jnp.copy, params)
    return lambda: float(loop.evaluate(params, placed, program=program)["loss"])


def own_evaluation(program: loop.Program, params: Any, data: Batch) -> Work:
    """One jitted call for all images."""
    placed, params = jax.device_put(data), jax.tree.map(jnp.copy, params)

    @jax.jit
    def loss(params: Any, data: Batch) -> jax.Array:
        return program.loss_fn(program.model.apply(params, data.inputs), data.targets).mean()

    return lambda: float(loss(params, placed))


def torch_steps(module: ConvNet, taker: side_by_side.Taker, data: Batch) -> dict[str, Work]:
    """PyTorch's steps, if it is there."""
    try:
        import torch_convnet  # beside this file; imports PyTorch
    except ImportError as error:
        print(f"without PyTorch, which cannot be imported here ({error})")
        return {}
    start = jax.tree.map(np.asarray, taker.state.params)
    trainer = torch_convnet.Trainer(module, start, OPTIMIZER.learning_rate)
    theirs = functools.partial(trainer.steps, data, taker.order)
    benchmark_transformer.check_same(taker(), theirs())
    return {TORCH: theirs}
