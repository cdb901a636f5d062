"""All recipes, loaded once, and what the tests that run them shrunk share."""

import dataclasses
import functools
import html

import jax
import jax.numpy as jnp

from dfa_jax.report import catalogue, publish, study_page
from dfa_jax.train import loop
from dfa_jax.train.program import make_program
from dfa_jax.types import Batch

LOADED = {name: catalogue.load(name) for name in catalogue.names()}


def of_kind(kind):
    """The names of those that are recipes, or studies."""
    return [name for name, found in LOADED.items() if isinstance(found, kind)]


def check_page(name, folder):
    """Runs a shrunk study and publishes it, twice, the second time from what the folder holds.

    Every case, or run, is on record, every finding in the table and on the page.
    """
    small = LOADED[name].shrink()
    publish.run(small, folder)
    held = publish.held_runs(small, folder)
    assert [small.label(record) for record in held] == small.needed
    printed = publish.publish(small, folder)
    found = study_page.findings(small, held)
    assert found
    page = (folder / name / "index.html").read_text()
    for one in found:
        assert one.claim in printed
        assert html.escape(one.claim) in page
    assert (folder / name / "figure.png").stat().st_size > 5_000
    publish.run(small, folder)  # nothing is left to do
    assert publish.held_runs(small, folder) == held


def plain(config):
    """The run at one rate, without a warm-up, from one seed: what is the same once compiled."""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0, warmup_fraction=0.0)
    return dataclasses.replace(config, optimizer=optimizer, seed=0)


@functools.cache
def trace(config):
    """Two steps of the run in the abstract, once a configuration."""
    dataset = config.data.load()
    program = make_program(config, dataset, num_steps=2)
    arrays = (dataset.train.inputs, dataset.train.targets)  # of a stream, only shapes already
    data = Batch(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays))
    key = jax.eval_shape(lambda: jax.random.key(0))
    order = jax.ShapeDtypeStruct((2, config.batch_size), jnp.int32)
    state = jax.eval_shape(lambda k, b: loop.draw_state(k, None, b, program=program), key, data)
    jax.eval_shape(lambda s, b, o: loop.run_steps(s, b, o, 2, program=program), state, data, order)
