"""The library's own networks against NumPy and `lax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from dfa_jax.models import MLP, ConvNet
from tests import helpers, reference


@pytest.mark.parametrize("activation", ["tanh", "relu", "linear"])
def test_perceptron_matches_numpy(x64, activation):
    """Independent implementation: the forward pass in NumPy; examples of any shape are flattened."""
    case = helpers.made(MLP((7, 6), 3, activation), "layer_*", helpers.images(shape=(2, 4)))
    x = np.reshape(case.batch.inputs, (16, 8))
    a, _ = reference.forward(case.params, x, activation)
    outputs = case.model.apply(case.params, case.batch.inputs)
    np.testing.assert_allclose(outputs, a[-1], rtol=1e-12)


def test_erf_is_the_theorys(x64):
    """Closed form: `erf(a / sqrt 2)`, the activation of the order-parameter ODEs, not `erf(a)`."""
    case = helpers.made(MLP((7,), 3, "erf"), "layer_0", helpers.images())
    (W, b), (V, c) = reference.layers(case.params)
    expected = erf((np.asarray(case.batch.inputs) @ W + b) / np.sqrt(2)) @ V + c
    np.testing.assert_allclose(
        case.model.apply(*case[1:2], case.batch.inputs), expected, rtol=1e-12
    )


def test_convolutional_network_matches_lax(x64):
    """Independent implementation: `lax.conv`, tanh, the mean of 2 x 2 patches, and a dense readout."""
    case = helpers.convnet()
    params, h = helpers.to_float64(case.params), case.batch.inputs
    for i in range(2):
        p = params[f"layer_{i}"]["Conv_0"]
        numbers = ("NHWC", "HWIO", "NHWC")
        a = jax.lax.conv_general_dilated(
            jnp.asarray(h), p["kernel"], (1, 1), "SAME", dimension_numbers=numbers
        )
        h = np.tanh(np.asarray(a) + p["bias"])
        n, height, width, channels = h.shape
        h = h.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    expected = h.reshape(16, -1) @ params["readout"]["kernel"] + params["readout"]["bias"]
    outputs = case.model.apply(case.params, case.batch.inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-11)


@pytest.mark.parametrize(
    "module", [MLP((7, 6), 3, use_bias=False), ConvNet((3,), 3, use_bias=False)]
)
def test_networks_without_biases(module):
    """Documented contract: `use_bias=False` leaves kernels only, in every layer."""
    case = helpers.made(module, "layer_*", helpers.images(shape=(4, 4, 2)))
    names = {path[-1].key for path, _ in jax.tree.leaves_with_path(case.params)}
    assert names == {"kernel"}
