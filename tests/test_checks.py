"""The two checks that users run on models of their own: do they find what they are for?"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import checks
from dfa_jax.autodiff import sites
from dfa_jax.models import MLP, LocalMixer, from_linen
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    DirectFeedbackAlignment,
    LocalLosses,
    Shallow,
    functional,
)
from dfa_jax.types import Batch
from tests import helpers
from tests.train import small


class Block(nn.Module):
    """Normalisation, two dense maps and a skip connection, all inside the block."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(5)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(jnp.tanh(h))


class Blocks(nn.Module):
    """Blocks with inner skips: the cut after each is the only way down."""

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(3, name="readout")(x)


class Around(nn.Module):
    """A skip connection from `below` around the site `middle` (or not)."""

    skip: bool = True

    @nn.compact
    def __call__(self, x):
        below = nn.Dense(6, name="below")(x)
        middle = jnp.tanh(nn.Dense(6, name="middle")(jnp.tanh(below)))
        above = nn.Dense(6, name="above")(middle + below if self.skip else middle)
        return nn.Dense(3, name="readout")(jnp.tanh(above))


class Tied(nn.Module):
    """An autoencoder's trick: the readout is the embedding's transpose."""

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(8, 6, name="embed")
        h = nn.Dense(6, name="middle")(embed(x))
        return embed.attend(jnp.tanh(nn.Dense(6, name="above")(h)))


ISOLATED = {
    "perceptron": helpers.mlp,
    "convolutional": helpers.convnet,
    "scanned": helpers.scanned,
    "inner skips": lambda: helpers.made(Blocks(), "block_*", helpers.images()),
    "no skip": lambda: helpers.made(Around(skip=False), "middle", helpers.images()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ISOLATED)
def test_isolated_models_pass(name):
    """Oracle: construction. Each model has one path down, through its sites; a false alarm would
    send users looking for a leak that is not there."""
    report = checks.check_isolation(*ISOLATED[name]())
    assert report.isolated, report
    assert "no gradient moves" in str(report)


def test_skip_connection_around_a_site_is_found():
    """Oracle: construction. `below` feeds `above` directly, so its gradient is partly
    backpropagation; the site's own parameters are not reached."""
    report = checks.check_isolation(*helpers.made(Around(), "middle", helpers.images()))
    assert {leak.site for leak in report.leaks} == {"middle"}
    assert {leak.parameter for leak in report.leaks} == {"below/kernel", "below/bias"}
    assert all(leak.change > 0.01 for leak in report.leaks)
    text = str(report)
    assert "not isolated" in text
    assert "below/kernel is reached around site 'middle' (its gradient moves by" in text
    assert len(text.splitlines()) == 3


@pytest.mark.slow
def test_tied_weight_is_found():
    """Oracle: construction. The embedding is used below the site and in the readout, so that part
    of its gradient is the true one: not what 'DFA on the embedding' would be taken to mean."""
    tokens = Batch(jnp.array([[0, 1], [2, 7]]), jnp.array([[1, 2], [3, 0]]))
    model = from_linen(Tied(), "middle", tokens.inputs)
    params = model.init(jax.random.key(0), tokens.inputs)
    report = checks.check_isolation(model, params, tokens)
    assert [(leak.site, leak.parameter) for leak in report.leaks] == [("middle", "embed/embedding")]


@pytest.mark.parametrize(
    "missing",
    [*(pytest.param(f"layer_{i}", marks=pytest.mark.slow) for i in (0, 2)), "layer_1"],
)
def test_a_site_that_does_not_cut_is_caught(monkeypatch, missing):
    """Oracle: sabotage. The site is recorded but not cut; a check that passes now would pass
    always. The report must name this site and what lies at and below it, and no other site."""
    case = helpers.made(MLP((6, 5, 4), 3), "layer_*", helpers.images())
    cut = sites.at_sites

    def all_but_one(model, order, arrays):
        orders = cut(model, order, arrays)
        if order == "cut":
            path = (missing,)
            orders[path] = {"output": {"perturb": jnp.zeros(())}}
        return orders

    monkeypatch.setattr(sites, "at_sites", all_but_one)
    report = checks.check_isolation(*case)
    assert {leak.site for leak in report.leaks} == {missing}
    assert f"{missing}/Dense_0/kernel" in {leak.parameter for leak in report.leaks}


FLOPS = {
    "dense": (lambda x, w: x @ w, [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
    "batched": (functools.partial(jnp.einsum, "bij,bjk->bik"), [(7, 3, 4), (7, 4, 5)], 2 * 7 * 60),
    "two axes at once": (
        functools.partial(jnp.einsum, "bij,ijk->bk"),
        [(3, 4, 2), (4, 2, 5)],
        2 * 3 * 8 * 5,
    ),
    "matrix and vector": (lambda a, x: a @ x, [(3, 4), (4,)], 2 * 12),
    "elementwise": (lambda a, b: a * b + b, [(3, 4), (3, 4)], 0),
    "two of them": (lambda x, w: jnp.tanh(x @ w) @ w.T, [(3, 4), (4, 5)], 2 * 2 * 60),
    "inside a jit": (lambda x, w: jax.jit(jax.jit(jnp.dot))(x, w), [(3, 4), (4, 5)], 120),
    "scan": (
        lambda x, w: jax.lax.scan(lambda h, _: (h @ w, None), x, length=6)[0],
        [(3, 4), (4, 4)],
        6 * 2 * 3 * 16,
    ),
    "scan in a scan": (
        lambda x, w: jax.lax.scan(
            lambda h, _: (jax.lax.scan(lambda g, _: (g @ w, None), h, length=5)[0], None),
            x,
            length=6,
        )[0],
        [(3, 4), (4, 4)],
        30 * 2 * 3 * 16,
    ),
    "branches, of which one is taken": (
        lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w @ w),
        [(3, 4), (4, 4)],
        2 * 2 * 3 * 16,
    ),
    "checkpoint": (lambda x, w: jax.checkpoint(jnp.dot)(x, w), [(3, 4), (4, 5)], 120),
}


@pytest.mark.parametrize("name", FLOPS)
def test_matmul_flops_against_closed_forms(name):
    """Oracle: two FLOPs a multiply-add, counted by hand. XLA counts a loop's body once, whatever
    its length, which is why this count is made from the structure."""
    function, shapes, expected = FLOPS[name]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    assert checks.matmul_flops(jax.make_jaxpr(function)(*arguments)) == expected


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_flops_against_the_closed_form(stride, groups):
    """Oracle: outputs times kernel area times input channels a group, by hand."""
    conv = nn.Conv(6, (3, 5), strides=stride, feature_group_count=groups, use_bias=False)
    images = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    program = jax.make_jaxpr(lambda x: conv.init_with_output(jax.random.key(0), x)[0])(images)
    outputs = 2 * (8 // stride) ** 2 * 6
    assert checks.matmul_flops(program) == 2 * outputs * 3 * 5 * (4 // groups)


def abstract(widths, batch, inputs, classes):
    """A perceptron, its abstract parameters and batch: nothing of it is ever computed."""
    x = jax.ShapeDtypeStruct((batch, inputs), jnp.float32)
    model = from_linen(MLP(widths, classes), "layer_*", x)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return model, params, Batch(x, jax.ShapeDtypeStruct((batch,), jnp.int32))


def estimate_flops(rule, model, params, batch):
    """Structure of the whole estimate, as XLA would see it before it removes what nobody reads."""

    def run(key, params, batch):
        params, state = rule.init(key, model, params, batch)
        found = functional.estimate(rule, model, helpers.LOSS, params, state, (), batch, key)
        return found.loss, found.grads

    program = jax.make_jaxpr(run)(jax.eval_shape(lambda: jax.random.key(0)), params, batch)
    return checks.matmul_flops(program)


@pytest.mark.parametrize(
    ("inputs", "ratio"),
    [(64, 0.6749), (512, 0.6846), (784, 0.6901)],
    ids=["digits", "square", "mnist"],
)
def test_deep_mlp_needs_069_of_backprops_flops(inputs, ratio):
    """Oracle: the closed form. Forward and weight gradients cost `S = sum d_in d_out` multiply-adds
    an example each; backpropagation's errors cost S once more, without the first map; DFA's cost
    the output error times B at each site. This is the whole gain of DFA in compute at linear sites:
    the issue asks for at most 0.69 of backpropagation's."""
    depth, width, classes, batch = 20, 512, 10, 64
    case = abstract((width,) * depth, batch, inputs, classes)
    maps = [inputs * width, *[width * width] * (depth - 1), width * classes]
    backprop = 2 * batch * (3 * sum(maps) - maps[0])
    direct = 2 * batch * (2 * sum(maps) + depth * classes * width)
    assert estimate_flops(Backprop(), *case) == backprop
    assert estimate_flops(DirectFeedbackAlignment(), *case) == direct
    assert direct / backprop == pytest.approx(ratio, abs=1e-4)


@pytest.fixture(scope="module")
def report():
    """Six layers of width 16 on four devices, each layer's width split over all of them."""
    rules = {"direct_feedback_alignment": DirectFeedbackAlignment(), "shallow": Shallow()}
    model, params, batch = abstract((16,) * 6, 8, 16, 10)
    return checks.cost_report(model, rules, small.mesh(1, 4), params=params, batch=batch)


def test_backward_collectives_of_a_width_sharded_mlp(report):
    """Oracle: which products run over a split axis. The readout of 10 classes is whole, so its
    input is summed over devices once, forward. Every other sum is an error sent back through a
    layer's split width: five of them under backpropagation, none under DFA, whose `e B_l` has the
    whole error. This is what DFA has to offer on a pod."""
    found = {name: cost.collectives.get("all-reduce", 0) for name, cost in report.costs.items()}
    assert found["backprop"] == 6
    assert found["direct_feedback_alignment"] == 1


def test_cost_report(report):
    """Oracle: the order of costs, and the closed form of the FLOPs. Backpropagation comes first, as
    what the others are compared with."""
    assert list(report.costs) == ["backprop", "direct_feedback_alignment", "shallow"]
    total = 16 * 16 * 6 + 16 * 10
    assert report.costs["backprop"].matmul_flops == 2 * 8 * (3 * total - 16 * 16)
    assert report.costs["shallow"].matmul_flops == 2 * 8 * (total + 16 * 10)
    assert report.costs["direct_feedback_alignment"].xla_flops > 0
    assert report.costs["backprop"].temporary_bytes > 0


def test_cost_report_reads_as_a_table(report):
    """Oracle: the contract. A row a rule, ratios to backpropagation, collectives by kind."""
    head, backprop, direct, shallow = str(report).splitlines()
    assert head.split()[:3] == ["rule", "matmul", "FLOPs"]
    assert backprop.split()[0] == "backprop"
    assert backprop.split()[2] == "1.000"
    ratio = (
        report.costs["direct_feedback_alignment"].matmul_flops
        / report.costs["backprop"].matmul_flops
    )
    assert f"{ratio:.3f}" in direct
    assert "6 all-reduce" in backprop
    assert "1 all-reduce" in direct
    assert shallow.startswith("shallow")


PROGRAMS = {
    "%a.1 = f32[4]{0} all-reduce(f32[4] %b), replica_groups={}": {"all-reduce": 1},
    "a = (f32[2], f32[2]) all-gather-start(b)\nc = f32[2] all-gather-done(a)": {"all-gather": 1},
    "a = f32[2] reduce-scatter(b)\nc = f32[2] all-reduce(a)\nd = f32[2] all-reduce(c)": {
        "reduce-scatter": 1,
        "all-reduce": 2,
    },
    "a = f32[2] add(b, c), metadata={op_name='all-reduce'}": {},
    "a = f32[2] collective-permute(b)\nc = f32[2] all-to-all(a)": {
        "collective-permute": 1,
        "all-to-all": 1,
    },
}


@pytest.mark.parametrize("text", PROGRAMS)
def test_count_collectives_in_known_text(text):
    """Oracle: by hand. An asynchronous operation is one, not two; a name in the metadata is
    none."""
    assert checks.count_collectives(text) == PROGRAMS[text]


def test_count_collectives_of_a_known_program():
    """Oracle: a product over a split axis needs exactly one sum over devices; one over a whole axis
    needs none."""
    mesh = small.mesh(1, 4)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def compiled(sharding):
        x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)
        function = jax.jit(lambda x: (x * x).sum(), out_shardings=whole)
        return checks.count_collectives(function.lower(x).compile().as_text())

    assert compiled(split) == {"all-reduce": 1}
    assert compiled(whole) == {}


class Convolved(nn.Module):
    """Two convolutions in one block: the second mixes what the first one's patches hear."""

    kernel: int

    @nn.compact
    def __call__(self, x):
        side = (self.kernel, self.kernel)
        h = nn.relu(nn.Conv(4, side, name="first")(x))
        h = nn.relu(nn.Conv(4, side, name="second")(h))
        return nn.Dense(3, name="readout")(h.mean((1, 2)))


@pytest.mark.parametrize(("kernel", "leaks"), [(1, ()), (3, (("first", "second"),))])
def test_locality_of_convolutions(kernel, leaks):
    """Closed form: kernels of 1 x 1 keep patches apart, kernels of 3 x 3 do not."""
    batch = helpers.images(num=2, shape=(4, 4, 2))
    case = helpers.made(Convolved(kernel), ["first", "second"], batch, blocks="second")
    rule = LocalLosses(patchwise=True)
    params, _ = helpers.started(rule, case)
    report = checks.check_locality(case.model, rule, params, batch, helpers.LOSS)
    assert report.leaks == leaks
    assert report.is_local == (not leaks)
    assert ("behind site 'first'" in str(report)) == bool(leaks)


def test_the_local_mixer_is_local():
    """Documented contract: what its layout is made for."""
    batch = helpers.images(num=2, shape=(4, 4, 2))
    case = helpers.made(LocalMixer(2, 2, 8, 2, 3), "block_*/*_mixing", batch, blocks="block_*")
    rule = LocalLosses(patchwise=True, num_groups=2)
    params, _ = helpers.started(rule, case)
    assert checks.check_locality(case.model, rule, params, batch, helpers.LOSS).is_local


class Attentive(nn.Module):
    """Mixes positions, and examples too if it is asked to."""

    mixes_examples: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="embed")(x)
        h = h + jax.nn.softmax(h @ h.swapaxes(1, 2)) @ h
        return nn.Dense(3, name="readout")(
            h - h.mean(0, keepdims=True) if self.mixes_examples else h
        )


@pytest.mark.parametrize(
    ("mixes", "independent", "is_local"),
    [(False, 1, True), (False, 2, False), (True, 1, False), (True, 0, True)],
)
def test_locality_of_examples_and_positions(mixes, independent, is_local):
    """By construction: attention mixes positions, a mean over the batch mixes examples; what is
    declared to mix is not told apart."""
    batch = Batch(
        helpers.normals(np.zeros((3, 4, 5), np.float32), 0), jax.device_put(np.ones((3, 4), int))
    )
    module = Attentive(mixes)
    model = from_linen(module, "embed", batch.inputs, independent_axes=independent)
    params = jax.jit(model.init)(jax.random.key(0), batch.inputs)
    rule = ActivityForwardGradient()
    report = checks.check_locality(model, rule, params, batch, helpers.LOSS)
    assert report.is_local == is_local
    assert report.leaks == (() if is_local else (("embed", "outputs"),))
