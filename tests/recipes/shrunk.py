"""All recipes, loaded once, and what their tests share."""

import jax
import jax.numpy as jnp

from dfa_jax.report import catalogue
from dfa_jax.train import loop
from dfa_jax.train.program import make_program
from dfa_jax.types import Batch

LOADED = {name: catalogue.load(name) for name in catalogue.names()}


def of_kind(kind):
    """The names of those that are recipes, or studies."""
    return [name for name, found in LOADED.items() if isinstance(found, kind)]


def trace(config):
    """Two steps of the run in the abstract."""
    dataset = config.data.load()
    program = make_program(config, dataset, num_steps=2)
    arrays = (dataset.train.inputs, dataset.train.targets)  # of a stream, only shapes already
    data = Batch(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays))
    key = jax.eval_shape(lambda: jax.random.key(0))
    order = jax.ShapeDtypeStruct((2, config.batch_size), jnp.int32)
    state = jax.eval_shape(lambda k, b: loop.draw_state(k, None, b, program=program), key, data)
    jax.eval_shape(lambda s, b, o: loop.run_steps(s, b, o, 2, program=program), state, data, order)
