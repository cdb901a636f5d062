"""Local losses by the chain rule: what they are, what they reach, and who pays for the heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.autodiff import sites
from dfa_jax.errors import InputError
from dfa_jax.losses import nt_xent_unstopped
from dfa_jax.models import LocalMixer
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    FeedbackAlignment,
    LocalLosses,
    WeightForwardGradient,
    functional,
)
from tests import helpers, reference


def written_out(params, batch, greedy):
    """The loss of an `MLP` with a head a layer, in plain `jax.numpy`."""
    h, total = batch.inputs, 0.0
    for i in range(2):
        dense, head = params[f"layer_{i}"]["Dense_0"], params["local_heads"][f"layer_{i}"]
        h = jnp.tanh(h @ dense["kernel"] + dense["bias"][None])
        total += helpers.LOSS(h @ head["kernel"] + head["bias"][None], batch.targets).mean()
        h = jax.lax.stop_gradient(h) if greedy else h
    top = params["readout"]
    return total + helpers.LOSS(h @ top["kernel"] + top["bias"][None], batch.targets).mean()


@pytest.mark.parametrize("greedy", [True, False])
def test_gradients_are_those_of_the_losses_written_out(x64, greedy):
    """Independent implementation: `jax.grad` of the sum of all losses in plain `jax.numpy`."""
    case, rule = helpers.mlp(), LocalLosses(greedy=greedy)
    params, state = helpers.started(rule, case)
    expected = jax.jit(jax.grad(written_out), static_argnums=2)(params, case.batch, greedy)
    helpers.assert_close(helpers.estimate(rule, case, params, state).grads, expected, 1e-12)


def test_feedback_alignment_reaches_through_the_heads(x64):
    """Independent implementation: NumPy; greedy, so a layer hears of its own head alone, through the
    head's feedback, while the head itself learns exactly."""
    case, rule = helpers.mlp(), LocalLosses(estimator=FeedbackAlignment())
    params, B = helpers.started(rule, case)
    found = helpers.estimate(rule, case, params, B).grads
    trunk = {name: leaf for name, leaf in params.items() if name != "local_heads"}
    x, labels = np.asarray(case.batch.inputs), np.asarray(case.batch.targets)
    _, h = reference.forward(trunk, x, "tanh")
    for i in range(2):
        head = params["local_heads"][f"layer_{i}"]
        logits = h[i + 1] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        error = reference.output_error(logits, labels)
        sent = error @ np.asarray(B[f"local_heads/layer_{i}"]).T * (1 - h[i + 1] ** 2)
        helpers.assert_close(found[f"layer_{i}"]["Dense_0"]["kernel"], h[i].T @ sent, 1e-12)
        heads = found["local_heads"][f"layer_{i}"]["kernel"]
        helpers.assert_close(heads, h[i + 1].T @ error, 1e-12)


def test_heads_and_readout_learn_exactly():
    """Exact equivalence: under a forward gradient they get backpropagation's gradients."""
    case = helpers.mlp()
    params, _ = helpers.started(LocalLosses(), case)
    exact, *guessed = (
        helpers.estimate(LocalLosses(estimator=rule), case, params, ()).grads
        for rule in (Backprop(), WeightForwardGradient(), ActivityForwardGradient())
    )
    for grads in guessed:
        for part in ("local_heads", "readout"):
            helpers.assert_close(grads[part], exact[part], 1e-5)


@functools.cache
def mixer(num=2):
    """Three blocks of two groups on four patches, as they start."""
    module = LocalMixer(3, 2, 8, 2, 3, zero_readout=False)
    batch = helpers.images(num=num, shape=(4, 4, 2))
    case = helpers.made(module, "block_*/*_mixing", batch, blocks="block_*")
    params = jax.jit(case.model.init)(jax.random.key(1), batch.inputs)
    return case._replace(params=params)


REACHED = {  # a unit of patch 1 and group 0 of block 1: which patches and groups of its loss it moves
    "token_mixing": ((1,), (0, 1)),
    "channel_mixing": ((1,), (0,)),
    "group_mixing": ((1,), (0,)),
}


def test_no_tangent_crosses_blocks_patches_or_groups():
    """Proof of absence: NaN for the tangent of one patch (and group) of one site of block 1. Of its
    losses those of that patch (and group) alone are NaN; those of the other blocks are 0."""
    case = mixer()
    rule = LocalLosses(patchwise=True, num_groups=2)
    params, _ = helpers.started(rule, case)
    objective = rule.objective(helpers.LOSS, case.model)
    shapes = sites.activity_shapes(case.model, params, case.batch.inputs)
    zeros = {site: np.zeros(a.shape, np.float32) for site, a in shapes.items()}

    def terms(perturbations):
        orders = sites.at_sites(case.model, "perturb", perturbations)
        return objective(case.model, params, case.batch, orders, replicated=True).terms

    slopes_along = jax.jit(lambda moved: jax.jvp(terms, (zeros,), (moved,))[1])
    for place, (patches, groups) in REACHED.items():
        poison = np.zeros_like(zeros[f"block_1/{place}"])
        poison[(slice(None), 1) if place == "token_mixing" else (slice(None), 1, 0)] = np.nan
        slopes = slopes_along(zeros | {f"block_1/{place}": poison})
        hit = np.zeros((2, 4, 2), bool)
        hit[np.ix_(range(2), patches, groups)] = True
        np.testing.assert_array_equal(np.isnan(slopes["block_1"]), hit)
        for name in ("block_0", "block_2", "outputs"):
            np.testing.assert_array_equal(slopes[name], 0)


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        pytest.param({}, helpers.LOSS, marks=pytest.mark.slow),
        pytest.param({"normalize": True}, helpers.LOSS, marks=pytest.mark.slow),
        pytest.param({"blockwise": False}, helpers.LOSS, marks=pytest.mark.slow),
        ({}, nt_xent_unstopped),
    ],
    ids=["plain", "normalize", "one block", "coupled examples"],
)
def test_aggregators_agree(options, loss):
    """Exact equivalence: fused and naive replicas make the same errors, draw by draw; of a loss that
    couples examples too, whose slope is that of the whole batch."""
    case = mixer(4)
    rules = [
        LocalLosses(
            ActivityForwardGradient(), patchwise=True, num_groups=2, aggregator=kind, **options
        )
        for kind in ("fused", "naive")
    ]
    params, _ = helpers.started(rules[0], case)
    fused, naive = (
        jax.jit(
            lambda key, rule=rule: (
                functional.estimate(rule, case.model, loss, params, (), (), case.batch, key).errors
            )
        )(jax.random.key(3))
        for rule in rules
    )
    helpers.assert_close(fused, naive, 2e-5)


def test_groups_must_divide_the_channels():
    """Documented contract: the block, its channels, and what was asked."""
    case = helpers.mlp()
    with pytest.raises(InputError, match="num_groups is 3 and block 'layer_0' has 7 channels"):
        helpers.started(LocalLosses(num_groups=3), case)
