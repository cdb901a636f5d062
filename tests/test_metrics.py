"""Measurements against double-precision NumPy, and against the cases whose answer is known.

Alignment is the number on which the claims about feedback alignment rest. Backpropagation's errors
in deep networks are tiny, so the cosine must neither underflow nor be reported from rounding noise.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import losses, metrics
from dfa_jax.models import MLP, from_linen
from dfa_jax.rules import (
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    Shallow,
    WeightForwardGradient,
    functional,
)
from tests import helpers, reference

align = jax.jit(metrics.error_alignment, static_argnames=("num_stack", "num_batch"))
FLOOR = np.finfo(np.float32).tiny / np.finfo(np.float32).eps


def cosines(delta, g):
    """Per example, by the textbook formula in double precision."""
    delta, g = np.asarray(delta, np.float64), np.asarray(g, np.float64)
    return (delta * g).sum(-1) / (np.linalg.norm(delta, axis=-1) * np.linalg.norm(g, axis=-1))


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("delta_scale", [1.0, 1e-25, 1e30])
@pytest.mark.parametrize("g_scale", [1.0, 1e-25, 1e-30, 1e30])
def test_alignment_at_every_scale(delta_scale, g_scale):
    """Oracle: NumPy in float64. Squares of 1e-25 underflow in float32, which would turn a perfect
    alignment into 0 or NaN."""
    delta, g = normal(0, (6, 5)) * np.float32(delta_scale), normal(1, (6, 5)) * np.float32(g_scale)
    found = align(delta, g)
    expected = cosines(delta, g)
    np.testing.assert_allclose(found.mean, expected.mean(), atol=1e-6)
    np.testing.assert_allclose(found.spread, expected.std(), atol=1e-6)
    assert found.fraction == 1.0


def test_rows_of_very_different_sizes():
    """Oracle: NumPy in float64. Each example counts alike, however small its error."""
    delta, g = normal(0, (4, 5)), normal(1, (4, 5)) * np.float32([[1], [1e-10], [1e-20], [1e-28]])
    found = align(delta, g)
    np.testing.assert_allclose(found.mean, cosines(delta, g).mean(), atol=1e-6)


def test_examples_without_an_error_do_not_count():
    """Oracle: NumPy on the others. An example that is classified perfectly (or a dead unit's) has
    no direction; as a 0 it would pull the mean down."""
    delta, g = normal(0, (6, 5)), normal(1, (6, 5))
    delta[0], g[1], g[2] = 0, 0, FLOOR / 2
    found = align(delta, g)
    expected = cosines(delta[3:], g[3:])
    np.testing.assert_allclose(found.mean, expected.mean(), atol=1e-6)
    np.testing.assert_allclose(found.spread, expected.std(), atol=1e-6)
    assert found.fraction == 0.5


@pytest.mark.parametrize(("factor", "counts"), [(0.99, 0.0), (1.01, 1.0)])
def test_floor_of_the_reference(factor, counts):
    """Oracle: `tiny / eps`, computed in float64. Below it float32 has fewer bits than it shows."""
    g = jnp.array([[factor * FLOOR, 0.0]], jnp.float32)
    found = align(jnp.ones((1, 2)), g)
    assert found.fraction == counts
    assert math.isnan(found.mean) == (counts == 0.0)


def test_floor_is_of_the_references_own_type():
    """Oracle: float16's `tiny / eps` is 0.06; a reference of 0.01 in float16 is rounding noise."""
    g = jnp.full((1, 2), 0.01, jnp.float16)
    assert align(jnp.ones((1, 2)), g).fraction == 0.0
    assert align(jnp.ones((1, 2)), g.astype(jnp.float32)).fraction == 1.0


def test_no_example_counts():
    """Oracle: the contract. NaN, which a record then leaves out, and never 0."""
    found = align(jnp.zeros((3, 2)), jnp.ones((3, 2)))
    assert math.isnan(found.mean)
    assert math.isnan(found.spread)
    assert found.fraction == 0.0


@pytest.mark.parametrize(("stack", "batch"), [((), (3, 4)), ((2,), (6,)), ((2, 3), (4,))], ids=str)
@pytest.mark.parametrize("features", [(5,), (2, 2, 3)], ids=str)
def test_axes(stack, batch, features):
    """Oracle: NumPy, layer by layer. Scanned stacks have layers in front; `[B, T, D]` has a token
    as an example; a convolution's features are its whole map."""
    shape = (*stack, *batch, *features)
    delta, g = normal(0, shape), normal(1, shape)
    found = align(delta, g, num_stack=len(stack), num_batch=len(batch))
    flat = (math.prod(stack), math.prod(batch), math.prod(features))
    expected = cosines(delta.reshape(flat), g.reshape(flat))
    assert found.mean.shape == stack
    np.testing.assert_allclose(np.ravel(found.mean), expected.mean(-1), atol=1e-6)
    np.testing.assert_allclose(np.ravel(found.spread), expected.std(-1), atol=1e-6)


def test_correct():
    """Oracle: by hand; also for tokens."""
    logits = jnp.array([[0.0, 1.0, 0.5], [2.0, 1.0, 0.0]])
    assert metrics.correct(logits, jnp.array([1, 1])).tolist() == [True, False]
    tokens = metrics.correct(jnp.stack([logits, logits]), jnp.array([[1, 0], [0, 0]]))
    assert tokens.tolist() == [[True, True], [False, True]]


def measure(rule, case):
    """`site_metrics`, compiled, with the parameters and state as the rule starts them."""
    params, state = jax.jit(lambda: helpers.started(rule, case))()

    @jax.jit
    def run(params, state, batch):
        key = jax.random.key(0)
        return metrics.site_metrics(key, case.model, rule, helpers.LOSS, params, state, (), batch)

    return params, state, {name: float(v) for name, v in run(params, state, case.batch).items()}


@pytest.fixture(scope="module")
def case():
    return helpers.made(MLP((7, 6), 3), "layer_*", helpers.images(num=10))


def test_backprop_is_aligned_with_itself(case):
    """Oracle: a vector's cosine with itself is 1, for every example."""
    _, _, found = measure(Backprop(), case)
    for site in case.model.sites:
        assert found[f"gradient_alignment/{site}"] == pytest.approx(1.0, abs=1e-6)
        assert found[f"gradient_alignment_spread/{site}"] == pytest.approx(0.0, abs=1e-6)


def test_shallow_reports_no_angle(case):
    """Oracle: the contract. Zero errors have none."""
    _, _, found = measure(Shallow(), case)
    for site in case.model.sites:
        assert math.isnan(found[f"gradient_alignment/{site}"])
        assert found[f"error_norm/{site}"] == 0.0


def test_sites_against_numpy(case):
    """Oracle: double-precision NumPy from the equations: DFA's errors, backpropagation's, and the
    norms, which are read as 'how large is a vector of one example'."""
    params, feedback, found = measure(DirectFeedbackAlignment(), case)
    x, labels = np.asarray(case.batch.inputs), np.asarray(case.batch.targets)
    a, h = reference.forward(params, x, "tanh")
    output = reference.output_error(a[-1], labels)
    kernels = [kernel for kernel, _ in reference.layers(params)]
    upper = output @ kernels[2].T
    true = {"layer_1": upper, "layer_0": (upper * (1 - h[2] ** 2)) @ kernels[1].T}
    for site, activity in zip(("layer_0", "layer_1"), h[1:], strict=True):
        sent = output @ np.asarray(feedback[site], float)
        expected = {
            "gradient_alignment": cosines(sent, true[site]).mean(),
            "gradient_alignment_spread": cosines(sent, true[site]).std(),
            "activity_norm": np.sqrt(np.square(activity).sum(-1).mean()),
            "error_norm": np.sqrt(np.square(sent).sum(-1).mean()),
            "gradient_norm": np.sqrt(np.square(true[site]).sum(-1).mean()),
        }
        for kind, value in expected.items():
            np.testing.assert_allclose(found[f"{kind}/{site}"], value, rtol=2e-5, err_msg=kind)
    norm = np.linalg.norm(kernels[1])
    np.testing.assert_allclose(found["weight_norm/layer_1/Dense_0/kernel"], norm, rtol=1e-5)
    norms = [name for name in found if name.startswith("weight_norm/")]
    assert len(norms) == len(jax.tree.leaves(params)) == 6


def test_weight_alignment_where_the_rule_defines_it(case):
    """Oracle: NumPy's cosine of `W` and `B`; backpropagation and the shallow control define
    none."""
    params, feedback, found = measure(FeedbackAlignment(), case)
    kernel, B = params["readout"]["kernel"], feedback["readout"]
    expected = cosines(np.ravel(kernel), np.ravel(B))
    np.testing.assert_allclose(found["weight_alignment/readout"], expected, atol=1e-6)
    for rule in (Backprop(), Shallow()):
        assert rule.weight_alignment(case.model, case.params, (), case.batch) == {}


@pytest.mark.parametrize("options", [{}, {"feedback_scaling": "none", "feedback_scale": 0.1}])
def test_alignment_before_the_activation_and_overall(case, options):
    """Oracle: NumPy; cosines of the errors times the activation's slope, by layer and as one
    vector, and of all aligned weights as one vector, against feedback as drawn, unscaled."""
    rule = DirectFeedbackAlignment(**options)
    params, feedback = helpers.started(rule, case)
    found = jax.jit(
        lambda params, batch: metrics.alignment_metrics(
            jax.random.key(0), case.model, rule, helpers.LOSS, params, feedback, (), batch
        )
    )(params, case.batch)
    x, labels = np.asarray(case.batch.inputs), np.asarray(case.batch.targets)
    a, h = reference.forward(params, x, "tanh")
    output = reference.output_error(a[-1], labels)
    W = [np.asarray(kernel, float) for kernel, _ in reference.layers(params)]
    B = [np.asarray(feedback[f"layer_{i}"], float) for i in range(2)]
    slopes = [1 - h[1] ** 2, 1 - h[2] ** 2]
    upper = output @ W[2].T * slopes[1]
    true = [upper @ W[1].T * slopes[0], upper]
    sent = [output @ B[i] * slopes[i] for i in range(2)]
    for i in range(2):
        name = f"preactivation_alignment/layer_{i}/Dense_0"
        np.testing.assert_allclose(found[name], cosines(sent[i], true[i]).mean(), rtol=2e-5)
    overall = cosines(np.concatenate(sent, 1), np.concatenate(true, 1)).mean()
    np.testing.assert_allclose(found["preactivation_alignment"], overall, rtol=2e-5)
    drawn = [10 * b if options else b * np.sqrt(b.shape[1]) for b in B]
    targets = [drawn[0].T @ drawn[1], drawn[1].T]
    pairs = [np.concatenate([m.ravel() for m in side]) for side in (W[1:], targets)]
    np.testing.assert_allclose(found["weight_alignment"], cosines(*pairs), rtol=2e-5)


def test_stacked_sites_have_a_number_a_layer():
    """Oracle: the same network unrolled. A scanned stack is a matter of speed, and must report the
    same curve for each of its layers."""
    batch = helpers.images(num=6)
    unrolled = helpers.made(helpers.Stack("unrolled"), ["embed", "layer_*"], batch)
    layers = [unrolled.params[f"layer_{i}"] for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    same = {name: unrolled.params[name] for name in ("embed", "readout")} | {"layers": stacked}
    model = from_linen(helpers.Stack("scan"), ["embed", "layers"], batch.inputs)
    scanned = helpers.Set(model, same, batch)
    _, _, expected = measure(Backprop(), unrolled)
    _, _, found = measure(Backprop(), scanned)
    for kind in ("gradient_alignment", "activity_norm", "error_norm", "gradient_norm"):
        for i in range(3):
            wanted = expected[f"{kind}/layer_{i}"]
            assert found[f"{kind}/layers[{i}]"] == pytest.approx(wanted, rel=1e-5)
        assert found[f"{kind}/embed"] == pytest.approx(expected[f"{kind}/embed"], rel=1e-5)


def test_measuring_changes_nothing():
    """Oracle: the types. Metrics are taken on a frozen state and return scalars only."""
    case = helpers.mlp()

    def run(params, batch):
        key = jax.random.key(0)
        return metrics.site_metrics(
            key, case.model, Backprop(), losses.softmax_cross_entropy, params, (), (), batch
        )

    found = jax.eval_shape(run, case.params, case.batch)
    assert {leaf.shape for leaf in found.values()} == {()}
    assert all(dataclasses.is_dataclass(kind) for kind in (Backprop, Shallow))


def test_a_rule_that_sends_no_errors_asks_for_none():
    """Proof of absence: weight-perturbed forward gradients are measured, by norms alone, on a model
    that JAX cannot reverse (a `while_loop` above the site)."""

    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(4, name="site")(x)
            h = jax.lax.while_loop(
                lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, jnp.tanh(carry[1])), (0, h)
            )[1]
            return nn.Dense(3, name="readout")(h)

    case = helpers.made(Looped(), "site", helpers.images())
    found = metrics.site_metrics(
        jax.random.key(0),
        case.model,
        WeightForwardGradient(),
        helpers.LOSS,
        case.params,
        (),
        (),
        case.batch,
    )
    assert {name.split("/")[0] for name in found} == {"activity_norm", "weight_norm"}
    with pytest.raises(ValueError, match="[Rr]everse-mode"):
        functional.estimate(
            Backprop(), case.model, helpers.LOSS, case.params, (), (), case.batch, jax.random.key(0)
        )
