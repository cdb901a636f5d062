"""FLOP counts from the structure, against the products in the compiled program."""

import math

import jax
import jax.numpy as jnp
import pytest

from dfa_jax import losses
from dfa_jax.errors import InputError
from dfa_jax.models import Transformer, credit_sites, from_linen
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    LocalLosses,
    Shallow,
    WeightForwardGradient,
    functional,
)
from dfa_jax.scaling import flops
from dfa_jax.types import Batch
from tests import helpers, hlo

SMALL = Transformer(num_outputs=24, num_layers=2, width=8, num_heads=2, context=12)
LARGER = Transformer(num_outputs=60, num_layers=3, width=24, num_heads=3, mlp_factor=2, context=40)

PER_SITE = DirectFeedbackAlignment()
SHARED = DirectFeedbackAlignment(feedback_sharing="shared")
TAPPED = DirectFeedbackAlignment(error_tap="last_hidden")
TAPPED_SHARED = DirectFeedbackAlignment(error_tap="last_hidden", feedback_sharing="shared")

ARMS = {
    "backprop": Backprop(),
    "shallow": Shallow(),
    "per_site": PER_SITE,
    "shared": SHARED,
    "tapped": TAPPED,
    "tapped_shared": TAPPED_SHARED,
    "frozen": Backprop(),
    "feedback_alignment": FeedbackAlignment(),
    "weights": WeightForwardGradient(),
    "activities": ActivityForwardGradient(),
}
SITED = ("shallow", "per_site", "shared", "tapped", "tapped_shared", "activities")


def compiled(module, arm, granularity, embedding, batch, time):
    """FLOPs of the products in the compiled estimate of all gradients that the arm trains with."""
    tokens = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    data = Batch(tokens, tokens)
    rule = ARMS[arm]
    sites = credit_sites(module, granularity, embedding=embedding)
    model = from_linen(module, sites, tokens)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(
        lambda key, data: rule.init(key, model, model.init(key, data.inputs), data), key, data
    )

    def gradients(key, params, state, data):
        found = functional.estimate(
            rule, model, losses.softmax_cross_entropy, params, state, (), data, key
        )
        return found.loss, {name: g for name, g in found.grads.items() if is_trained(arm, name)}

    return hlo.dot_flops(gradients, key, params, state, data)


def is_trained(arm, name):
    """Frozen blocks throw their gradients away."""
    return arm != "frozen" or not name.startswith("block")


def cases():
    """Every arm, granularity and size; one of each kind in the everyday tests, every arm in CI."""
    everyday = {
        ("backprop", "macro", "pre"),
        ("shallow", "macro", "pre"),
        ("per_site", "linear", "pre"),
        ("tapped_shared", "micro", "post"),
    }
    for module, batch, time in ((SMALL, 3, 12), (LARGER, 2, 40), (SMALL, 2, 7)):
        for arm in ARMS:
            for granularity in ("macro", "micro", "linear") if arm in SITED else ("macro",):
                for form in ("pre", "post") if module is SMALL else ("pre",):
                    marks = []
                    if time != 12 or (arm, granularity, form) not in everyday:
                        marks = [pytest.mark.slow]
                        if (granularity, form, time) not in (
                            ("macro", "pre", 12),
                            ("micro", "pre", 40),
                        ):
                            marks += [pytest.mark.nightly]
                    yield pytest.param(
                        module.clone(norm=form),
                        arm,
                        granularity,
                        batch,
                        time,
                        marks=marks,
                        id=f"{arm}-{granularity}-{form}-{time}",
                    )


@pytest.mark.parametrize(("module", "arm", "granularity", "batch", "time"), list(cases()))
def test_counts_are_the_compilers(module, arm, granularity, batch, time):
    """Independent implementation: the products that XLA's optimised program has left, to the last one.

    Whatever verdict on compute is drawn from a count rests on it.
    """
    embedding = "own" if time == 7 else "block_1"
    counted = flops.count(
        module,
        ARMS[arm],
        batch=batch,
        time=time,
        granularity=granularity,
        embedding=embedding,
        frozen_blocks=arm == "frozen",
    )
    assert counted.total == compiled(module, arm, granularity, embedding, batch, time)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pre", "post"])
@pytest.mark.parametrize(
    "arm",
    helpers.at_night(["backprop", "shallow", "per_site", "tapped_shared", "weights"], "per_site"),
)
def test_counts_of_tied_models_are_the_compilers(arm, form):
    """Independent implementation: as above, where the unembedding is the embedding's transpose."""
    module = SMALL.clone(norm=form, tied=True, positions="rotary", use_bias=False)
    counted = flops.count(module, ARMS[arm], batch=2, time=12, granularity="linear")
    assert counted.total == compiled(module, arm, "linear", "block_1", 2, 12)


def test_dots_are_read_from_the_text():
    """Closed form: 2 m k n, times the batch; a product that nobody reads is gone."""
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))

    def product(a, b):
        _ = a @ b + 1
        return jnp.einsum("bik,bkj->bij", a, b)

    assert hlo.dot_flops(product, a, b) == 2 * 3 * 4 * 5 * 6
    with pytest.raises(AssertionError, match="loop"):
        hlo.dot_flops(
            lambda a: jax.lax.scan(lambda h, _: (h @ h, None), a, length=3)[0], jnp.ones((5, 5))
        )


def test_backprop_is_six_per_weight_and_attention():
    """Closed form: 6 a weight and token, plus 12 T d a layer for scores and values."""
    module = LARGER.clone(use_bias=False, norm="post", positions="rotary")
    weights = flops.num_params(module) - 60 * 24 - 3 * 2 * 24  # no look-ups, no gains
    found = flops.count(module, Backprop(), batch=2, time=10)
    # The head of a post-LN model lies on the trained stream, so nothing is spared.
    assert found.per_token == 6 * weights + 3 * 12 * 10 * 24
    assert found.num_tokens == 20
    parts = sum(found.of(kind=kind) for kind in ("forward", "weight_grad*", "activation_grad*"))
    assert parts == found.total
    assert found.of("*/scores") + found.of("*/values") == 20 * 3 * 12 * 10 * 24
    assert found.of("unembed") == 6 * 20 * 24 * 60
    assert sum(found.of(f"block_{i}/*") for i in range(3)) + found.of("unembed") == found.total


@pytest.mark.parametrize("form", ["pre", "post"])
def test_no_error_passes_a_matrix_of_the_blocks_if_all_are_cut(form):
    """Closed form: with sites at every map, backward is weight gradients and projections alone.

    An embedding that learns from block 1 is below its first map, where no norm is cut in between.
    """
    module = LARGER.clone(norm=form)
    options = {"batch": 1, "time": 8, "granularity": "linear"}
    found = flops.count(module, SHARED, **options, embedding="own")
    assert found.of("block_*", "activation_gradients") == 0
    assert found.of("block_*", "weight_gradients") == sum(
        found.of(f"block_*/{m}", "forward") for m in ("qkv", "out", "up", "down")
    )
    d = 24
    widths = d + 2 * d + 3 * d  # of the stream, the MLP's hidden layer, and qkv
    assert found.of("shared") == found.of(kind="projections") == 2 * 8 * 60 * widths
    through = flops.count(module, SHARED, **options)
    first = through.of("block_0/attention/qkv", "forward") if form == "post" else 0
    assert through.of("block_*", "activation_gradients") == first


def test_num_params_is_the_trees():
    """Closed form: all arrays of the tree; without embeddings 12 d^2, biases and norms."""
    for module in (SMALL, SMALL.clone(tied=True, norm="post"), SMALL.clone(scan=True)):
        tokens = jnp.zeros((1, 2), jnp.int32)
        params = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
        total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        assert flops.num_params(module) == total
    d = 8
    blocks = 2 * (12 * d * d + 9 * d + 4 * d)
    assert flops.num_params(SMALL, embeddings=False) == blocks + 2 * d


def test_draws_cost_tangents_each():
    """Closed form: K draws share the forward pass."""
    one, five = (
        flops.count(SMALL, WeightForwardGradient(num_draws=k), batch=1, time=4) for k in (1, 5)
    )
    assert five.of(kind="tangents") == 5 * one.of(kind="tangents")
    assert five.total - one.total == 4 * one.of(kind="tangents")


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        (LocalLosses(), {}, "no count is known for LocalLosses; expected one of Backprop"),
        (
            PER_SITE,
            {"frozen_blocks": True},
            "frozen under DirectFeedbackAlignment; expected backprop",
        ),
        (Backprop(), {"batch": 0}, "batch is 0"),
        (Backprop(), {"time": 13}, "time is 13 and context is 12"),
    ],
)
def test_refusals(rule, options, words):
    """Documented contract: the value, what was expected."""
    with pytest.raises(InputError) as error:
        flops.count(SMALL, rule, **({"batch": 1, "time": 4} | options))
    assert words in str(error.value)
