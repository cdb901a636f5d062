"""Published models as they are: that the material of these tests is sound, before any rule is tried."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.published import plain
from tests.published.models import BATCH, LENGTHS, MODELS, VOCABULARY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ranks():
    """Published models add a bias of rank one to anything."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def case(request, _ranks):
    """A model, its parameters and its state."""
    model = request.param()
    return model, *jax.jit(functools.partial(plain.draw, model))()


def test_the_reference_is_the_slope(case):
    """Oracle: central differences along the gradient. A reference that the model's own code (integers,
    routing, a stop) has cut, or that is zero where it begins, would let any rule pass."""
    model, params, state = case
    run = jax.jit(functools.partial(_value_and_grad, model))
    loss, gradients, updated = run(params, state)
    square = sum(float((g**2).sum()) for g in jax.tree.leaves(gradients))
    step = 5e-4 / np.sqrt(square)
    ahead, behind = (run(_moved(params, gradients, s), state)[0] for s in (step, -step))
    # A step four times as long sends a token of `nano_moe` to another expert; ReLU has corners too.
    np.testing.assert_allclose((float(ahead) - float(behind)) / (2 * step), square, rtol=3e-3)
    assert np.isfinite(loss)
    assert _at_rest(gradients) == set(model.without_gradient)
    assert set(updated) == set(state) == set(model.state)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), updated, state)))


def test_evaluation_needs_no_key(case):
    """Oracle: Flax, which raises where a stream is asked for, and the training pass, which differs.
    A call that forgets `train` would leave dropout, or the batch's statistics, on or off for good."""
    model, params, state = case

    def both(params, state):
        found = (plain.apply(model, params, state, train=train)[0] for train in (False, True))
        return [plain.leaf(outputs, model.tap) for outputs in found]

    evaluated, trained = jax.jit(both)(params, state)
    assert evaluated.shape[0] == BATCH
    assert np.any(evaluated != trained)


def test_what_is_padding_is_not_seen(case):
    """Oracle: bits, under other tokens in the padding. Mask and weights are part of the material: a mask
    that does nothing could not show that a rule leaves it out."""
    model, params, state = case
    if "attention_mask" not in model.inputs:
        pytest.skip("takes no mask")
    run = jax.jit(functools.partial(_evaluated, model))
    names = {"input_ids", "decoder_input_ids"} & set(model.inputs)
    told = run(params, state, model.inputs)
    other = {name: _other_padding(model.inputs[name]) for name in names}
    jax.tree.map(np.testing.assert_array_equal, told, run(params, state, model.inputs | other))
    assert (
        run(params, state, model.inputs | {"input_ids": model.inputs["input_ids"][::-1]})[0]
        != told[0]
    )


def test_sites_are_submodules_and_their_leaves_activities(case):
    """Oracle: what Flax records of the pass. The sites are what the rules' tests will name."""
    model, params, state = case
    record = jax.eval_shape(functools.partial(_record, model), params, state)
    for path, leaf in model.sites.items():
        found = functools.reduce(lambda tree, name: tree[name], path.split("/"), record)
        (value,) = found["__call__"]
        assert plain.leaf(value, leaf).shape[0] == BATCH


def _value_and_grad(model, params, state):
    run = jax.value_and_grad(functools.partial(plain.objective, model), has_aux=True)
    (loss, (_, updated)), gradients = run(params, state)
    return loss, gradients, updated


def _evaluated(model, params, state, inputs):
    objective = functools.partial(plain.objective, dataclasses.replace(model, inputs=inputs))
    (loss, _), gradients = jax.value_and_grad(objective, has_aux=True)(params, state, train=False)
    return loss, gradients


def _record(model, params, state):
    _, variables = model.module.apply(
        {"params": params, **state},
        model.inputs,
        False,
        method=model.call,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    return variables["intermediates"]


def _moved(params, gradients, step):
    return jax.tree.map(lambda p, g: p + step * g, params, gradients)


def _other_padding(tokens):
    padding = np.arange(tokens.shape[1]) >= LENGTHS[:, None]
    return np.where(padding, (tokens + 5) % VOCABULARY, tokens)


def _at_rest(gradients):
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path) for path, leaf in leaves if not np.any(leaf)}
