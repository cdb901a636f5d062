"""The cosine between forward and feedback matrices, on weights where it is known."""

import jax
import numpy as np
import pytest

from dfa_jax.models import MLP
from dfa_jax.rules import (
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    Shallow,
    UniformSign,
)
from dfa_jax.rules.base import kernels
from tests import helpers


def three_hidden():
    return helpers.made(MLP((7, 6, 5), 3), "layer_*", helpers.images())


def with_kernels(params, **new):
    """The parameters of an `MLP` with other kernels, by layer."""
    found = {name: dict(layer) for name, layer in params.items()}
    for name, kernel in new.items():
        target = found[name] if name == "readout" else dict(found[name]["Dense_0"])
        target["kernel"] = jax.device_put(kernel)
        found[name] = target if name == "readout" else {"Dense_0": target}
    return found


@pytest.mark.parametrize("sharing", ["per_site", "shared"])
def test_aligned_weights_have_cosine_one(sharing):
    """Closed form: `W_l = B_{l-1}^T B_l` and `W_L = B_{L-1}^T` give 1; their negatives give -1.

    These are the weights that DFA is predicted to reach (Refinetti et al., 2021).
    """
    case = three_hidden()
    rule = DirectFeedbackAlignment(feedback_sharing=sharing)
    _, state = helpers.started(rule, case)
    widths = zip(case.model.sites, (7, 6, 5), strict=True)
    B0, B1, B2 = (
        np.asarray(state.get(site, state.get("shared")))[:, :width] for site, width in widths
    )
    for sign in (1, -3):
        params = with_kernels(
            case.params, layer_1=sign * B0.T @ B1, layer_2=sign * B1.T @ B2, readout=sign * B2.T
        )
        found = rule.weight_alignment(case.model, params, state, case.batch)
        assert list(found) == ["layer_1/Dense_0", "layer_2/Dense_0", "readout"]
        np.testing.assert_allclose(list(found.values()), np.sign(sign), rtol=1e-6)


def test_known_angle():
    """Closed form: `W = A + C` with orthogonal A (the aligned weight) and C of equal norm: cos 45."""
    case = helpers.made(MLP((7,), 3), "layer_*", helpers.images())
    rule = DirectFeedbackAlignment()
    _, state = helpers.started(rule, case)
    aligned = np.asarray(state["layer_0"]).T
    noise = np.random.default_rng(5).normal(size=aligned.shape).astype(np.float32)
    noise -= aligned * np.vdot(noise, aligned) / np.vdot(aligned, aligned)
    noise *= np.linalg.norm(aligned) / np.linalg.norm(noise)
    params = with_kernels(case.params, readout=aligned + noise)
    found = rule.weight_alignment(case.model, params, state, case.batch)
    np.testing.assert_allclose(found["readout"], np.sqrt(0.5), rtol=1e-5)


def partial():
    return helpers.made(MLP((7, 6), 3), "layer_1", helpers.images())


UNDEFINED = {
    "backprop": (Backprop(), helpers.mlp),
    "shallow": (Shallow(), helpers.mlp),
    "convolutional": (DirectFeedbackAlignment(), helpers.convnet),
    "scanned": (DirectFeedbackAlignment(), helpers.scanned),
    "a layer without a site": (DirectFeedbackAlignment(), partial),
    "other tap": (DirectFeedbackAlignment(error_tap="last_hidden"), helpers.mlp),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_undefined_alignment_is_empty(name):
    """Documented contract: where no chain of matrices is defined there is no number, not a wrong one."""
    rule, case = UNDEFINED[name][0], UNDEFINED[name][1]()
    params, state = helpers.started(rule, case)
    assert rule.weight_alignment(case.model, params, state, case.batch) == {}


def test_chain_rules_compare_kernel_and_feedback():
    """Closed form: `B = W` gives 1, `B = sign(W) / sqrt(n)` gives `sum|W| / (sqrt(size) |W|)`."""
    case = three_hidden()
    own = kernels(case.model, case.params)
    found = FeedbackAlignment().weight_alignment(case.model, case.params, own, case.batch)
    assert list(found) == list(own)[1:]  # no parameter reads the first map's feedback
    np.testing.assert_allclose(list(found.values()), 1, rtol=1e-6)
    found = UniformSign().weight_alignment(case.model, case.params, (), case.batch)
    for name, cosine in found.items():
        W = np.asarray(own[name], float)
        expected = np.abs(W).sum() / np.sqrt(W.size) / np.linalg.norm(W)
        np.testing.assert_allclose(cosine, expected, rtol=1e-5)
