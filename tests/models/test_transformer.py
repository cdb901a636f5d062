"""Transformer: its arithmetic, its sizes, and what may not depend on what."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from dfa_jax.errors import InputError
from dfa_jax.models import Transformer, transformer
from tests import helpers
from tests.helpers import LOSS, tokens

SMALL = Transformer(num_outputs=11, num_layers=2, width=8, num_heads=2, mlp_factor=3, context=6)


def drawn(module, seed=1, scale=0.5, time=5):
    """Random parameters, biases and gains too, in the default precision."""
    like = jax.eval_shape(module.init, jax.random.key(0), tokens(time=time).inputs)["params"]
    return helpers.normals(like, seed, scale)


def dense(x, layer):
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def norm(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return y * layer["scale"] + layer.get("bias", 0.0)


def place(t, i, width):
    """Angle of pair `i` at place `t`."""
    return t / 10_000 ** (2 * i / width)


def rotated(x):
    """One head's vectors `[time, d]`: pair (i, i + d/2) as a complex number, turned."""
    half = x.shape[1] // 2
    turned = np.array(
        [
            [
                (x[t, i] + 1j * x[t, i + half]) * np.exp(1j * place(t, i, 2 * half))
                for i in range(half)
            ]
            for t in range(len(x))
        ]
    )
    return np.concatenate([turned.real, turned.imag], -1)


def attention(x, layer, num_heads, rotary):
    """One window `[time, width]`, head by head and place by place."""
    queries, keys, values = np.split(dense(x, layer["qkv"]), 3, axis=-1)
    heads = []
    for q, k, v in zip(*(np.split(a, num_heads, -1) for a in (queries, keys, values)), strict=True):
        if rotary:
            q, k = rotated(q), rotated(k)
        rows = [
            softmax(k[: t + 1] @ q[t] / math.sqrt(q.shape[1])) @ v[: t + 1] for t in range(len(x))
        ]
        heads.append(np.stack(rows))
    return dense(np.concatenate(heads, -1), layer["out"])


def gelu(a):
    """Its tanh form (Hendrycks and Gimpel, 2016)."""
    return a / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def numpy_transformer(module, params, window):
    """Logits of one window of tokens, from the equations."""
    table = params["embed"]["tokens"]["embedding"]
    x = table[window]
    if module.positions == "learned":
        x = x + params["embed"]["positions"][: len(window)]
    if module.positions == "sinusoidal":
        half = module.width // 2
        angle = np.array(
            [[place(t, i, module.width) for i in range(half)] for t in range(len(window))]
        )
        x = x * math.sqrt(module.width) + np.concatenate([np.sin(angle), np.cos(angle)], -1)
    phi = {"gelu": gelu, "relu": lambda a: np.maximum(a, 0)}[module.activation]
    for i in range(module.num_layers):
        layers = params[f"block_{i}"]
        functions = {
            "attention": lambda h, layer: attention(
                h, layer, module.num_heads, module.positions == "rotary"
            ),
            "mlp": lambda h, layer: dense(phi(dense(h, layer["up"])), layer["down"]),
        }
        for name, f in functions.items():
            layer = layers[name]
            if module.norm == "pre":
                x = x + f(norm(x, layer["norm"]), layer)
            else:
                x = norm(x + f(x, layer), layer["norm"])
    if module.norm == "pre":
        x = norm(x, params["final_norm"])
    return x @ table.T if module.tied else dense(x, params["unembed"])


POSITIONS = ("learned", "sinusoidal", "rotary")
OPTIONS = list(itertools.product(("pre", "post"), POSITIONS, (False, True)))
HALF = OPTIONS[::4] + OPTIONS[3::4]  # every two options meet


@pytest.mark.parametrize(
    ("form", "positions", "tied"),
    [pytest.param(*c, marks=() if c in HALF else pytest.mark.nightly) for c in OPTIONS],
)
def test_forward_pass_is_numpys(x64, form, positions, tied):
    """Independent implementation: the equations in NumPy, place by place, in double precision.

    (GELU and biases with the tied unembedding, ReLU and none with the other.)
    """
    module = SMALL.clone(
        norm=form,
        positions=positions,
        tied=tied,
        use_bias=tied,
        activation="gelu" if tied else "relu",
    )
    params, windows = drawn(module), tokens(time=5).inputs
    found = jax.jit(module.apply)({"params": params}, windows)
    wide = helpers.to_float64(params)
    for window, logits in zip(np.asarray(windows), found, strict=True):
        expected = numpy_transformer(module, wide, window)
        np.testing.assert_allclose(logits, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("form", "positions", "tied"), [("pre", "rotary", False), ("post", "learned", True)]
)
def test_gradient_is_the_slope(x64, form, positions, tied):
    """Independent implementation: along each of ten random directions, central differences in NumPy.

    Something held fixed in the backward pass would leave every forward pass as it is.
    """
    module = SMALL.clone(norm=form, positions=positions, tied=tied)
    params, batch = drawn(module), tokens(num=2, time=4)
    _, grads = value_and_grad(module, params, batch)
    wide = helpers.to_float64(params)

    def loss(params):
        losses = [
            -np.log(softmax(numpy_transformer(module, params, window), -1)[np.arange(4), target])
            for window, target in zip(*map(np.asarray, batch), strict=True)
        ]
        return np.mean(losses)

    for seed in range(10):
        v = helpers.to_float64(helpers.normals(params, seed + 5))
        ends = [loss(jax.tree.map(lambda p, v, s=s: p + s * 1e-5 * v, wide, v)) for s in (1, -1)]
        products = jax.tree.map(lambda g, v: np.sum(np.asarray(g) * v), grads, v)
        slope = sum(jax.tree.leaves(products))
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, slope, rtol=1e-5, atol=1e-6)


def test_gelu_is_near_its_definition():
    """Closed form: x Phi(x), to the 5e-4 that the tanh form is known to differ by."""
    a = np.linspace(-4, 4, 81)
    assert np.abs(gelu(a) - a * (1 + erf(a / math.sqrt(2))) / 2).max() < 5e-4


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_later_tokens_never_influence_earlier_logits(positions):
    """Proof of absence: other tokens from place 3 on leave every bit before it, and move what follows.

    A language model that sees its target learns nothing of use.
    """
    module = SMALL.clone(positions=positions)
    params = drawn(module)
    run = jax.jit(module.apply)
    windows = np.asarray(tokens(time=6).inputs)
    others = windows.copy()
    others[:, 3:] = (others[:, 3:] + 4) % 11
    before, after = (np.asarray(run({"params": params}, w)) for w in (windows, others))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()


def stacked(params, num_layers=2):
    """Parameters of the unrolled model as those of the scanned one."""
    layers = [params[f"block_{i}"] for i in range(num_layers)]
    rest = {name: part for name, part in params.items() if not name.startswith("block_")}
    return rest | {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def value_and_grad(module, params, batch):
    def objective(params):
        return LOSS(module.apply({"params": params}, batch.inputs), batch.targets).mean()

    return jax.jit(jax.value_and_grad(objective))(params)


@pytest.mark.parametrize(
    ("form", "scan", "remat"),
    [
        pytest.param("pre", True, False, marks=pytest.mark.slow),
        ("post", True, True),
        pytest.param("pre", False, True, marks=pytest.mark.slow),
    ],
)
def test_scan_and_remat_change_nothing(x64, form, scan, remat):
    """Exact equivalence: loss and gradients of the plain unrolled blocks with the same parameters."""
    plain = SMALL.clone(norm=form)
    params, batch = drawn(plain), tokens(time=5)
    loss, grads = value_and_grad(plain, params, batch)
    copied = stacked if scan else lambda tree: tree
    found = value_and_grad(plain.clone(scan=scan, remat=remat), copied(params), batch)
    np.testing.assert_allclose(found[0], loss, rtol=1e-13)
    helpers.assert_close(found[1], copied(grads), 1e-11)


def test_tied_is_untied_with_the_same_matrix(x64):
    """Exact equivalence: equal logits, and the one matrix gets the sum of the two gradients."""
    tied = SMALL.clone(tied=True, use_bias=False)
    params, batch = drawn(tied), tokens(time=5)
    kernel = np.asarray(params["embed"]["tokens"]["embedding"]).T
    loss, grads = value_and_grad(tied, params, batch)
    untied = value_and_grad(tied.clone(tied=False), params | {"unembed": {"kernel": kernel}}, batch)
    np.testing.assert_allclose(untied[0], loss, rtol=1e-13)
    shared = untied[1].pop("unembed")["kernel"].T
    untied[1]["embed"]["tokens"]["embedding"] += shared
    helpers.assert_close(grads, untied[1], 1e-11)


@pytest.mark.parametrize("form", [pytest.param("pre", marks=pytest.mark.slow), "post"])
def test_half_precision_is_near_and_only_inside(form):
    """Independent run: bf16 against f32 with the same parameters, to some of its roundings (2^-8).

    Parameters, their gradients and the logits stay float32; what is between does not.
    """
    full = SMALL.clone(norm=form)
    half = full.clone(dtype="bfloat16")
    batch = tokens(time=5)
    params = jax.jit(full.init)(jax.random.key(0), batch.inputs)["params"]
    drawn = jax.eval_shape(half.init, jax.random.key(0), batch.inputs)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, params)

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, params):
        def objective(params):
            logits = module.apply({"params": params}, batch.inputs)
            return LOSS(logits, batch.targets).mean(), logits

        return jax.grad(objective, has_aux=True)(params)

    (found, logits), (grads, expected) = (run(m, params) for m in (half, full))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert not np.array_equal(logits, expected)
    error = np.concatenate(
        [
            np.ravel(np.subtract(a, b))
            for a, b in zip(*map(jax.tree.leaves, (found, grads)), strict=True)
        ]
    )
    whole = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
    assert np.linalg.norm(error) < 0.03 * np.linalg.norm(whole)
    _, mid = jax.eval_shape(
        lambda p, x: half.apply({"params": p}, x, capture_intermediates=True), params, batch.inputs
    )
    stream = mid["intermediates"]["block_0"]["attention"]["__call__"][0]
    assert stream.dtype == jnp.bfloat16


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    ("form", "positions", "tied"),
    [("pre", "learned", False), ("post", "rotary", False), ("pre", "sinusoidal", True)],
)
def test_parameter_counts(form, positions, tied, use_bias, scan):
    """Closed form: 12 d^2 a block at factor 4 and its biases, two norms, tables, unembedding."""
    d, layers, vocabulary, context = 16, 3, 29, 10
    module = Transformer(
        num_outputs=vocabulary, num_layers=layers, width=d, num_heads=4, context=context,
        norm=form, positions=positions, tied=tied, use_bias=use_bias, scan=scan,
    )  # fmt: skip
    b = int(use_bias)
    block = 12 * d * d + b * (3 * d + d + 4 * d + d) + 2 * (1 + b) * d
    expected = layers * block + vocabulary * d
    expected += context * d if positions == "learned" else 0
    expected += 0 if tied else vocabulary * (d + b)
    expected += (1 + b) * d if form == "pre" else 0
    like = jax.eval_shape(module.init, jax.random.key(0), tokens(time=5).inputs)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like)) == expected


@pytest.mark.parametrize("scan", [False, True])
def test_start(scan):
    """Closed form: standard deviations within 4 of their errors; layers of a stack are independent."""
    d, layers = 64, 3
    module = Transformer(num_outputs=300, num_layers=layers, width=d, context=70, scan=scan)
    params = jax.jit(module.init)(jax.random.key(0), tokens(time=5).inputs)["params"]
    blocks = params["blocks"] if scan else stacked(params, layers)["blocks"]
    std = math.sqrt(2 / (5 * d))
    onto = std / math.sqrt(2 * layers)
    matrices = [
        (blocks["attention"]["qkv"]["kernel"], std),
        (blocks["attention"]["out"]["kernel"], onto),
        (blocks["mlp"]["up"]["kernel"], std),
        (blocks["mlp"]["down"]["kernel"], onto),
        (params["embed"]["tokens"]["embedding"], std),
        (params["embed"]["positions"], std),
        (params["unembed"]["kernel"], std),
    ]
    for matrix, expected in matrices:
        z = (np.std(matrix) / expected - 1) * math.sqrt(2 * matrix.size)
        assert abs(z) < 4
    first, second = np.asarray(blocks["mlp"]["up"]["kernel"])[:2].reshape(2, -1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(len(first))
    assert (np.asarray(blocks["attention"]["norm"]["scale"]) == 1).all()
    assert not np.asarray(blocks["attention"]["qkv"]["bias"]).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "num_heads is 3 and width is 8; expected a divisor"),
        (
            {"num_heads": 8, "positions": "rotary"},
            "a head has 1 units (width 8, num_heads 8); rotary",
        ),
        ({"context": 4}, "windows of 5 tokens and context is 4; shorten"),
        ({"num_layers": 0}, "num_layers is 0; expected at least 1"),
        ({"width": 0}, "width is 0"),
        ({"num_outputs": -1}, "num_outputs is -1"),
        ({"mlp_factor": 0}, "mlp_factor is 0"),
    ],
)
def test_refusals(options, words):
    """Documented contract: the value, what was expected, the remedy."""
    with pytest.raises(InputError) as error:
        SMALL.clone(**options).init(jax.random.key(0), tokens(time=5).inputs)
    assert words in str(error.value)


@pytest.mark.parametrize("outputs", [3, 12])
def test_product_is_a_matrix_product(outputs):
    """Exact equivalence: value, tangent and gradients of `x @ W`, narrowing and widening."""
    x, W = map(np.asarray, helpers.normals((np.zeros((2, 4, 6)), np.zeros((6, outputs))), 0))
    dims = (((2,), (0,)), ((), ()))
    e = x[..., :1] + np.arange(outputs, dtype=np.float32)

    def ours(x, W):
        return transformer.product(x, W, dims)

    @functools.partial(jax.jit, static_argnums=0)
    def differentiated(f, x, W):
        return *jax.jvp(f, (x, W), (x + 1, W - 1)), jax.vjp(f, x, W)[1](e)

    value, tangent, grads = differentiated(ours, x, W)
    np.testing.assert_allclose(value, x @ W, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tangent, (x + 1) @ W + x @ (W - 1), rtol=1e-4)
    helpers.assert_close(grads, differentiated(jnp.matmul, x, W)[2], 1e-6)


def test_gradient_of_a_narrow_map_is_computed_transposed():
    """Oracle: the compiled program. The compiler would turn the product back, into the slower one."""
    x, W = jnp.ones((64, 12)), jnp.ones((12, 3))
    dims = (((1,), (0,)), ((), ()))
    gradient = jax.jit(jax.grad(lambda W, x: jnp.square(transformer.product(x, W, dims)).sum()))
    assert "f32[3,12]{1,0} dot(" in gradient.lower(W, x).compile().as_text()
