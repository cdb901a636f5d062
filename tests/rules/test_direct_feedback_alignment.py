"""Direct feedback alignment against NumPy, and its exact relations to other rules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.models import MLP
from dfa_jax.rules import Backprop, DirectFeedbackAlignment, FeedbackAlignment, Shallow
from tests import helpers, reference


def three_hidden(activation):
    return helpers.made(MLP((7, 6, 5), 3, activation), "layer_*", helpers.images())


def feedback_list(model, state):
    return [np.asarray(state[site], float) for site in model.sites]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_match_numpy_in_double_precision(x64, activation):
    """Independent implementation: DFA's equations in NumPy, every gradient to 1e-12.

    This is the definition of the rule; a transposed B or a missing phi' trains, only worse.
    """
    case = three_hidden(activation)
    x, labels = case.batch
    rule = DirectFeedbackAlignment()
    params, state = helpers.started(rule, case)
    found = helpers.estimate(rule, case, params, state)
    expected = reference.direct(
        params,
        feedback_list(case.model, state),
        x,
        lambda y: (reference.output_error(y, labels),) * 2,
        activation,
    )
    assert found.loss.dtype == jnp.float64
    a, _ = reference.forward(params, x, activation)
    np.testing.assert_allclose(found.loss, reference.loss(a[-1], labels), rtol=1e-12)
    helpers.assert_close(found.grads, expected, 1e-12)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_match_numpy_in_single_precision(activation):
    """Independent implementation: as above at the precision that users train in, to 1e-6."""
    case = three_hidden(activation)
    x, labels = case.batch
    rule = DirectFeedbackAlignment()
    params, state = helpers.started(rule, case)
    expected = reference.direct(
        params,
        feedback_list(case.model, state),
        x,
        lambda y: (reference.output_error(y, labels),) * 2,
        activation,
    )
    helpers.assert_close(helpers.estimate(rule, case, params, state).grads, expected, 1e-6)


@pytest.mark.parametrize("encoding", ["sign", "ternary"])
def test_encoded_error_matches_numpy(x64, encoding):
    """Independent implementation: sign and ternary DFA in NumPy.

    The threshold is per example; leaving the mean over the batch in it would silence large batches.
    """
    case = three_hidden("tanh")
    x, labels = case.batch
    rule = DirectFeedbackAlignment(error_encoding=encoding, ternary_threshold=0.35)
    params, state = helpers.started(rule, case)

    def error(y):
        true = reference.output_error(y, labels)
        per_example = len(y) * true
        kept = 1.0 if encoding == "sign" else np.abs(per_example) > 0.35
        assert encoding == "sign" or 0.2 < kept.mean() < 0.8  # the threshold matters here
        return np.sign(per_example) * kept / len(y), true

    expected = reference.direct(params, feedback_list(case.model, state), x, error, "tanh")
    helpers.assert_close(helpers.estimate(rule, case, params, state).grads, expected, 1e-12)


@pytest.mark.parametrize("encoding", ["sign", "ternary"])
def test_encoding_does_not_depend_on_the_batch_size(encoding):
    """Closed form: over two copies of the examples every encoded error is half as large.

    Gradients of a mean must not change when the batch is doubled.
    """
    rule = DirectFeedbackAlignment(error_encoding=encoding)
    error = jax.random.normal(jax.random.key(0), (4, 2, 3)) / 8
    twice = jnp.concatenate([error, error]) / 2
    once, doubled = (jnp.full((len(e), 2), 1 / (2 * len(e))) for e in (error, twice))
    found = rule.encode(twice, doubled)[:4]
    np.testing.assert_array_equal(found, rule.encode(error, once) / 2)


def test_linear_network_with_products_of_weights_equals_backprop(x64):
    """Exact equivalence: with `B_l = (W_{l+1} ... W_L)^T` in a linear network DFA is backpropagation.

    It pins the orientation of B and the place where it enters.
    """
    case = three_hidden("linear")
    _, state = helpers.started(DirectFeedbackAlignment(), case)
    product, feedback = np.eye(3), {}
    kernels = [kernel for kernel, _ in reference.layers(case.params)]
    for site, kernel in zip(reversed(case.model.sites), reversed(kernels), strict=False):
        product = kernel @ product
        feedback[site] = jnp.asarray(product.T)
    chex.assert_trees_all_equal_shapes_and_dtypes(feedback, state)
    found = helpers.estimate(DirectFeedbackAlignment(), case, case.params, feedback)
    helpers.assert_close(found.grads, helpers.backprop(case), 1e-12)


def test_zero_feedback_equals_shallow():
    """Exact equivalence: `B = 0` sends nothing, which is the shallow control, bit for bit."""
    case = helpers.mlp()
    rule = DirectFeedbackAlignment()
    params, state = helpers.started(rule, case)
    zero = jax.tree.map(jnp.zeros_like, state)
    found = helpers.estimate(rule, case, params, zero)
    helpers.assert_identical(found.grads, helpers.estimate(Shallow(), case, params, ()).grads)
    assert np.abs(found.grads["layer_0"]["Dense_0"]["kernel"]).max() == 0
    assert np.abs(found.grads["readout"]["kernel"]).max() > 0


def test_one_hidden_layer_equals_feedback_alignment(x64):
    """Exact equivalence: with one hidden layer DFA and FA are the same rule for the same matrix."""
    case = helpers.made(MLP((7,), 3), "layer_*", helpers.images())
    _, direct = helpers.started(DirectFeedbackAlignment(), case)
    _, chain = helpers.started(FeedbackAlignment(), case)
    chain = chain | {"readout": direct["layer_0"].T}
    helpers.assert_close(
        helpers.estimate(DirectFeedbackAlignment(), case, case.params, direct).grads,
        helpers.estimate(FeedbackAlignment(), case, case.params, chain).grads,
        1e-12,
    )


def test_shared_feedback_is_the_first_columns_of_the_widest(x64):
    """Exact equivalence: shared feedback is per-site feedback with columns of one matrix.

    Launay et al. (2020) share it to save memory; it must not change what a site receives otherwise.
    """
    case = helpers.made(MLP((5, 7, 6), 3), "layer_*", helpers.images())
    shared_rule = DirectFeedbackAlignment(feedback_sharing="shared")
    _, state = helpers.started(shared_rule, case)
    assert state["shared"].shape == (3, 7)
    widths = zip(case.model.sites, (5, 7, 6), strict=True)
    columns = {site: state["shared"][:, :width] for site, width in widths}
    helpers.assert_close(
        helpers.estimate(shared_rule, case, case.params, state).grads,
        helpers.estimate(DirectFeedbackAlignment(), case, case.params, columns).grads,
        1e-12,
    )


@pytest.mark.parametrize("sharing", ["per_site", "shared"])
@pytest.mark.parametrize("encoding", ["full", "sign"])
def test_last_hidden_tap_matches_a_hand_written_pass(x64, sharing, encoding):
    """Independent implementation: NumPy reads `dL/dh` at the last site and projects that.

    The last site gets a projection as well: no site gets the exact error.
    """
    case = three_hidden("tanh")
    x, labels = case.batch
    rule = DirectFeedbackAlignment(
        error_tap="last_hidden", feedback_sharing=sharing, error_encoding=encoding
    )
    params, state = helpers.started(rule, case)
    if sharing == "shared":
        assert state["shared"].shape == (5, 7)
        feedback = [np.asarray(state["shared"])[:, :width] for width in (7, 6, 5)]
    else:
        feedback = feedback_list(case.model, state)
        assert [B.shape for B in feedback] == [(5, 7), (5, 6), (5, 5)]

    def error(y):
        true = reference.output_error(y, labels)
        hidden = true @ np.asarray(params["readout"]["kernel"]).T
        return (hidden if encoding == "full" else np.sign(hidden) / len(y)), true

    expected = reference.direct(params, feedback, x, error, "tanh")
    helpers.assert_close(helpers.estimate(rule, case, params, state).grads, expected, 1e-12)


def test_every_option_is_refused_by_name():
    """Documented contract: a scale that cannot scale is an `InputError` that names it."""
    for field in ("feedback_scale", "ternary_threshold"):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match=field):
                DirectFeedbackAlignment(**{field: value})


def test_backprop_is_the_limit_that_dfa_is_compared_with(x64):
    """Independent implementation: `Backprop` is the NumPy chain with the weights' own transposes."""
    case = three_hidden("tanh")
    x, labels = case.batch
    kernels = [kernel for kernel, _ in reference.layers(case.params)]
    expected = reference.chain(case.params, kernels, x, labels, "tanh")
    helpers.assert_close(helpers.estimate(Backprop(), case, case.params, ()).grads, expected, 1e-12)
