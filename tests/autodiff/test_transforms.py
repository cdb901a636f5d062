"""Sites inside lifted transforms and under JAX's own, against the plain unrolled model."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import rules
from dfa_jax.models import from_linen
from dfa_jax.rules import (
    RULES,
    ActivityForwardGradient,
    BatchwiseRandomSign,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    WeightForwardGradient,
    functional,
)
from dfa_jax.types import Batch
from tests import helpers

DRAWING = (BatchwiseRandomSign, ActivityForwardGradient, WeightForwardGradient)
REPEATABLE = [name for name, kind in RULES.items() if kind not in DRAWING]
"""Rules whose whole randomness is in parameters and state; the others draw by a layer's name."""

UNROLLED_SITES = ["embed", "layer_*"]


def unrolled(form="unrolled", sites=UNROLLED_SITES):
    return helpers.made(helpers.Stack(form), sites, helpers.images())


@pytest.mark.parametrize(
    "name", helpers.every_day(name for name in REPEATABLE if name != "gradient_guess")
)
def test_scan_over_layers_equals_the_unrolled_model(x64, name):
    """Exact equivalence: same parameters and feedback, scanned or written out, gradient for gradient.
    (To a gradient guess a stack is one block, and written out it is several.)

    A plain trace-time hook finds nothing in a scan: one peer's library gives zeros there.
    """
    scanned, plain, rule = helpers.scanned(), unrolled(), RULES[name]()
    params, state = helpers.started(rule, scanned)
    found = helpers.estimate(rule, scanned, params, state)
    flat = helpers.unstacked(params), helpers.unstacked(state) if state else state
    expected = helpers.estimate(rule, plain, *flat)
    helpers.assert_close(helpers.unstacked(found.grads), expected.grads, 1e-11)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=1e-12)


@pytest.mark.parametrize("form", ["jit", "remat", "scan_remat"])
@pytest.mark.parametrize(
    "rule", [DirectFeedbackAlignment(), FeedbackAlignment()], ids=["dfa", "fa"]
)
def test_lifted_layers_equal_the_unrolled_model(x64, form, rule):
    """Exact equivalence: `nn.jit`, `nn.remat`, and a scan of remat change no gradient."""
    sites = ["embed", "layers"] if "scan" in form else UNROLLED_SITES
    lifted, plain = unrolled(form, sites), unrolled()
    params, state = helpers.started(rule, lifted)
    found = helpers.estimate(rule, lifted, params, state).grads
    if "scan" in form:
        params, state, found = map(helpers.unstacked, (params, state, found))
    helpers.assert_close(found, helpers.estimate(rule, plain, params, state).grads, 1e-11)


def test_remat_scan_equals_the_unrolled_model(x64):
    """Exact equivalence: `nn.remat_scan` stacks layers twice, `[2, 2, ...]`; so are its sites."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, h):
            return jnp.tanh(nn.Dense(h.shape[-1], name="dense")(h))

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.remat_scan(Plain, lengths=(2, 2))(name="layers")(x)
            return nn.Dense(3, name="readout")(h)

    class Written(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(4):
                x = Plain(name=f"layer_{i}")(x)
            return nn.Dense(3, name="readout")(x)

    rule = DirectFeedbackAlignment()
    twice = helpers.made(Twice(), "layers", helpers.images())
    assert twice.model.places[0].stack == (2, 2)
    plain = helpers.made(Written(), "layer_*", helpers.images())
    params, state = helpers.started(rule, twice)

    def flat(tree):
        merged = jax.tree.map(lambda leaf: np.reshape(leaf, (4, *leaf.shape[2:])), tree["layers"])
        return helpers.unstacked(tree | {"layers": merged}, 4)

    found = helpers.estimate(rule, twice, params, state).grads
    expected = helpers.estimate(rule, plain, flat(params), flat(state)).grads
    helpers.assert_close(flat(found), expected, 1e-11)


def fresh_jitted():
    """A jitted layer class whose cache of traces is empty, and a model of three such layers."""
    Layer = nn.jit(type("Layer", (helpers.Layer,), {}))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(6, name="embed")(x)
            for i in range(3):
                h, _ = Layer(name=f"layer_{i}")(h)
            return nn.Dense(3, name="readout")(h)

    return Net()


def test_traces_cached_under_backprop_are_not_taken_for_cut_ones():
    """Exact equivalence: plain BP first, so that `nn.jit` holds a trace of each layer without sites.

    Two sketches of this library returned BP's gradients here without a word.
    """
    module, batch, plain = fresh_jitted(), helpers.images(), unrolled()
    params, variables = plain.params, {"params": plain.params}
    module.init(jax.random.key(0), batch.inputs)  # before from_linen looks at the submodules
    jax.grad(lambda v: helpers.LOSS(module.apply(v, batch.inputs), batch.targets).mean())(variables)
    raw = jax.jit(module.apply)
    raw(variables, batch.inputs)
    model = from_linen(module, UNROLLED_SITES, batch.inputs)
    assert (model.sites, model.maps) == (plain.model.sites, plain.model.maps)

    @functools.partial(jax.jit, static_argnums=0)
    def both(rule, state):  # the raw jit's cached trace beside the rule's, under one more jit
        outputs = raw(variables, batch.inputs)
        found = functional.estimate(
            rule, model, helpers.LOSS, params, state, (), batch, jax.random.key(3)
        )
        return outputs, found

    for rule in (DirectFeedbackAlignment(), FeedbackAlignment()):
        _, state = helpers.started(rule, plain)
        expected = helpers.estimate(rule, plain, params, state).grads
        eager = functional.estimate(
            rule, model, helpers.LOSS, params, state, (), batch, jax.random.key(3)
        ).grads
        helpers.assert_close(eager, expected, 1e-5)
        outputs, found = both(rule, state)
        helpers.assert_close(found.grads, expected, 1e-5)
        helpers.assert_close(outputs, found.outputs, 1e-5)


def test_traces_cached_under_another_site_set_are_not_reused():
    """Exact equivalence: one module, three sets of sites in turn, each equal to the unrolled model."""
    module, batch, rule = fresh_jitted(), helpers.images(), DirectFeedbackAlignment()
    _, every = helpers.started(rule, unrolled())
    for sites in (["layer_1"], ["embed", "layer_*"], ["layer_0/dense", "layer_2"], ["layer_1"]):
        plain = unrolled(sites=sites)
        state = {site: every[site.split("/")[0]] for site in plain.model.sites}
        case = plain._replace(model=from_linen(module, sites, batch.inputs))
        assert case.model.sites == plain.model.sites
        expected = helpers.estimate(rule, plain, plain.params, state).grads
        found = functional.estimate(
            rule, case.model, helpers.LOSS, case.params, state, (), batch, jax.random.key(3)
        )
        helpers.assert_close(found.grads, expected, 1e-5)
        helpers.assert_close(helpers.estimate(rule, case, case.params, state).grads, expected, 1e-5)


class Ensemble(nn.Module):
    """The mean of three members, by `nn.vmap` or written out."""

    lifted: bool

    @nn.compact
    def __call__(self, x):
        if self.lifted:
            members = nn.vmap(
                helpers.Layer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=3,
            )
            h, _ = members(name="layers")(x)
        else:
            h = jnp.stack([helpers.Layer(name=f"layer_{i}")(x)[0] for i in range(3)])
        return nn.Dense(3, name="readout")(h.mean(0))


@pytest.mark.parametrize(
    "rule", [DirectFeedbackAlignment(), FeedbackAlignment()], ids=["dfa", "fa"]
)
def test_vmapped_members_equal_separate_ones(x64, rule):
    """Exact equivalence: an ensemble under `nn.vmap` has a site, and a matrix, for each member."""
    lifted = helpers.made(Ensemble(True), "layers", helpers.images())
    plain = helpers.made(Ensemble(False), "layer_*", helpers.images())
    params, state = helpers.started(rule, lifted)
    found = helpers.estimate(rule, lifted, params, state).grads
    flat = helpers.unstacked(params), helpers.unstacked(state)
    expected = helpers.estimate(rule, plain, *flat).grads
    helpers.assert_close(helpers.unstacked(found), expected, 1e-11)


@pytest.mark.parametrize(
    "rule", [DirectFeedbackAlignment(), FeedbackAlignment()], ids=["dfa", "fa"]
)
def test_vmap_over_seeds_equals_a_loop(x64, rule):
    """Exact equivalence: five seeds at once under `jax.vmap` are the five runs of a loop."""
    case = helpers.scanned()
    params, state = helpers.started(rule, case)
    seeds = [
        jax.tree.map(lambda leaf, i=i: (1 + i) * np.asarray(leaf), (params, state))
        for i in range(3)
    ]

    def run(params, state):
        key = jax.random.key(0)
        return functional.estimate(
            rule, case.model, helpers.LOSS, params, state, (), case.batch, key
        ).grads

    at_once = jax.jit(jax.vmap(run))(*jax.tree.map(lambda *leaves: np.stack(leaves), *seeds))
    one = jax.jit(run)
    for i, seed in enumerate(seeds):
        member = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], at_once)
        helpers.assert_close(member, one(*seed), 1e-11)


@pytest.mark.parametrize("name", helpers.every_day(REPEATABLE))
def test_tokens_are_examples(x64, name):
    """Exact equivalence: `[B, T, D]` gives the gradients of the same rows as `[B * T, D]`, if it is
    said that positions do not mix (to a gradient guess it matters)."""
    rule, flat = RULES[name](), helpers.scanned()
    x, labels = flat.batch
    batch = Batch(*map(jnp.asarray, (np.reshape(x, (4, 4, -1)), np.reshape(labels, (4, 4)))))
    tokens = flat._replace(
        model=from_linen(
            flat.model.module, list(flat.model.sites), batch.inputs, independent_axes=2
        ),
        batch=batch,
    )
    params, state = helpers.started(rule, tokens)
    found = helpers.estimate(rule, tokens, params, state)
    assert found.outputs.shape == (4, 4, 3)
    helpers.assert_close(found.grads, helpers.estimate(rule, flat, params, state).grads, 1e-11)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if "direct" in name else pytest.mark.slow) for name in REPEATABLE],
)
def test_half_precision_parameters_with_full_precision_feedback(name):
    """Independent run: bf16 parameters and inputs with f32 feedback, against the same numbers in f32.

    Gradients come in bf16, and differ by a few of its roundings (2^-8), not by a wrong term.
    """
    case, rule = helpers.mlp(), RULES[name]()

    def rounded(tree, dtype):
        return jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16).astype(dtype), tree)

    params, state = helpers.started(rule, case)
    found = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        batch = Batch(rounded(case.batch.inputs, dtype), case.batch.targets)
        run = helpers.estimator(rule, case._replace(batch=batch))
        found[dtype] = run(rounded(params, dtype), state).grads
    assert {leaf.dtype for leaf in jax.tree.leaves(found[jnp.bfloat16])} == {jnp.dtype("bfloat16")}
    helpers.assert_close(found[jnp.bfloat16], found[jnp.float32], 0.06)


class Recurrent(nn.Module):
    """One cell over time, `[B, T, D]`, by `nn.scan` with shared parameters or as a Python loop."""

    lifted: bool

    @nn.compact
    def __call__(self, x):
        h = jnp.zeros((x.shape[0], 5))
        if self.lifted:
            cells = nn.scan(
                Cell,
                variable_broadcast="params",
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
            )
            h, _ = cells(name="cell")(h, x)
        else:
            cell = Cell(name="cell")
            for t in range(x.shape[1]):
                h, _ = cell(h, x[:, t])
        return nn.Dense(3, name="readout")(h)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, h, x):
        h = jnp.tanh(nn.Dense(5, name="within")(h) + nn.Dense(5, name="enter")(x))
        return h, None


@pytest.mark.parametrize(
    "rule", [FeedbackAlignment(), rules.KolenPollack()], ids=lambda rule: type(rule).__name__
)
def test_chain_rules_through_time_equal_the_unrolled_loop(x64, rule):
    """Exact equivalence: FA and KP with one matrix for all time steps, scanned or written out."""
    batch = helpers.images(shape=(4, 2))
    scanned = helpers.made(Recurrent(True), "readout:input", batch)
    plain = helpers.made(Recurrent(False), "readout:input", batch)
    params, state = helpers.started(rule, scanned)
    found = helpers.estimate(rule, scanned, params, state).grads
    helpers.assert_close(found, helpers.estimate(rule, plain, params, state).grads, 1e-11)
    true = helpers.backprop(scanned)["cell"]["within"]["kernel"]
    assert np.abs(found["cell"]["within"]["kernel"] - true).max() > 1e-3
