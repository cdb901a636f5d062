"""The same curve whatever the mesh: every rule, and every family of models.

Oracle: one device. Sums over devices are taken in another order, 1e-7 a step; over 20 steps of plain
gradient descent that grows to some 1e-6 of a loss, hence 1e-5.
"""

import functools

import jax
import numpy as np
import pytest

from dfa_jax.data import MarkovData
from dfa_jax.models import MLP, ConvNet, LocalMixer, Transformer
from dfa_jax.optim import Optimizer
from dfa_jax.rules import RULES
from dfa_jax.train import fit
from tests import helpers
from tests.train import small

STEPS = 20
RATES = {"local_mixer": 2e-3, "transformer": 0.02, "scanned": 0.02}  # no chaos in 20 steps
MESHES = {"fsdp x model": (4, 2, True), "fsdp": (8, 1, True), "model": (1, 4, False)}
MODELS = {
    "mlp": (MLP((16, 16)), "layer_*"),
    "convnet": (ConvNet((4, 8), 10), "layer_*"),
    "local_mixer": (LocalMixer(2, 2, 16, 2, 10), "block_*"),
    "transformer": (Transformer(8, 2, 16, 2, context=8), "block_*"),
    "scanned": (Transformer(8, 2, 16, 2, context=8, scan=True), "blocks"),
}
CASES = [("mlp", rule) for rule in RULES]
CASES += [(model, "direct_feedback_alignment") for model in MODELS if model != "mlp"]
IN_CI = (  # feedback that rests, feedback that moves, a stack; the others at night
    ("mlp", "direct_feedback_alignment"),
    ("mlp", "kolen_pollack"),
    ("transformer", "direct_feedback_alignment"),
)


def losses(model, rule, mesh):
    """Training losses of 20 steps."""
    module, sites = MODELS[model]
    text = isinstance(module, Transformer)
    data = (
        MarkovData(num_symbols=8, context=8, num_train=512, num_test=64) if text else small.DIGITS
    )
    config = small.config(
        rule,
        data=data,
        model=module,
        sites=(sites,),
        optimizer=Optimizer("sgd", RATES.get(model, 0.05)),
    )
    return small.losses(config, mesh, STEPS)


@functools.cache
def alone(model, rule):
    """Those of one device."""
    found = losses(model, rule, small.mesh())
    assert found.std() > 1e-4  # it moves
    return found


def assert_same(model, rule, shape):
    data_axis, model_axis, fsdp = shape
    mesh = small.mesh(data_axis, model_axis, fsdp=fsdp)
    np.testing.assert_allclose(losses(model, rule, mesh), alone(model, rule), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", helpers.at_night(RULES, *(rule for _, rule in IN_CI)))
def test_every_rule_split_both_ways(rule):
    """Noise, feedback and heads are drawn from global keys: no rule may feel the mesh."""
    assert_same("mlp", rule, MESHES["fsdp x model"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", helpers.at_night(MESHES, "fsdp x model"))
@pytest.mark.parametrize("model", list(MODELS)[1:])
def test_every_family_of_models(model, mesh):
    """Every matrix that divides is split, whatever its place in the model."""
    assert_same(model, "direct_feedback_alignment", MESHES[mesh])


def test_a_mesh_that_the_caller_has_set_is_not_the_runs():
    """Exact equality, in bits: a run inside of `jax.set_mesh` of explicit axes, which are the default
    of `jax.make_mesh`, and the same run without."""
    config = small.config("feedback_alignment")
    alone = fit(config, progress=False)
    with jax.set_mesh(jax.make_mesh((8,), ("theirs",))):
        inside = fit(config, progress=False)
    helpers.assert_identical(small.plain(inside.state), small.plain(alone.state))
