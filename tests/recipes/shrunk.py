"""All recipes, loaded once, and what the tests that run them shrunk share."""

import dataclasses
import functools
import html

import jax
import jax.numpy as jnp

from dfa_jax.report import catalogue, publish, study_page
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.shrink import shrink
from dfa_jax.report.study import Study
from dfa_jax.train import loop
from dfa_jax.train.program import make_program
from dfa_jax.types import Batch
from tests import helpers

LOADED = {name: catalogue.load(name) for name in catalogue.names()}
LONG = {  # more than ten seconds of a core, shrunk
    "align_then_memorise/convolution",
    "align_then_memorise/correlated_targets",
    "align_then_memorise/deep_networks",
    "align_then_memorise/degeneracy_breaking",
    "align_then_memorise/relu_success",
    "align_then_memorise/theory_vs_simulation",
    "direct_feedback_alignment/depth",
    "forward_gradient/alignment",
    "forward_gradient/cifar10",
    "forward_gradient/contrastive",
    "forward_gradient/gradient_guess",
    "forward_gradient/groups",
    "forward_gradient/imagenet",
    "forward_gradient/imagenet_contrastive",
    "forward_gradient/loss_places",
    "forward_gradient/memory",
    "forward_gradient/mnist",
    "forward_gradient/stop_gradient",
    "scaling_laws/depth",
    "scaling_laws/exponents",
    "scaling_laws/frontier",
    "scaling_laws/isoflop",
    "scaling_laws/layer_norm",
    "scaling_laws/pod/frontier_c4",
    "scaling_laws/sites",
    "scaling_laws/wikitext",
}
"""Run whole at night alone; in CI the first run, or case, of each."""


def of_kind(kind):
    """The names of those that are recipes, or studies."""
    return [name for name, found in LOADED.items() if isinstance(found, kind)]


def whole(names):
    """These, as parameters of tests that run all of a recipe."""
    return helpers.at_night(names, *(name for name in names if name not in LONG))


def check_start(name, folder):
    """Makes the first run, or case, of a shrunk recipe, and a page that says what is missing."""
    loaded = LOADED[name]
    small = shrink(loaded) if isinstance(loaded, Recipe) else loaded.shrink()
    runs = small.runs if isinstance(small, RunStudy) else small
    first = next(iter(runs.cases if isinstance(runs, Study) else runs.variants))
    publish.run(small.only(first), folder)
    assert len(publish.held_runs(small, folder)) == 1
    if not isinstance(small, Study):  # whose figure may need all cases
        publish.publish(small, folder)
        assert (folder / name / "figure.png").stat().st_size > 5_000


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
