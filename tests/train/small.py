"""Runs small enough to repeat many times: 64 digits, 16 hidden units twice, four steps an epoch."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dfa_jax.data import ImageData
from dfa_jax.models import MLP, from_linen
from dfa_jax.optim import Optimizer
from dfa_jax.rules import RULES
from dfa_jax.train import TrainConfig, TrainState, loop, sharding
from dfa_jax.types import Batch

DIGITS = ImageData(num_train=64, num_test=24)
STEPS_PER_EPOCH = 4


def config(rule: str = "backprop", **changes: Any) -> TrainConfig:
    """Three epochs under a rule; every part of the state moves (moments, decay, schedule)."""
    plain = TrainConfig(
        data=DIGITS,
        model=MLP((16, 16)),
        rule=RULES[rule](),
        optimizer=Optimizer(learning_rate=5e-3, weight_decay=0.01, schedule="cosine"),
        batch_size=16,
        num_epochs=3,
        alignment_examples=0,
    )
    return dataclasses.replace(plain, **changes)


def mesh(data: int = 1, model: int = 1, *, fsdp: bool = False, layers: bool = False) -> Mesh:
    """The first `data x model` devices; or `data x layer`."""
    devices = jax.devices()[: data * model]
    return sharding.mesh_of((data, model), devices, fsdp=fsdp, layers=layers)


def program(config: TrainConfig, on: Mesh) -> loop.Program:
    """What `fit` compiles for the configuration, on a mesh of one's own."""
    example = jax.ShapeDtypeStruct((config.batch_size, 8, 8, 1), np.float32)
    model = from_linen(config.model, config.sites, example)
    num_steps = round(config.num_epochs * STEPS_PER_EPOCH)
    return loop.Program(model, config.rule, config.loss, config.optimizer, num_steps, on)


def data(on: Mesh) -> Batch:
    """The training set on every device of the mesh."""
    return jax.device_put(DIGITS.load().train, sharding.replicated(on))


def state(of: loop.Program, seed: int = 0) -> TrainState:
    """The state at step 0."""
    example = jax.tree.map(lambda a: a[:16], data(of.mesh))
    return loop.draw_state(jax.random.key(seed), None, example, program=of)


def order(num_steps: int, seed: int = 0) -> np.ndarray:
    """Rows of example indices, one a step."""
    return np.random.default_rng(seed).integers(0, 64, (num_steps, 16)).astype(np.int32)


def losses(config: TrainConfig, on: Mesh, num_steps: int, num_parts: int = 1) -> np.ndarray:
    """The training losses of the first steps, on 64 examples."""
    train = jax.tree.map(lambda a: a[:64], config.data.load().train)
    model = from_linen(config.model, config.sites, train.inputs[:16])
    made = loop.Program(model, config.rule, config.loss, config.optimizer, num_steps, on, num_parts)
    placed = jax.device_put(Batch(*train), sharding.replicated(on))
    first = jax.tree.map(lambda a: a[:16], placed)
    drawn = loop.draw_state(jax.random.key(0), None, first, program=made)
    _, noted = loop.run_steps(drawn, placed, order(num_steps), num_steps, program=made)
    return np.asarray(noted["loss"])


def plain(state: TrainState) -> TrainState:
    """The state with its key as integers, so that every leaf can be compared."""
    return state._replace(key=jax.random.key_data(state.key))


def without_time(curve: Any) -> list[dict[str, Any]]:
    """The evaluations of a curve as dicts, without the seconds that they took."""
    points = [dataclasses.asdict(evaluation) for evaluation in curve]
    for point in points:
        point["metrics"].pop("wall_seconds")
    return points
