"""`from_linen`: which names, in which order, and where they are."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.models import MLP, LinearMap, Site, from_linen
from dfa_jax.rules import DirectFeedbackAlignment, FeedbackAlignment
from dfa_jax.rules.base import kernels
from tests import helpers
from tests.helpers import JittedLayer, Layer, Stack


class Tower(nn.Module):
    """Nested names, so that globs can go wrong."""

    @nn.compact
    def __call__(self, x):
        for i in (2, 10, 1):  # forward order is neither alphabetical nor numerical
            x = Inner(name=f"block_{i}")(x)
        return nn.Dense(3, name="readout")(x)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8, name="up")(x)
        return nn.Dense(8, name="down")(jnp.tanh(h))


INPUTS = jax.ShapeDtypeStruct((2, 8), jnp.float32)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("block_*", ["block_2", "block_10", "block_1"]),
        ("block_*/up", ["block_2/up", "block_10/up", "block_1/up"]),
        ("*/*", [f"block_{i}/{part}" for i in (2, 10, 1) for part in ("up", "down")]),
        (["block_1", "block_2"], ["block_2", "block_1"]),
        (["block_1", "block_1*"], ["block_10", "block_1"]),
        ("block_?", ["block_2", "block_1"]),
        ("block_[12]", ["block_2", "block_1"]),
        ("readout:input", ["readout:input"]),
        (
            ["block_*:input", "block_2"],
            ["block_2:input", "block_2", "block_10:input", "block_1:input"],
        ),
    ],
)
def test_globs_stop_at_slashes_and_keep_forward_order(patterns, names):
    """Documented contract: `*` stops at `/`, order is the forward pass's, a name counts once.

    `fnmatch` alone would take `block_*` for every submodule inside the blocks as well.
    """
    assert from_linen(Tower(), patterns, INPUTS).sites == tuple(names)


def test_where_sites_are():
    """Documented contract: path, place, and the layer axes of a stack."""
    model = from_linen(Stack("scan"), ["embed", "layers", "layers/dense:input"], INPUTS)
    assert model.where == {
        "embed": Site(("embed",), "output", ()),
        "layers/dense:input": Site(("layers", "dense"), "input", (3,)),
        "layers": Site(("layers",), "output", (3,)),
    }


class Gated(nn.Module):
    """A layer whose activation is a submodule without parameters."""

    @nn.compact
    def __call__(self, h, _=None):
        return Activation(name="activation")(nn.Dense(8, name="dense")(inputs=h)), None


class Activation(nn.Module):
    @nn.compact
    def __call__(self, a):
        return jnp.tanh(a)


class Gates(nn.Module):
    @nn.compact
    def __call__(self, x):
        over_layers = {"params": 0, "intermediates": 0}
        layers = nn.scan(Gated, variable_axes=over_layers, split_rngs={"params": True}, length=3)
        return nn.Dense(3, name="readout")(layers(name="layers")(x, None)[0])


def test_a_submodule_without_parameters_can_be_a_site():
    """Exact equivalence: the activation inside a scanned layer is the same place as the layer's output.

    (Its dense map is called by keyword, which feedback alignment must follow too.)
    """
    inside, outside = (
        helpers.made(Gates(), site, helpers.images()) for site in ("layers/activation", "layers")
    )
    assert inside.model.places == (Site(("layers", "activation"), "output", (3,)),)
    rule = DirectFeedbackAlignment()
    _, state = helpers.started(rule, inside)
    renamed = {"layers": state["layers/activation"]}
    helpers.assert_identical(
        helpers.estimate(rule, inside, inside.params, state).grads,
        helpers.estimate(rule, outside, outside.params, renamed).grads,
    )
    own = kernels(inside.model, inside.params)
    found = helpers.estimate(FeedbackAlignment(), inside, inside.params, own).grads
    helpers.assert_close(found, helpers.backprop(inside), 1e-5)


class Maps(nn.Module):
    """One linear map of each kind, and an embedding and a norm, which are none."""

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(6, (3, 2), feature_group_count=2, name="grouped")(x)
        h = nn.ConvTranspose(4, (2, 2), name="up")(h)
        h = nn.LayerNorm(name="norm")(h)
        h = nn.DenseGeneral((2, 5), name="split")(h)
        h = nn.DenseGeneral(7, axis=(-2, -1), name="join")(h)
        index = jnp.argmax(h, -1)
        return nn.Dense(3, name="readout")(h + nn.Embed(7, 7, name="embed")(index))


def test_fan_in_counts_the_inputs_of_one_unit():
    """Closed form: kernel area times input channels per group; all contracted axes of a dense map."""
    inputs = jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.float32)
    maps = from_linen(Maps(), "norm", inputs).linear_maps
    assert {name: found.fan_in for name, found in maps.items()} == {
        "grouped": 3 * 2 * 4,
        "up": 2 * 2 * 6,
        "split": 4,
        "join": 2 * 5,
        "readout": 7,
    }
    scanned = from_linen(Stack("scan"), "layers", INPUTS).linear_maps
    assert scanned["layers/dense"] == LinearMap(("layers", "dense", "kernel"), 6)


class Siblings(nn.Module):
    """Equal jitted layers: Flax traces the first and reuses its trace for the others."""

    kind: type

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x, _ = self.kind(name=f"layer_{i}")(x)
        return nn.Dense(3, name="readout")(x)


def test_submodules_behind_cached_traces_are_found():
    """Exact equivalence: jitted siblings have the sites and maps of plain ones, first time and later.

    A layer that is missed here would be left out of "layer_*", and keep its transpose under FA.
    """
    plain = from_linen(Siblings(Layer), ["layer_*", "layer_*/dense"], INPUTS)
    assert len(plain.sites) == 6
    module = Siblings(JittedLayer)
    for _ in range(2):
        model = from_linen(module, ["layer_*", "layer_*/dense"], INPUTS)
        assert model.sites == plain.sites
        assert model.places == plain.places
        assert model.linear_maps == plain.linear_maps
        module.init(jax.random.key(0), jnp.zeros((2, 8)))


def test_a_cached_trace_inside_a_loop_over_time_hides_no_map():
    """Exact equivalence: where the loop carries no `intermediates` there is no mark to go by either."""

    class Step(nn.Module):
        kind: type

        @nn.compact
        def __call__(self, h, x):
            for i in range(2):
                h, _ = self.kind(name=f"layer_{i}")(h + x)
            return h, None

    class Recurrent(nn.Module):
        kind: type

        @nn.compact
        def __call__(self, x):
            steps = nn.scan(Step, variable_broadcast="params", split_rngs={"params": False})
            h, _ = steps(self.kind, name="steps")(jnp.zeros_like(x[0]), x)
            return nn.Dense(3, name="readout")(h)

    inputs = jax.ShapeDtypeStruct((4, 2, 8), jnp.float32)
    plain, jitted = (
        from_linen(Recurrent(kind), "readout:input", inputs) for kind in (Layer, JittedLayer)
    )
    assert jitted.linear_maps == plain.linear_maps
    assert len(plain.linear_maps) == 3


def test_shapes_are_enough():
    """Documented contract: an abstract input will do, and equal descriptions are equal models.

    Models are closed over by jitted steps and compared by configurations, so they hash.
    """
    module = MLP((7, 6), 3)
    abstract = from_linen(module, "layer_*", INPUTS)
    assert abstract == from_linen(module, "layer_*", jnp.zeros((2, 8)))
    assert abstract.module is module
    assert hash(abstract) == hash(from_linen(MLP((7, 6), 3), "layer_*", INPUTS))
    assert abstract != from_linen(module, "layer_0", INPUTS)


def test_init_and_apply_are_the_modules():
    """Exact equivalence: a `Model` draws the module's parameters and computes its outputs, bit for bit."""
    module, key = MLP((7, 6), 3), jax.random.key(0)
    x = helpers.images().inputs
    model = from_linen(module, "layer_*", x)
    params = model.init(key, x)
    helpers.assert_identical(params, module.init(jax.random.split(key)[0], x)["params"])
    np.testing.assert_array_equal(model.apply(params, x), module.apply({"params": params}, x))
    abstract = jax.eval_shape(model.init, key, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, params)


class Compact(nn.Module):
    """Functional activations, so that its sites are in front of the next layer."""

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(5)(x))
        h = jnp.tanh(nn.Dense(4)(h))
        return nn.Dense(3)(h)


def test_a_module_lies_in_the_block_whose_end_comes_next():
    """Closed form: with blocks that end before the second and the third map, the first two maps lie
    in them and the third is the readout."""
    model = from_linen(Compact(), ["Dense_1:input", "Dense_2:input"], jnp.ones((2, 6)))
    assert dict(model.homes) == {("Dense_0",): "Dense_1:input", ("Dense_1",): "Dense_2:input"}
    assert model.readout == (("Dense_2",),)


def test_blocks_of_their_own_and_what_stands_around_them():
    """Closed form: sites inside, blocks outside. A module with a weight of its own that is called
    around the end of a block lies in none, and is no readout."""

    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(4, name="inside")(x)
            return nn.Dense(4, name="behind")(h) * self.param("gain", nn.initializers.ones, ())

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="readout")(Around(name="around")(nn.Dense(4, name="first")(x)))

    model = from_linen(Net(), "first", jnp.ones((2, 6)), blocks=["first", "around/inside"])
    assert model.blocks == ("first", "around/inside")
    assert dict(model.homes) == {
        ("first",): "first",
        ("around", "inside"): "around/inside",
    }
    assert model.readout == (("around", "behind"), ("readout",))


class Masked(nn.Module):
    """Asks for a mask, as published language models do; the mode has no default either."""

    @nn.compact
    def __call__(self, x, mask, deterministic, scale=1.0):
        h = nn.Dense(4, name="site")(x * mask * scale)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=deterministic)(h))


def test_a_module_of_several_arguments_needs_a_call():
    """Documented contract: the arguments by name and the remedy, in place of Python's `TypeError`; the
    mode of training is none of them."""
    with pytest.raises(InputError, match=r"^Masked has .* inputs \(mask\); .*call=lambda module"):
        from_linen(Masked(), "site", INPUTS)
