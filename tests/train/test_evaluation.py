"""Loss and metrics over a whole set: exactly the objective, whatever the parts and the devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.data import ArrayData
from dfa_jax.train import TrainConfig, loop
from dfa_jax.train.program import make_program
from dfa_jax.types import Loss


class Affine(nn.Module):
    """One linear map, with noise that it asks for in evaluation too if `noisy`."""

    noisy: bool = False

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(2, name="top")(nn.Dense(3, name="hidden")(x))
        if self.noisy:
            y += jax.random.normal(self.make_rng("noise"), y.shape)
        return y


def square(outputs, targets):
    return jnp.square(outputs - targets["y"]).mean(1)


def weighted(outputs, targets):
    return Loss(square(outputs, targets), targets["w"])


def weighted_scalar(outputs, targets):
    w = targets["w"]
    return Loss((w * square(outputs, targets)).sum() / w.sum(), w.sum())


def scalar(outputs, targets):
    return square(outputs, targets).mean()


def with_extra(outputs, targets):
    return weighted(outputs, targets)._replace(extra=jnp.abs(outputs).mean())


def evaluated(number, devices, loss, *metrics, noisy=False):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(number, 3)), random.normal(size=(number, 2))
    data = ArrayData(*2 * [(x, {"y": y, "w": random.uniform(size=number).round(1)})])
    config = TrainConfig(
        data=data,
        model=Affine(noisy),
        sites=("hidden",),
        loss=loss,
        metrics=tuple((f.__name__, f) for f in metrics),
        batch_size=8,
    )
    made = make_program(config, data.load(), 1, devices=jax.devices()[:devices])
    w = {name: random.normal(size=shape) for name, shape in (("hidden", (3, 3)), ("top", (3, 2)))}
    params = {name: {"kernel": one, "bias": np.ones(one.shape[1])} for name, one in w.items()}
    params = jax.tree.map(np.float32, params)
    outputs = ((x @ w["hidden"] + 1) @ w["top"]) + 1
    each = np.square(outputs - y).mean(1)
    return loop.evaluate(params, data.test, program=made), each, data.test.targets["w"], outputs


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluate_is_the_objective_over_the_whole_set(devices):
    """Oracle: double-precision NumPy on all 1,003 examples, a remainder of 3. A mean of means over
    parts would weigh the last three as much as 500, and examples that fill it up would count twice:
    in a scalar, or an auxiliary loss, they cannot be masked out."""
    found, each, w, _ = evaluated(1003, devices, square, weighted)
    np.testing.assert_allclose(found["loss"], each.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["weighted"], (w * each).sum() / w.sum(), rtol=1e-5)
    found, each, w, outputs = evaluated(1003, devices, weighted_scalar, scalar, with_extra)
    np.testing.assert_allclose(found["loss"], (w * each).sum() / w.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["scalar"], each.mean(), rtol=1e-5)
    whole = (w * each).sum() / w.sum() + abs(outputs).mean()
    np.testing.assert_allclose(found["with_extra"], whole, rtol=1e-5)


def test_random_numbers_in_evaluation_are_always_the_same():
    """Oracle: bits. A module that draws in evaluation would else make every test loss another."""
    first, each, *_ = evaluated(7, 1, square, noisy=True)
    second, *_ = evaluated(7, 1, square, noisy=True)
    assert first["loss"] == second["loss"] != each.mean()
