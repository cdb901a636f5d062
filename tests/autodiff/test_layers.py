"""The layer-parallel backward pass against the sequential one."""

import dataclasses

import jax
import numpy as np
import pytest

from dfa_jax import checks, losses, rules
from dfa_jax.errors import SiteError
from dfa_jax.models import Transformer, from_linen
from dfa_jax.models.transformer import credit_sites
from dfa_jax.rules import DirectFeedbackAlignment, base, functional
from tests import helpers
from tests.train import small

LAYERS, BATCH = 2, helpers.tokens(num=4, time=8, classes=8)
CASES = {
    "macro": ({}, {}, {}),
    "micro, remat, own embedding": (
        {"remat": True},
        {"granularity": "micro", "embedding": "own"},
        {},
    ),
    "every map, post-LN": ({"norm": "post"}, {"granularity": "linear"}, {}),
    "every map, pre-LN, rotary": ({"positions": "rotary"}, {"granularity": "linear"}, {}),
    "tied, last hidden": ({"tied": True}, {"last_hidden": True}, {"error_tap": "last_hidden"}),
    "half precision": ({"dtype": "bfloat16"}, {}, {}),
}


def transformer(options=None, sites=None):
    """Two scanned blocks of 8 units, and what is drawn for them."""
    module = Transformer(8, LAYERS, 8, 2, context=8, scan=True, **(options or {}))
    named = credit_sites(module, **{"granularity": "macro"} | (sites or {}))
    model = from_linen(module, named, BATCH.inputs)
    return model, jax.jit(model.init)(jax.random.key(0), BATCH.inputs)


def estimated(rule, model, params):
    """The compiled estimate, from the same state and key."""

    def estimate(params):
        params, state = rule.init(jax.random.key(1), model, params, BATCH)
        key = jax.random.key(2)
        return functional.estimate(
            rule, model, losses.softmax_cross_entropy, params, state, (), BATCH, key
        )

    return jax.jit(estimate)(params)


def everyday(cases, *names):
    """These cases every day, the others with the slow tests."""
    return [case if case in names else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("case", everyday(CASES, "macro"))
def test_at_once_is_one_by_one(case):
    """Exact equivalence to rounding, relative to each array's largest entry: the products are the
    same. In half precision to the last bits of its 8."""
    options, sites, of_rule = CASES[case]
    model, params = transformer(options, sites)
    rule = DirectFeedbackAlignment(**of_rule)
    at_once = dataclasses.replace(rule, backward="layer_parallel")
    found, expected = (estimated(one, model, params) for one in (at_once, rule))
    tolerance = 0.02 if case == "half precision" else 1e-6
    for got, wanted in zip(*map(jax.tree.leaves, (found.grads, expected.grads)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
    assert found.loss == expected.loss


SITE_RULES = [
    name
    for name, kind in rules.RULES.items()
    if issubclass(kind, base.SiteRule) and kind is not rules.Shallow
]


@pytest.mark.parametrize("name", everyday(SITE_RULES, "direct_random_target_projection"))
def test_every_rule_that_sends_errors_to_sites(x64, name):
    """Exact equivalence, on blocks that are no Transformer's."""
    model, rule = helpers.scanned(), rules.RULES[name]()
    params, state = helpers.started(rule, model)
    at_once = dataclasses.replace(rule, backward="layer_parallel")
    found, expected = (helpers.estimate(one, model, params, state) for one in (at_once, rule))
    helpers.assert_close(found.grads, expected.grads, 1e-12)


@pytest.mark.slow
def test_several_runs_under_vmap():
    """Exact equivalence: runs that are trained as one program, against each alone."""
    model, _ = transformer()
    rule = DirectFeedbackAlignment(backward="layer_parallel")
    drawn = jax.vmap(lambda key: model.init(key, BATCH.inputs))(jax.random.split(jax.random.key(0)))
    together = jax.vmap(lambda params: estimated(rule, model, params).grads)(drawn)
    for run in range(2):
        params, own = (jax.tree.map(lambda a, run=run: a[run], t) for t in (drawn, together))
        helpers.assert_close(own, estimated(rule, model, params).grads, 1e-5)


def test_nothing_is_computed_again():
    """Invariant: the counted products of both are the same; a forward pass anew would show."""
    model, params = transformer()
    counted = {
        backward: checks.matmul_flops(
            jax.make_jaxpr(
                lambda p, backward=backward: estimated(
                    DirectFeedbackAlignment(backward=backward), model, p
                )
            )(params)
        )
        for backward in ("sequential", "layer_parallel")
    }
    assert counted["layer_parallel"] == counted["sequential"] > 0


@pytest.mark.parametrize(("embedding", "expected"), [("own", {}), ("block_1", {"all-reduce": 1})])
def test_collectives_over_a_layer_axis(embedding, expected):
    """Oracle: what has to be sent. Two devices with a block each: a block's gradient needs its own
    residuals and error, so nothing passes between layers. An embedding that learns through the
    first block is on every device, and gets the error that this block hands down: one sum."""
    model, params = transformer(sites={"embedding": embedding})
    rule = DirectFeedbackAlignment(backward="layer_parallel")
    cost = checks.estimate_cost(
        model, rule, small.mesh(1, LAYERS, layers=True), params=params, batch=BATCH
    )
    assert cost.collectives == expected


REFUSED = {
    "written out": (Transformer(8, 2, 8, 2, context=8), ("block_*",)),
    "no site behind the blocks": (
        Transformer(8, 2, 8, 2, context=8, scan=True),
        ("blocks/attention",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_stack_of_cut_blocks(case):
    """Oracle: the contract. Blocks that are written out, or pass errors on, are refused by name."""
    module, sites = REFUSED[case]
    model = from_linen(module, sites, BATCH.inputs)
    params = jax.jit(model.init)(jax.random.key(0), BATCH.inputs)
    rule = DirectFeedbackAlignment(backward="layer_parallel")
    with pytest.raises(SiteError, match="needs a stack of blocks in a loop.*scan=True.*finds none"):
        estimated(rule, model, params)
