"""What the tests share: small models and batches, and comparisons of trees that say where they differ."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import autodiff, losses
from dfa_jax.models import MLP, ConvNet, Model, Transformer, from_linen
from dfa_jax.rules import GradEstimate, LearningRule, functional
from dfa_jax.types import Batch

LOSS = losses.softmax_cross_entropy
NIGHTLY = pytest.mark.nightly


def at_night(cases: Iterable[Any], *every_day: Any) -> list[Any]:
    """These cases in each run of CI, the others, which repeat them, in that of a night."""
    return [
        case
        if case in every_day
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=NIGHTLY)
        for case in cases
    ]


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Same tree, and every leaf within `tolerance` times the largest entry of the expected leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, found), wanted in pairs:
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        assert found.shape == wanted.shape, jax.tree_util.keystr(path)
        scale = max(np.abs(wanted).max(initial=0.0), 1e-30)
        difference = np.abs(found - wanted).max(initial=0.0) / scale
        assert difference <= tolerance, f"{jax.tree_util.keystr(path)} differs by {difference:.2e}"


def assert_identical(actual: Any, expected: Any) -> None:
    """Same tree, types and bits."""
    chex.assert_trees_all_equal_dtypes(actual, expected)
    chex.assert_trees_all_equal(actual, expected, strict=True)


def to_float64(tree: Any) -> Any:
    """The tree as NumPy double precision."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def normals(like: Any, seed: int, scale: float = 1.0) -> Any:
    """A tree of normal numbers in the default precision.

    Nothing is compiled for it: NumPy draws, and `jnp.asarray` would be a program for each shape.
    """
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda leaf: jax.device_put(scale * draw(size=leaf.shape)), like)


def images(seed: int = 0, num: int = 16, shape: tuple[int, ...] = (8,), classes: int = 3) -> Batch:
    """Standard normal inputs `[num, *shape]` with random labels."""
    labels = np.random.default_rng(seed + 1).integers(classes, size=num)
    return Batch(normals(np.zeros((num, *shape)), seed), jax.device_put(labels))


class Set(NamedTuple):
    """A model with everything that a rule needs."""

    model: Model
    params: Any
    batch: Batch


def made(module: nn.Module, sites: Any, batch: Batch, seed: int = 1, *, blocks: Any = ()) -> Set:
    """The module as a model with random parameters, biases too, in the default precision."""
    model = from_linen(module, sites, batch.inputs, blocks=blocks)
    like = jax.eval_shape(model.init, jax.random.key(0), batch.inputs)
    return Set(model, normals(like, seed, 0.5), batch)


def once(make: Callable[[], Set]) -> Callable[[], Set]:
    """Makes the case once in either precision."""
    made_in = functools.cache(lambda x64: make())
    return functools.wraps(make)(lambda: made_in(jax.config.jax_enable_x64))


def started(rule: LearningRule, case: Set, seed: int = 2) -> tuple[Any, Any]:
    """Parameters and rule state with random numbers in all that the rule adds."""
    like, state = jax.eval_shape(
        lambda params, batch: rule.init(jax.random.key(0), case.model, params, batch),
        case.params,
        case.batch,
    )
    return _with(normals(like, seed, 0.5), case.params), normals(state, seed, 0.5)


def _with(tree: Any, other: dict[str, Any]) -> Any:
    """The nested dict `tree` with the entries of `other` in place of its own."""
    if not isinstance(other, dict):
        return other
    return tree | {name: _with(tree[name], value) for name, value in other.items()}


def estimator(rule: LearningRule, case: Set, loss: Any = LOSS) -> Callable[..., GradEstimate]:
    """`(params, state, seed) -> estimate`, compiled once."""
    run = jax.jit(
        lambda key, params, state, batch: functional.estimate(
            rule, case.model, loss, params, state, (), batch, key
        )
    )
    return lambda params, state, seed=3: run(jax.random.key(seed), params, state, case.batch)


def estimate(
    rule: LearningRule, case: Set, params: Any, state: Any, *, seed: int = 3, loss: Any = LOSS
) -> GradEstimate:
    """One compiled estimate."""
    return estimator(rule, case, loss)(params, state, seed)


SAME_CHAIN = ("backprop", "uniform_sign", "fixed_random_sign")


def every_day(names: Iterable[str]) -> list[Any]:
    """The rules by name, but at night those that differ from feedback alignment by numbers alone."""
    mark = {name: pytest.mark.nightly for name in SAME_CHAIN}
    return [pytest.param(name, marks=mark.get(name, ())) for name in names]


def backprop(case: Set, params: Any = None, loss: Any = LOSS) -> Any:
    """`jax.grad` of the plain forward pass: no code of this library but the loss."""

    @jax.jit
    def grad(params, batch):
        def objective(params):
            outputs = case.model.module.apply({"params": params}, batch.inputs)
            return loss(outputs, batch.targets).mean()

        return jax.grad(objective)(params)

    return grad(case.params if params is None else params, case.batch)


def plain_forward(case: Set, params: Any = None) -> tuple[Any, Any]:
    """Outputs and mean loss by the module's own `apply`."""

    @jax.jit
    def run(params, batch):
        outputs = case.model.module.apply({"params": params}, batch.inputs)
        return outputs, LOSS(outputs, batch.targets).mean()

    return run(case.params if params is None else params, case.batch)


class Layer(nn.Module):
    """A layer with a skip connection inside, in the form that `nn.scan` wants."""

    @nn.compact
    def __call__(self, h, _=None):
        a = nn.Dense(h.shape[-1], name="dense")(h)
        return jnp.tanh(a) + 0.5 * h, None


JittedLayer = nn.jit(Layer)
RematLayer = nn.remat(Layer)


class Stack(nn.Module):
    """Embedding, three layers in one of several forms, readout; works on `[*batch, features]`."""

    form: str = "unrolled"
    depth: int = 3

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(6, name="embed")(x)
        if "scan" in self.form:
            layers = nn.scan(
                RematLayer if "remat" in self.form else Layer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            h, _ = layers(name="layers")(h, None)
        else:
            kind = {"unrolled": Layer, "jit": JittedLayer, "remat": RematLayer}[self.form]
            for i in range(self.depth):
                h, _ = kind(name=f"layer_{i}")(h)
        return nn.Dense(3, name="readout")(h)


def unstacked(
    tree: dict[str, Any], depth: int = 3, names: tuple[str, str] = ("layers", "layer")
) -> dict[str, Any]:
    """Parameters, gradients or rule state of a scanned `Stack` under the names of the unrolled one."""
    found: dict[str, Any] = {}
    stack, one = names
    for name, value in tree.items():
        if name == "local_heads":
            found[name] = unstacked(value, depth, names)
        elif name.split("/")[0] == stack:
            for i in range(depth):
                layer = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], value)
                found[name.replace(stack, f"{one}_{i}", 1)] = layer
        else:
            found[name] = value
    return found


@once
def mlp() -> Set:
    """A perceptron with sites at both hidden layers."""
    return made(MLP((7, 6), 3), "layer_*", images())


@once
def convnet() -> Set:
    """A convolutional network with sites at both layers."""
    return made(ConvNet((3, 4), 3, 3), "layer_*", images(shape=(8, 8, 2)))


@once
def scanned() -> Set:
    """A scanned stack of layers with a site at its embedding and at every layer."""
    return made(Stack("scan"), ["embed", "layers"], images())


def tokens(seed: int = 0, num: int = 8, time: int = 4, classes: int = 11) -> Batch:
    """Random tokens `[num, time]`, each with a random one to predict."""
    drawn = np.random.default_rng(seed).integers(classes, size=(2, num, time), dtype=np.int32)
    return Batch(*jax.device_put(tuple(drawn)))


@once
def transformer() -> Set:
    """A decoder with sites at its embedding and both blocks."""
    module = Transformer(num_outputs=7, num_layers=2, width=8, num_heads=2, context=4)
    return made(module, ["embed", "block_*"], tokens(classes=7))


def activities(model: Model, params: Any, inputs: Any) -> Any:
    """Activity of every site."""
    return autodiff.activities(model, params, inputs)[1]
