"""LocalMixer: its arithmetic, its sizes, and what does not mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import tree
from dfa_jax.errors import InputError
from dfa_jax.models import LocalMixer, from_linen
from dfa_jax.models.local_mixer import patches
from dfa_jax.rules import LocalLosses
from dfa_jax.types import Batch
from tests import helpers

SIZES = {  # images; options; parameters of the trunk, of the whole with a head a block
    "S/1/1": (
        (28, 28, 1),
        {"num_blocks": 1, "patches_per_side": 1, "channels": 256, "num_groups": 1},
        None,
        271_892,
    ),
    "M/1/16": ((28, 28, 1), {"num_blocks": 1, "patches_per_side": 1}, None, 429_076),
    "M/8/16": ((32, 32, 3), {}, None, 918_770),
    "L/8/64": ((32, 32, 3), {"channels": 2048, "num_groups": 64}, None, 13_074_674),
    "L/32/64": (
        (224, 224, 3),
        {"channels": 2048, "num_groups": 64, "patches_per_side": 32},
        16_311_296,
        None,
    ),
}


def made(module, inputs):
    """The module as a model with its sites and blocks."""
    return from_linen(module, "block_*/*_mixing", inputs, blocks="block_*")


@pytest.mark.parametrize("size", list(SIZES))
def test_parameter_counts(size):
    """Closed form: Table 2 of the paper, which counts trunk, a local head a block, and readout; of
    L/32/64 only the trunk is compared, since its heads are not said."""
    shape, options, trunk, whole = SIZES[size]
    batch = Batch(jax.ShapeDtypeStruct((2, *shape), "float32"), jax.ShapeDtypeStruct((2,), "int32"))
    model = made(LocalMixer(**options), batch.inputs)
    params = jax.eval_shape(model.init, jax.random.key(0), batch.inputs)
    if trunk:
        assert tree.size({k: v for k, v in params.items() if k != "readout"}) == trunk
    if whole:
        heads = jax.eval_shape(
            lambda p: LocalLosses().init(jax.random.key(0), model, p, batch)[0], params
        )
        assert tree.size(heads) == whole


def norm(x):
    """Layer normalisation in NumPy."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def dense(x, layer):
    """`x W + b`, the bias once."""
    return x @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"], float)


def numpy_mixer(params, tokens, num_groups):
    """The forward pass from the paper's text, `[batch, patch, d]` to outputs."""
    h = tokens
    for name in sorted(part for part in params if part.startswith("block")):
        block, skip = params[name], h
        if "token_mixing" in block:
            mixed = dense(norm(h).swapaxes(1, 2), block["token_mixing"]["Dense_0"])
            h = np.maximum(norm(mixed.swapaxes(1, 2)), 0)
        h = np.maximum(norm(dense(norm(h), block["channel_mixing"]["Dense_0"])), 0)
        groups = norm(h.reshape(*h.shape[:2], num_groups, -1))
        layer = block["group_mixing"]["DenseGeneral_0"]
        mixed = np.einsum("bpgi,gio->bpgo", groups, np.asarray(layer["kernel"], float))
        out = norm(mixed + np.asarray(layer["bias"], float)).reshape(h.shape)
        h = np.maximum(out + (skip if "token_mixing" in block else 0), 0)
    return dense(h.mean(1), params["readout"])


def test_forward_pass(x64):
    """Independent implementation: NumPy, from section 3 of the paper; biases are added once."""
    module = LocalMixer(3, 2, 8, 2, 3, zero_readout=False)
    images = helpers.images(num=3, shape=(4, 6, 2)).inputs
    model = made(module, images)
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    params = helpers.normals(like, 1, 0.5)
    tokens = np.asarray(patches(images, 2), float)
    found = jax.jit(model.apply)(params, images)
    np.testing.assert_allclose(found, numpy_mixer(params, tokens, 2), rtol=1e-9)


def test_patches_are_the_squares_of_the_image():
    """Closed form: patch 1 of 2 x 2 is the upper right corner, row by row, then channels."""
    images = helpers.images(num=2, shape=(4, 6, 2)).inputs
    found = np.asarray(patches(images, 2))
    np.testing.assert_array_equal(found[:, 1], np.asarray(images[:, :2, 3:]).reshape(2, -1))


def test_start():
    """Closed form: readout and biases 0; the standard deviation is min(2 / sqrt(fan_in), 0.1), within
    4 of its own: 16,384 entries of a channel map at fan-in 1,024, and 0.1 at fan-in 16."""
    module = LocalMixer(1, 1, 128, 8, 3)
    images = jnp.zeros((1, 32, 32, 1))
    params = jax.jit(made(module, images).init)(jax.random.key(0), images)
    assert not np.any(params["readout"]["kernel"])
    block = params["block_0"]
    assert not np.any(block["channel_mixing"]["Dense_0"]["bias"])
    for layer, fan_in in (
        (block["channel_mixing"]["Dense_0"], 1024),
        (block["group_mixing"]["DenseGeneral_0"], 16),
    ):
        kernel = np.asarray(layer["kernel"])
        std = min(2 / fan_in**0.5, 0.1)
        assert abs(kernel.std() / std - 1) < 4 / np.sqrt(2 * kernel.size)


def test_sites_and_blocks():
    """Closed form: two places in the first block, three in the others; the readout is all above."""
    model = made(LocalMixer(2, 2, 8, 2, 3), jnp.zeros((1, 4, 4, 1)))
    kinds = ["channel", "group", "token", "channel", "group"]
    blocks = [0, 0, 1, 1, 1]
    assert model.sites == tuple(f"block_{b}/{k}_mixing" for b, k in zip(blocks, kinds, strict=True))
    assert model.blocks == ("block_0", "block_1")
    assert model.readout == (("readout",),)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (LocalMixer(2, 2, 9, 2, 3), "num_groups is 2 and channels is 9"),
        (LocalMixer(2, 3, 8, 2, 3), r"patches_per_side is 3 and the images are \(4, 4, 1\)"),
    ],
)
def test_refusals(module, words):
    """Documented contract: sizes that do not divide."""
    with pytest.raises(InputError, match=words):
        made(module, jnp.zeros((1, 4, 4, 1)))
