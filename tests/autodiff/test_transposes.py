"""Feedback in place of transposes, for modules of any kind: each map written out a second time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dfa_jax import tree
from dfa_jax.autodiff.transposes import with_feedback, with_matrices
from dfa_jax.errors import InputError
from dfa_jax.models import MLP, maps
from tests import helpers, reference

stop = jax.lax.stop_gradient


@pytest.fixture(autouse=True)
def _numpy_ranks():
    """Models are written here as users write theirs."""
    with jax.numpy_rank_promotion("allow"):
        yield


def through(f: Callable, x: Any, W: Any, B: Any) -> Any:
    """`f(x, W)`, true derivative by `W`, that of `f(x, B)` by `x`: what every map ought to be."""
    other = f(x, stop(B))
    return f(stop(x), W) + (other - stop(other))


def dot(x, p, B):
    """A dense layer in a reference: with its bias, if it has one."""
    return through(jnp.dot, x, p["kernel"], B["kernel"]) + p.get("bias", 0)


class Case(NamedTuple):
    """A model by its function, and the same written out with `through`, given all feedback `B`."""

    function: Callable[[Any, Any, Any], Any]
    written: Callable[[Any, Any, Any], Any]
    params: Any
    data: Any
    maps: set[str]
    rest: Any = None


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def like(**shapes):
    """Parameters, a dict of arrays of these shapes."""
    return {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def of_module(module: nn.Module, written: Callable, data: Any, maps: set[str]) -> Case:
    """A Flax module's case, with normal parameters."""
    variables = jax.eval_shape(lambda key: module.init(key, data), jax.random.key(0))
    params = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size) / 2, variables["params"])
    return Case(lambda p, x, rest: module.apply({"params": p}, x), written, params, data, maps)


def two_layers(middle: nn.Module) -> nn.Module:
    """The map in question between two others, so that an error passes it."""
    return nn.Sequential([nn.Dense(4), jnp.tanh, middle, jnp.tanh, nn.Dense(2)])


def between(written: Callable, name: str) -> Callable:
    """`two_layers` in a reference."""

    def function(p, B, x):
        h = jnp.tanh(dot(x, p["layers_0"], B["layers_0"]))
        h = jnp.tanh(written(p[name], B[name], h))
        return dot(h, p["layers_4"], B["layers_4"])

    return function


def einsum():
    module = two_layers(nn.Einsum((3, 4, 5), "...i,oip->...op"))

    def written(p, B, h):
        f = lambda x, W: jnp.einsum("...i,oip->...op", x, W)  # noqa: E731
        return through(f, h, p["kernel"], B["kernel"]) + p["bias"]

    maps = {"layers_0/kernel", "layers_2/kernel", "layers_4/kernel"}
    return of_module(module, between(written, "layers_2"), normal(6, 3), maps)


def weight_norm():
    """B goes through the same normalisation, with the kernel's own scale: a vector is no map."""

    def f(x, w):
        kernel, scale = w
        return x @ (kernel / jnp.sqrt((kernel**2).sum(0) + 1e-12) * scale)

    def written(p, B, x):
        scale = p["WeightNorm_0"]["Dense_1/kernel/scale"]
        h = jnp.tanh(dot(x, p["Dense_0"], B["Dense_0"]))
        pairs = [(q["Dense_1"]["kernel"], scale) for q in (p, B)]
        return f(stop(h), pairs[0]) + f(h, stop(pairs[1])) - stop(f(h, pairs[1]))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = jnp.tanh(nn.Dense(4)(x))
            return nn.WeightNorm(nn.Dense(2, use_bias=False, name="Dense_1"))(h)

    maps = {"Dense_0/kernel", "Dense_1/kernel"}
    return of_module(Model(), written, normal(6, 3), maps)


def tied_embedding():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(5, 4)
            table = self.param("positions", nn.initializers.normal(), (3, 4))
            h = embed(tokens) + table[None]
            return embed.attend(jnp.tanh(nn.Dense(4)(h)))

    def written(p, B, tokens):
        table, other = p["Embed_0"]["embedding"], B["Embed_0"]["embedding"]
        h = table[tokens] + p["positions"][None]
        return through(jnp.dot, jnp.tanh(dot(h, p["Dense_0"], B["Dense_0"])), table.T, other.T)

    tokens = np.arange(6).reshape(2, 3) % 5
    return of_module(Model(), written, tokens, {"Dense_0/kernel", "Embed_0/embedding"})


def local_convolution():
    module = two_layers(nn.ConvLocal(4, (3,), strides=2))

    def written(p, B, h):
        def f(h, W):  # W: [places, window * in, out], JAX puts the window's axis last
            rows = jnp.pad(h, ((0, 0), (1, 1), (0, 0)))
            windows = [rows[:, i : i + 3].swapaxes(1, 2).reshape(len(h), -1) for i in (0, 2, 4)]
            return jnp.einsum("pbi,pio->bpo", jnp.stack(windows), W)

        return through(f, h, p["kernel"], B["kernel"]) + p["bias"]

    maps = {"layers_0/kernel", "layers_2/kernel", "layers_4/kernel"}
    return of_module(module, between(written, "layers_2"), normal(6, 5, 3), maps)


def recurrent(cell: nn.RNNCellBase, step: Callable, maps: set[str]) -> Case:
    """A cell in `nn.RNN`, a loop over time, between two layers."""

    def written(p, B, x):
        h = jnp.tanh(dot(x, p["layers_0"], B["layers_0"]))
        carry, outputs = (jnp.zeros((len(x), 3)),) * 2, []
        for time in range(x.shape[1]):
            carry, y = step(p["layers_2"]["cell"], B["layers_2"]["cell"], carry, h[:, time])
            outputs.append(y)
        return dot(jnp.tanh(jnp.stack(outputs, 1)), p["layers_4"], B["layers_4"])

    names = {f"layers_2/cell/{name}/kernel" for name in maps}
    names |= {"layers_0/kernel", "layers_4/kernel"}
    return of_module(two_layers(nn.RNN(cell)), written, normal(2, 4, 3), names)


def lstm_step(p, B, carry, x):
    (c, h), gates = carry, {}
    for gate in "ifgo":
        inner, outer = f"i{gate}", f"h{gate}"
        gates[gate] = dot(x, p[inner], B[inner]) + dot(h, p[outer], B[outer])
    c = nn.sigmoid(gates["f"]) * c + nn.sigmoid(gates["i"]) * jnp.tanh(gates["g"])
    h = nn.sigmoid(gates["o"]) * jnp.tanh(c)
    return (c, h), h


def gru_step(p, B, carry, x):
    h = carry[1]
    r, z = (
        nn.sigmoid(dot(x, p[f"i{g}"], B[f"i{g}"]) + dot(h, p[f"h{g}"], B[f"h{g}"])) for g in "rz"
    )
    n = jnp.tanh(dot(x, p["in"], B["in"]) + r * dot(h, p["hn"], B["hn"]))
    h = (1 - z) * n + z * h
    return (h, h), h


LSTM = {f"{side}{gate}" for side in "ih" for gate in "ifgo"}
GRU = {f"{side}{gate}" for side in "ih" for gate in "rzn"}


def low_rank():
    """`nn.share_scope`: the adapter's matrices are in the dense layer's own scope."""

    class Adapter(nn.Module):
        inner: nn.Module

        def setup(self):
            nn.share_scope(self, self.inner)

        @nn.compact
        def __call__(self, x):
            init = nn.initializers.normal()
            down = self.param("down", init, (x.shape[-1], 2))
            return self.inner(x) + x @ down @ self.param("up", init, (2, 4))

    def written(p, B, h):
        low = through(jnp.dot, h, p["down"], B["down"])
        return dot(h, p, B) + through(jnp.dot, low, p["up"], B["up"])

    maps = {f"layers_{name}" for name in ("0/kernel", "2/kernel", "2/down", "2/up", "4/kernel")}
    module = two_layers(Adapter(nn.Dense(4)))
    return of_module(module, between(written, "layers_2"), normal(6, 3), maps)


def standardised(W):
    return (W - W.mean(1, keepdims=True)) / (W.std(1, keepdims=True) + 0.1)


def own_kernels():
    """A transposed kernel, a standardised one, DropConnect, and one that is picked by each row."""
    mask = np.arange(20).reshape(5, 4) % 3 > 0

    def function(p, data, mask):
        h = jnp.tanh(jax.checkpoint(lambda x, W: x @ W.T)(data["x"], p["first"]))
        h = jnp.tanh(h @ jax.jit(standardised)(p["second"]).T)
        few = data["sizes"][0] < 5
        third = jax.lax.cond(few, lambda W: 2 * W, jnp.ones_like, p["third"])  # chosen by data
        h = jnp.tanh(h @ jnp.where(mask, third, 0))
        h = jnp.tanh(jnp.einsum("bi,bio->bo", h, p["experts"][data["expert"]]))
        h = jnp.tanh(jax.lax.ragged_dot(h, p["groups"], data["sizes"]))
        chosen = jax.nn.one_hot(data["expert"], 3, dtype=h.dtype)
        return jnp.einsum("bi,bio->bo", h, jnp.einsum("be,eio->bio", chosen, p["mixed"]))

    def written(p, B, data):
        x, expert = data["x"], data["expert"]
        h = jnp.tanh(through(lambda x, W: x @ W.T, x, p["first"], B["first"]))
        pair = standardised(p["second"]).T, standardised(B["second"]).T
        h = jnp.tanh(through(jnp.dot, h, *pair))
        h = jnp.tanh(through(jnp.dot, h, 2 * p["third"] * mask, 2 * B["third"] * mask))
        rows = lambda x, W: (x[:, :, None] * W).sum(1)  # noqa: E731
        h = jnp.tanh(through(rows, h, p["experts"][expert], B["experts"][expert]))
        group = np.repeat(np.arange(3), data["sizes"])
        h = jnp.tanh(through(rows, h, p["groups"][group], B["groups"][group]))
        return through(rows, h, p["mixed"][expert], B["mixed"][expert])

    params = like(
        first=(4, 3),
        second=(5, 4),
        third=(5, 4),
        experts=(3, 4, 4),
        groups=(3, 4, 4),
        mixed=(3, 4, 2),
    )
    data = {"x": normal(6, 3), "expert": np.arange(6) % 3, "sizes": np.array([1, 2, 3])}
    return Case(function, written, params, data, set(params), mask)


CASES = {
    "einsum": einsum,
    "weight norm": weight_norm,
    "tied embedding": tied_embedding,
    "local convolution": local_convolution,
    "lstm": lambda: recurrent(nn.OptimizedLSTMCell(3, param_dtype=float), lstm_step, LSTM),
    "plain lstm": lambda: recurrent(nn.LSTMCell(3, param_dtype=float), lstm_step, LSTM),
    "gru": lambda: recurrent(nn.GRUCell(3, param_dtype=float), gru_step, GRU),
    "low rank": low_rank,
    "own kernels": own_kernels,
}


EVERY_DAY = set(CASES) - {"plain lstm", "gru"}  # which repeat the other cell


@pytest.mark.parametrize("name", helpers.at_night(CASES, *EVERY_DAY))
def test_every_map_written_out(name, x64):
    """Independent implementation: the model by hand, every map as `f(x, W) + f(x, B) - f(x, B)`.

    No module of these is known to the library; each would be backpropagation if its map were missed.
    """
    case = CASES[name]()
    found = maps.find_maps(case.function, case.params, case.data, case.rest)[0]
    assert {"/".join(one.path) for one in found.maps} == case.maps
    B = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size + 7), case.params)
    feedback = {one.path: tree.get(B, one.path) for one in found.maps}

    @jax.jit
    def run(params, data, feedback):
        def loss(y):
            return jnp.sin(y).sum()

        def ours(p):
            return loss(with_feedback(case.function, p, data, case.rest, feedback))

        def plain(p):
            return loss(case.function(p, data, case.rest))

        return jax.value_and_grad(ours)(params), plain(params)

    def theirs(p):
        return jnp.sin(case.written(p, B, case.data)).sum()

    (value, grads), plain = run(case.params, case.data, feedback)
    expected = jax.jit(jax.value_and_grad(theirs))(case.params)
    helpers.assert_identical(value, plain)
    helpers.assert_close((value, grads), expected, 1e-11)


def test_multilayer_perceptron_in_numpy(x64):
    """NumPy: feedback alignment of a perceptron, to 1e-12; the first layer's feedback is unread."""
    model = MLP((5, 4), 3)
    batch = helpers.images(num=6)
    params = helpers.normals(jax.eval_shape(model.init, jax.random.key(0), batch.inputs), 1)
    params = params["params"]

    def function(params, batch, rest):
        return helpers.LOSS(model.apply({"params": params}, batch.inputs), batch.targets).mean()

    found = maps.find_maps(function, params, batch, None)[0]
    paths = [("layer_0", "Dense_0"), ("layer_1", "Dense_0"), ("readout",)]
    assert found.maps == tuple((((*p, "kernel"), n)) for p, n in zip(paths, (8, 5, 4), strict=True))
    assert not any((found.entrywise, found.opaque, found.merged))
    B = {one.path: normal(*tree.get(params, one.path).shape, seed=7) for one in found.maps}
    B[found.maps[0].path] *= np.nan
    grads = jax.jit(jax.grad(lambda p: with_feedback(function, p, batch, None, B)))(params)
    labels = np.asarray(batch.targets)
    expected = reference.chain(
        helpers.to_float64(params), list(B.values()), batch.inputs, labels, "tanh"
    )
    helpers.assert_close(helpers.to_float64(grads), expected, 1e-12)


def test_strided_convolution_is_its_own_transpose():
    """`jax.linear_transpose` of the convolution with the feedback kernel, bits; groups and strides."""

    def convolve(x, W):
        return jax.lax.conv_general_dilated(
            x, W, (2, 1), "SAME", feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, W, B = (np.float32(normal(*shape)) for shape in ((2, 5, 4, 4), (3, 2, 2, 6), (3, 2, 2, 6)))
    y_error = np.float32(normal(2, 3, 4, 6, seed=5))

    def scaled(p, x, rest):
        return convolve(x * p["scale"], p["kernel"])

    @jax.jit
    def run(W, B, x, error):
        params = {"scale": 1.0, "kernel": W}
        found, pull = jax.vjp(
            lambda p, x: with_feedback(scaled, p, x, None, {("kernel",): B}), params, x
        )
        (expected,) = jax.linear_transpose(lambda x: convolve(x, B), x)(error)
        _, pull_true = jax.vjp(convolve, x, W)
        return (found, pull(error)), (convolve(x, W), expected, pull_true(error)[1])

    (y, (grads, x_error)), (y_true, expected, W_grad) = run(W, B + 1, x, y_error)
    helpers.assert_identical((y, x_error, grads["kernel"]), (y_true, expected, W_grad))
    found = maps.find_maps(scaled, {"scale": 1.0, "kernel": W}, x, None)[0]
    assert found.maps == ((("kernel",), 3 * 2 * 2),)


def test_signs_of_a_standardised_kernel_are_those_that_are_used(x64):
    """Invariance: a shift of the raw kernel changes neither the function nor the error by signs.

    Signs of the raw kernel, all positive after a shift, would be another backward pass.
    """

    def function(p, x, rest):
        return jnp.sin(jnp.tanh(x @ p["first"]) @ standardised(p["kernel"].T).T).sum()

    def signs(weight, B, fan_in):
        assert fan_in == 5  # the numbers that are summed
        return jnp.sign(weight) * jnp.abs(B)

    params, x = like(first=(3, 5), kernel=(5, 4)), normal(6, 3)
    B = normal(5, 4, seed=9)

    @jax.jit
    @jax.vmap
    def run(shift):
        shifted = params | {"kernel": params["kernel"] + shift}
        run = lambda p: with_feedback(function, p, x, None, {("kernel",): B}, signs)  # noqa: E731
        return jax.grad(run)(shifted)["first"]

    def written(p):
        W, other = (standardised(one.T).T for one in (p["kernel"], B))
        return jnp.sin(
            through(jnp.dot, jnp.tanh(x @ p["first"]), W, jnp.sign(W) * jnp.abs(other))
        ).sum()

    here, there = run(np.array([0.0, 5.0]))
    helpers.assert_close(there, here, 1e-9)
    helpers.assert_close(here, jax.jit(jax.grad(written))(params)["first"], 1e-11)


def test_spectral_norm_and_its_state(x64):
    """Independent implementation: the kernel over `u W v`, from Flax's own state, by hand."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = jnp.tanh(nn.Dense(4, name="first")(x))
            dense = nn.Dense(2, use_bias=False, name="second")
            return nn.SpectralNorm(dense, name="norm")(h, update_stats=True)

    x = normal(6, 3)
    variables = jax.eval_shape(Model().init, jax.random.key(0), x)
    params, stats = jax.tree.map(
        lambda leaf: normal(*leaf.shape, seed=leaf.size),
        (variables["params"], variables["batch_stats"]),
    )

    def function(params, x, rest):
        y, changed = Model().apply({"params": params} | rest, x, mutable=["batch_stats"])
        return jnp.sin(y).sum(), changed

    def used(W):
        unit = lambda v: v / jnp.sqrt((v**2).sum() + 1e-12)  # noqa: E731
        v = unit(stats["norm"]["second/kernel/u"] @ W.T)
        return W / (stop(v) @ W @ stop(unit(v @ W)).T)

    def written(p):
        h = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"])
        return jnp.sin(through(jnp.dot, h, used(p["second"]["kernel"]), used(B))).sum()

    state, place, B = {"batch_stats": stats}, ("second", "kernel"), normal(4, 2, seed=8)
    found = maps.find_maps(function, params, x, state)[0]
    assert [one.path for one in found.maps] == [("first", "kernel"), place]
    assert not any((found.entrywise, found.opaque, found.merged))
    ours = lambda p: with_feedback(function, p, x, state, {place: B})  # noqa: E731
    grads, changed = jax.jit(jax.grad(ours, has_aux=True))(params)
    helpers.assert_close(grads, jax.jit(jax.grad(written))(params), 1e-9)
    assert jax.tree.structure(changed) == jax.tree.structure(state)


def layer(h, p):
    """Of a stack: a branch on data, one on the device, a checkpoint."""
    h = h + jax.checkpoint(lambda h, W: jnp.tanh(h @ W))(h, p["W"])
    h = jax.lax.cond(h.sum() > 0, lambda h, W: h @ W.T, lambda h, W: h @ jnp.sin(W), h, p["W"])
    other = jax.lax.platform_dependent(
        h, p["V"], cpu=lambda h, V: h @ V, default=lambda h, V: 0 * h @ V
    )
    return jnp.tanh(other), h.sum()


def test_loop_of_branches_is_what_it_unrolls_to(x64):
    """Exact equivalence: every layer by hand, with `through`; the carry begins as a parameter.

    Both branches are taken, and the feedback of a stack has its layer axis in front.
    """
    params = like(first=(4,), W=(6, 4, 4), V=(6, 4, 4))
    x, B = normal(3, 4), {"W": normal(6, 4, 4, seed=5), "V": normal(6, 4, 4, seed=6)}

    def function(p, x, rest):
        rows = {name: p[name] for name in B}
        start = p["first"] + jnp.zeros_like(x), jnp.eye(4) @ p["V"][0]

        def body(carry, row):
            h, seen = layer(carry[0] + x, row)
            return (h, carry[1] @ row["W"]), seen

        (h, product), seen = jax.lax.scan(body, start, rows, reverse=True)
        return jnp.sin(h @ product).sum(), seen

    def written(p):
        h, product, other = p["first"] + jnp.zeros_like(x), p["V"][0], B["V"][0]
        for i in reversed(range(6)):
            W, V, BW, BV = p["W"][i], p["V"][i], B["W"][i], B["V"][i]
            h = h + x
            h = h + jnp.tanh(through(jnp.dot, h, W, BW))
            one, two = through(jnp.dot, h, W.T, BW.T), through(jnp.dot, h, jnp.sin(W), jnp.sin(BW))
            h = jnp.tanh(through(jnp.dot, jnp.where(h.sum() > 0, one, two), V, BV))
            product, other = product @ W, other @ BW
        return jnp.sin(through(jnp.dot, h, product, other)).sum()

    feedback = {(name,): one for name, one in B.items()}
    ours = lambda p: with_feedback(function, p, x, None, feedback)  # noqa: E731
    (value, seen), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    expected = jax.jit(jax.value_and_grad(written))(params)
    helpers.assert_close((value, grads), expected, 1e-11)
    assert (seen > 0).any()
    assert (seen < 0).any()
    found = maps.find_maps(function, params, x, None)[0]
    assert found.maps == ((("W",), 4), (("V",), 4))
    assert found.merged == (("V",), ("W",))


class Everything(nn.Module):
    """One of each way in which parameters meet data without a product."""

    @nn.compact
    def __call__(self, tokens):
        h = nn.Embed(5, 4, name="embed")(tokens)
        h = h + self.param("positions", nn.initializers.normal(), (3, 4))
        h = nn.Dense(4, name="dense")(nn.LayerNorm(name="on_embedding")(h))
        h = nn.BatchNorm(use_running_average=False, name="batch")(nn.LayerNorm(name="norm")(h))
        h = h + self.param("layer_scale", nn.initializers.ones, (4,)) * nn.PReLU(name="prelu")(h)
        h = jnp.concatenate(
            [h, jnp.tile(self.param("class", nn.initializers.ones, (4,)), (2, 1, 1))], 1
        )
        h = jnp.abs(h) ** self.param("power", nn.initializers.ones, ())
        return h / self.param("temperature", nn.initializers.ones, ())


def test_what_is_not_swapped_has_a_name():
    """By hand: scales, slopes and divisors are entrywise; a power is opaque; what is added is neither.

    Whoever trains such a model is to be told, for the error passes those by their true derivative.
    """
    module, tokens = Everything(), np.arange(6).reshape(2, 3) % 5
    variables = jax.eval_shape(module.init, jax.random.key(0), tokens)
    state = {"batch_stats": variables["batch_stats"]}

    def function(params, tokens, rest):
        return module.apply({"params": params} | rest, tokens, mutable=["batch_stats"])

    found = maps.find_maps(function, variables["params"], tokens, state)[0]
    assert found.maps == ((("dense", "kernel"), 4),)
    names = ["on_embedding/scale", "norm/scale", "batch/scale", "prelu/negative_slope"]
    names += ["layer_scale", "temperature"]
    assert ["/".join(path) for path in found.entrywise] == names
    assert found.opaque == (("power",),)
    assert found.merged == ()


def test_programs_that_are_not_looked_into_are_opaque():
    """By hand: a layer with its own derivative, a loop without end, two layers shared out by hand.

    Two layers of a `shard_map` see inputs only: the error between them passes inside.
    """
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    own = jax.custom_vjp(lambda x, W: x @ W)
    own.defvjp(lambda x, W: (x @ W, (x, W)), lambda kept, e: (e @ kept[1].T, kept[0].T @ e))

    def function(p, x, rest):
        parts = jax.shard_map(
            lambda x, U, V: jnp.tanh(x @ U) @ V,
            mesh=mesh,
            in_specs=(PartitionSpec("data"), PartitionSpec(), PartitionSpec()),
            out_specs=PartitionSpec("data"),
        )(x, p["U"], p["V"])
        once = own(own(x, p["first"]), p["second"])
        more = jax.lax.while_loop(lambda h: h.sum() < 1, lambda h: h @ p["loop"], x)
        return parts + once + more

    names = ("U", "V", "first", "second", "loop")
    params = dict.fromkeys(names, np.ones((3, 3), np.float32))
    found = maps.find_maps(function, params, np.ones((2, 3), np.float32), None)[0]
    assert found.maps == ()
    assert set(found.opaque) == {(name,) for name in ("U", "V", "second", "loop")}


def test_no_error_passes_where_nothing_learns_below():
    """By hand: what only inputs pass through, or what is cut, is refused to nobody."""

    def function(p, x, rest):
        h = jax.lax.stop_gradient(x * p["scale"]) ** p["power"]
        return jax.lax.stop_gradient(h @ p["W"]) * p["gain"] @ p["V"]

    params = {"scale": 1.0, "power": 1.0, "W": np.ones((3, 3)), "gain": 1.0, "V": np.ones((3, 2))}
    found = maps.find_maps(function, params, np.ones((2, 3)), None)[0]
    assert found.maps == ((("W",), 3), (("V",), 3))
    assert (found.entrywise, found.opaque) == ((), ())


def wrong(x):
    """The identity, with a derivative of 5."""
    return x


wrong = jax.custom_jvp(wrong)
wrong.defjvp(lambda primals, tangents: (primals[0], 5 * tangents[0]))


def test_derivatives_and_effects_of_the_users_own():
    """By hand: a custom derivative holds for an activation, and for a kernel; a callback runs once."""
    seen = []

    def function(p, x, rest):
        h = wrong(x @ p["W"])
        jax.debug.callback(seen.append, h.sum())
        return (h @ wrong(p["V"])).sum()

    params = {"W": np.eye(2, dtype=np.float32), "V": np.ones((2, 1), np.float32)}
    B, x = {("V",): np.float32([[2], [3]])}, np.ones((1, 2), np.float32)
    grads = jax.jit(jax.grad(lambda p: with_feedback(function, p, x, None, B)))(params)
    jax.effects_barrier()
    assert len(seen) == 1
    np.testing.assert_array_equal(grads["W"], [[10, 15], [10, 15]])
    np.testing.assert_array_equal(grads["V"], [[5], [5]])


def two(p, x, rest):
    """Two maps in half precision, the second in a call of its own."""
    h = jnp.tanh(x.astype(jnp.bfloat16) @ p["W"].astype(jnp.bfloat16) + rest)
    y = jax.jit(lambda h, V: h @ V.astype(h.dtype))(h, p["V"])
    return jnp.sin(y.astype(jnp.float32)).sum()


def two_written(p, B, x):
    h = jnp.tanh(x.astype(jnp.bfloat16) @ p["W"].astype(jnp.bfloat16))
    y = through(jnp.dot, h, p["V"].astype(h.dtype), B.astype(h.dtype))
    return jnp.sin(y.astype(jnp.float32)).sum()


def half_set():
    params = jax.tree.map(np.float32, like(W=(3, 4), V=(4, 2)))
    return params, np.float32(normal(8, 3, seed=4)), np.float32(normal(4, 2, seed=5))


def test_half_precision_batched_and_in_a_loop():
    """Independent implementation, one member at a time, where all are under `vmap` and in a `scan`.

    Ensembles are trained so, with their feedback in common. To a few roundings of 2^-8.
    """
    params, x, B = half_set()
    some = np.float32([1, 2, -3])
    members = jax.tree.map(lambda leaf: np.multiply.outer(some, leaf), params)

    def ours(p, B):
        swapped = lambda p: with_feedback(two, p, x, jnp.bfloat16(0), {("V",): B})  # noqa: E731
        return jax.grad(swapped)(p)

    @jax.jit
    def run(members, B):
        def body(carry, _):
            return carry, jax.vmap(ours, (0, None))(carry, B)

        return jax.lax.scan(body, members, None, length=2)[1]

    found = run(members, B)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], members)
        expected = jax.jit(jax.grad(lambda p: two_written(p, B, x)))(member)
        helpers.assert_close(jax.tree.map(lambda leaf, i=i: leaf[1, i], found), expected, 2e-2)


def test_explicit_axes():
    """Exact equivalence with one device: bits are rounded otherwise; a gradient keeps its sharding.

    `jax.make_mesh` makes such axes by default, and every value's type then says how it is split.
    """
    mesh = jax.make_mesh((8,), ("data",))
    params, x, B = half_set()
    feedback = {("V",): B}

    def function(p, x, rest):
        h = jax.nn.relu(jnp.einsum("bi,io->bo", x, p["W"]))
        rows = lambda h, W: (jax.checkpoint(lambda h: jnp.tanh(h @ p["W"].T @ W))(h), None)  # noqa: E731
        h, _ = jax.lax.scan(rows, h, jnp.stack([p["W"]] * 2))
        return jnp.sin(h @ p["V"]).sum()

    def grads(params, x):
        swapped = lambda p, x: with_feedback(function, p, x, None, feedback)  # noqa: E731
        return jax.grad(swapped, (0, 1))(params, x)

    expected = jax.jit(grads)(params, x)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        found = jax.jit(grads)(
            *jax.device_put((params, x), (NamedSharding(mesh, PartitionSpec()), rows))
        )
    assert found[1].sharding.spec[0] == "data"
    helpers.assert_close(found, expected, 1e-5)


def test_no_product_more():
    """By counting: as many products in the gradient as of the plain function; none for first inputs."""
    params, x, B = half_set()

    def products(function):
        return str(jax.make_jaxpr(jax.grad(function))(params)).count("dot_general[")

    feedback = {("V",): B, ("W",): params["W"]}
    swapped = products(lambda p: with_feedback(two, p, x, jnp.bfloat16(0), feedback))
    assert swapped == products(lambda p: two(p, x, jnp.bfloat16(0))) == 5


def test_matrices_that_were_used():
    """By hand: the kernel as applied, and what is made of feedback; a loop's have its axis in front."""
    params, B = (
        like(W=(3, 2, 4), V=(4, 2)),
        {"W": normal(3, 2, 4, seed=8), "V": normal(4, 2, seed=9)},
    )

    def function(p, x, rest):
        h, _ = jax.lax.scan(lambda h, W: (h @ (2 * W).T @ p["V"].T, None), x, p["W"])
        return h @ p["V"]

    found = maps.find_maps(function, params, normal(5, 4), None)[0]
    assert found.maps == ((("W",), 4), (("V",), 2))  # as it is used first
    feedback = {(name,): one for name, one in B.items()}
    halved = lambda W, B, fan_in: B / fan_in  # noqa: E731
    run = jax.jit(lambda p, x: with_matrices(function, p, x, None, feedback, halved))
    y, used = run(params, normal(5, 4))
    assert y.shape == (5, 2)
    turned = lambda one: np.float32(2 * one.swapaxes(1, 2))  # noqa: E731
    pairs = {("W",): (turned(params["W"]), turned(B["W"]) / 4)}
    for both in zip(used[("W",)], pairs[("W",)], strict=True):
        np.testing.assert_allclose(*both, rtol=1e-6)
    weight, matrix = used[("V",)]
    np.testing.assert_allclose(weight, np.stack([np.float32(params["V"].T)] * 3), rtol=1e-6)
    np.testing.assert_allclose(matrix, np.stack([np.float32(B["V"].T)] * 3) / 2, rtol=1e-6)


def test_refusals():
    """Documented contract: feedback for no parameter, or of another shape, is named."""
    params, x, B = half_set()
    run = lambda feedback: with_feedback(two, params, x, 0.0, feedback)  # noqa: E731
    with pytest.raises(InputError, match="unknown parameter 'VV'; did you mean 'V'"):
        run({("VV",): B})
    with pytest.raises(
        InputError, match=r"of parameter 'V' has shape \(2, 4\); expected .* \(4, 2\)"
    ):
        run({("V",): B.T})
