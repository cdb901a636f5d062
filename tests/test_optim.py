"""Optimisers against their papers' equations in double-precision NumPy.

Learning rules are compared under one optimiser: an update that is subtly off (decay of biases, a
schedule that starts one step late) would be credited to a rule.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfa_jax.errors import InputError
from dfa_jax.optim import Optimizer, decayed
from dfa_jax.rules import KolenPollack
from tests import helpers

NUM_STEPS = 3
RATE = 0.1
DECAY = 0.03


def start():
    rng = np.random.default_rng(0)
    return {
        "layer": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)},
        "norm": {"scale": rng.normal(size=2)},
    }


def gradients():
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), start()) for _ in range(NUM_STEPS)
    ]


def trained(optimizer, num_steps=NUM_STEPS):
    """Parameters after three updates, as the trainer makes them."""
    tx = optimizer.build(num_steps)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start())
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grads in gradients():
        grads = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grads)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def by_hand(direction, *, clip=None, rate=lambda step: RATE, decay=DECAY):
    """`theta -= rate (direction(g, memory, t) + decay theta)`, the decay on kernels only."""
    params, memory = start(), {}
    for step, grads in enumerate(gradients()):
        norm = math.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(grads)))
        factor = min(1.0, clip / norm) if clip else 1.0
        for owner, name in (("layer", "kernel"), ("layer", "bias"), ("norm", "scale")):
            theta, g = params[owner][name], grads[owner][name] * factor
            change = direction(g, memory.setdefault(name, {}), step + 1)
            if name == "kernel":
                change = change + decay * theta
            params[owner][name] = theta - rate(step) * change
    return params


def plain(g, memory, t):
    return g


def momentum(g, memory, t):
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return memory["v"]


def adam(g, memory, t):
    """Kingma and Ba (2015), algorithm 1."""
    memory["m"] = 0.8 * memory.get("m", 0) + 0.2 * g
    memory["v"] = 0.95 * memory.get("v", 0) + 0.05 * g**2
    return memory["m"] / (1 - 0.8**t) / (np.sqrt(memory["v"] / (1 - 0.95**t)) + 1e-3)


def rmsprop(g, memory, t):
    """Tieleman and Hinton (2012): no bias correction; eps inside or outside is below tolerance."""
    memory["v"] = 0.95 * memory.get("v", 0) + 0.05 * g**2
    return g / np.sqrt(memory["v"] + 1e-12)


OPTIMIZERS = {
    "sgd": (Optimizer("sgd", RATE, weight_decay=DECAY), plain),
    "momentum": (Optimizer("sgd", RATE, momentum=0.9, weight_decay=DECAY), momentum),
    "adam": (Optimizer("adam", RATE, b1=0.8, b2=0.95, eps=1e-3, weight_decay=DECAY), adam),
    "rmsprop": (Optimizer("rmsprop", RATE, b2=0.95, eps=1e-12, weight_decay=DECAY), rmsprop),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_updates_against_numpy(name):
    """Oracle: the paper's update in float64, decoupled decay on kernels included."""
    optimizer, direction = OPTIMIZERS[name]
    helpers.assert_close(trained(optimizer), by_hand(direction), 2e-6)


def test_coupled_decay_is_part_of_the_gradient():
    """Oracle: NumPy: momentum of `g + decay theta`, kernels only. Decoupled, the decay has none."""
    optimizer, _ = OPTIMIZERS["momentum"]
    coupled = dataclasses.replace(optimizer, decay="coupled")
    params, memory = start(), {}
    for grads in gradients():
        for owner, name in (("layer", "kernel"), ("layer", "bias"), ("norm", "scale")):
            theta = params[owner][name]
            g = grads[owner][name] + (DECAY * theta if name == "kernel" else 0)
            memory[name] = 0.9 * memory.get(name, 0) + g
            params[owner][name] = theta - RATE * memory[name]
    helpers.assert_close(trained(coupled), params, 2e-6)


def test_lars_against_numpy():
    """Oracle: You et al. (2017), algorithm 1: of kernels, the decayed gradient times
    0.001 |theta| / |decayed gradient|; the rate inside the momentum. Biases move by plain momentum."""
    params, memory = start(), {}
    for grads in gradients():
        for owner, name in (("layer", "kernel"), ("layer", "bias"), ("norm", "scale")):
            theta, g = params[owner][name], grads[owner][name]
            if name == "kernel":
                g = g + DECAY * theta
                g = g * 0.001 * np.linalg.norm(theta) / np.linalg.norm(g)
            memory[name] = 0.9 * memory.get(name, 0) + RATE * g
            params[owner][name] = theta - memory[name]
    lars = Optimizer("lars", RATE, momentum=0.9, weight_decay=DECAY)
    helpers.assert_close(trained(lars), params, 2e-6)


def test_clipping_is_by_the_global_norm_and_before_everything_else():
    """Oracle: NumPy. Clipping each leaf on its own would turn the gradient."""
    optimizer, _ = OPTIMIZERS["momentum"]
    clipped = trained(dataclasses.replace(optimizer, clip_norm=0.5))
    helpers.assert_close(clipped, by_hand(momentum, clip=0.5), 2e-6)


def test_decay_moves_kernels_embeddings_and_learned_feedback_only():
    """Oracle: closed form at zero gradient, `theta (1 - rate decay)^t`. Decaying biases or scales
    is another regulariser; decaying them for one rule only would be a confound."""
    params = {
        name: {name: jnp.ones((2, 2))}
        for name in ("kernel", "embedding", "feedback", "bias", "scale")
    }
    tx = Optimizer("sgd", RATE, weight_decay=0.5).build(NUM_STEPS)
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(NUM_STEPS):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    for name, leaf in jax.tree.leaves_with_path(params):
        moved = name[-1].key in ("kernel", "embedding", "feedback")
        expected = 0.95**NUM_STEPS if moved else 1.0
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, err_msg=str(name))


def test_decay_reaches_what_kolen_pollack_learns():
    """Oracle: the rule's own condition: weights and feedback decay alike, or they never meet."""
    case = helpers.mlp()
    params, _ = jax.eval_shape(lambda: helpers.started(KolenPollack(), case))
    found = decayed(params)
    assert found["readout"] == {"kernel": True, "feedback": True, "bias": False}


def rates(num_steps, steps, **options):
    rate = Optimizer("sgd", RATE, **options).rate(num_steps)
    return [float(rate(step)) for step in steps]


def test_schedules_at_their_landmarks():
    """Oracle: closed forms. Warm-up is a straight line from 0; cosine and linear fall to 0 over
    what remains, and are half-way at half of it; constant stays; the staircase has its steps at
    half and at four fifths of what remains."""
    steps = [0, 5, 10, 55, 100, 120]
    warm = {"warmup_fraction": 0.1}
    half, zero = RATE / 2, 0.0
    expected = {
        "constant": [zero, half, RATE, RATE, RATE, RATE],
        "linear": [zero, half, RATE, half, zero, zero],
        "cosine": [zero, half, RATE, half, zero, zero],
    }
    stairs = rates(110, [10, 59, 60, 89, 90, 110], schedule="staircase", warmup_fraction=1 / 11)
    np.testing.assert_allclose(stairs, [RATE, RATE, RATE / 10, RATE / 10, RATE / 100, RATE / 100])
    for name, values in expected.items():
        found = rates(100, steps, schedule=name, **warm)
        np.testing.assert_allclose(found, values, atol=1e-8, err_msg=name)
    quarter = 10 + 22.5
    np.testing.assert_allclose(
        rates(100, [quarter], schedule="cosine", **warm),
        RATE * (1 + math.cos(math.pi / 4)) / 2,
        rtol=1e-6,
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "staircase"])
def test_without_warm_up_the_first_step_has_the_full_rate(schedule):
    """Oracle: closed form. A first step at rate 0 would be lost."""
    assert rates(10, [0], schedule=schedule)[0] == pytest.approx(RATE)
    assert rates(1, [0], schedule=schedule)[0] == pytest.approx(RATE)


def test_the_schedule_is_what_the_updates_use():
    """Oracle: NumPy with the rate of every step: step 0 uses `rate(0)`, not `rate(1)`."""
    optimizer = Optimizer("sgd", RATE, weight_decay=DECAY, schedule="linear")
    expected = by_hand(plain, rate=lambda step: RATE * (1 - step / NUM_STEPS))
    helpers.assert_close(trained(optimizer), expected, 2e-6)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("learning_rate", [0.0, -1.0, math.nan, math.inf]),
        ("eps", [0.0, -1e-8]),
        ("momentum", [-0.1, 1.0, math.nan]),
        ("b1", [-0.1, 1.0]),
        ("b2", [1.0, 2.0]),
        ("weight_decay", [-1e-4, math.inf]),
        ("clip_norm", [-1.0, math.nan]),
        ("warmup_fraction", [-0.1, 1.0]),
    ],
)
def test_bad_values_are_refused(field, values):
    """Oracle: the contract. Named, with the value, before anything is built."""
    for value in values:
        with pytest.raises(InputError, match=rf"optimizer.{field} is {value}; expected"):
            Optimizer(**{field: value})


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_unknown_names_are_refused(field):
    """Oracle: the contract. From Python too, where no argument parser stands in front. (The tests'
    type checker would refuse the argument before the class can.)"""
    optimizer = Optimizer()
    object.__setattr__(optimizer, field, "adamm")
    with pytest.raises(InputError, match=f"unknown optimizer.{field} 'adamm'"):
        optimizer.__post_init__()


@pytest.mark.parametrize("name", ["sgd", "adam", "lars"])
def test_the_readouts_factor_scales_its_updates_alone(name):
    """Oracle: exact equivalence; a tenth of the step for the readout, the same one elsewhere."""
    plain = Optimizer(name, RATE, weight_decay=DECAY)
    slow = dataclasses.replace(plain, readout_factor=0.1)
    (grads, *_), params = gradients(), start()

    def step(optimizer):
        tx = optimizer.build(NUM_STEPS, readout=[("norm",)])
        return jax.jit(tx.update)(grads, tx.init(params), params)[0]

    expected, found = step(plain), step(slow)
    helpers.assert_identical(found["layer"], expected["layer"])
    np.testing.assert_allclose(found["norm"]["scale"], 0.1 * expected["norm"]["scale"], rtol=1e-6)


def test_frozen_parameters_stay_and_do_not_count_in_the_norm():
    """Oracle: the optimiser by hand on what is left. With the kernel frozen, it keeps its bits, and
    the clipped norm is that of the other two arrays alone."""
    optimizer = Optimizer("adam", RATE, clip_norm=0.5, frozen=("layer/ker*", "norm"))
    found = trained(optimizer)
    alone, memory = start()["layer"]["bias"], {}
    for step, grads in enumerate(gradients()):
        g = grads["layer"]["bias"]
        g = g * min(1.0, 0.5 / np.linalg.norm(g))
        memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
        memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * g**2
        root = np.sqrt(memory["v"] / (1 - 0.999 ** (step + 1)))
        alone = alone - RATE * memory["m"] / (1 - 0.9 ** (step + 1)) / (root + 1e-8)
    expected = start() | {"layer": {"kernel": start()["layer"]["kernel"], "bias": alone}}
    helpers.assert_close(found, expected, 2e-6)
    for owner, name in (("layer", "kernel"), ("norm", "scale")):
        np.testing.assert_array_equal(found[owner][name], np.float32(start()[owner][name]))


def test_frozen_pattern_that_matches_nothing_is_refused():
    """Documented contract: a misspelt pattern would train what was to stay."""
    with pytest.raises(InputError, match=r"optimizer\.frozen 'layers'; did you mean 'layer'\?"):
        trained(Optimizer(frozen=("layers",)))
