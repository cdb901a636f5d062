"""Convolutions in loops: the same numbers, in the order that the CPU's compiler wants, everywhere."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.autodiff.forward import mean_of_draws
from dfa_jax.autodiff.loops import loop_body
from dfa_jax.train import compiled, ensemble, evaluation, probe
from dfa_jax.train.readout import place_readout
from tests.train import small

IN_ORDER = re.compile(r"\[b, (\d, )*f\]x\[(\d, )*i, o\]->\[b, (\d, )*f\]")


class ChannelsFirst(nn.Module):
    """A network whose images are `[batch, channels, height, width]` for its convolution."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 1, 3, 3))
        h = jax.lax.conv(x.transpose(0, 3, 1, 2), kernel, (1, 1), "SAME")
        return nn.Dense(10, name="readout")(nn.Dense(5, name="top")(h.reshape(len(x), -1)))


CONFIG = small.config(model=ChannelsFirst(), sites=("top",), feedback_seed=1)
PROGRAM = small.program(CONFIG, small.mesh())


def orders(lowered):
    """The orders of axes of all convolutions in a lowered program's text."""
    found = re.findall(r"dim_numbers = (\[[^>]*->\[[^\]]*\])", lowered.as_text())
    assert found, "no convolution is left to look at"
    return found


def lowered_steps(num_parts=1):
    program, data = dataclasses.replace(PROGRAM, num_parts=num_parts), small.data(PROGRAM.mesh)
    return compiled.run_steps.lower(small.state(program), data, small.order(2), 2, program=program)


def lowered_step_in_parts():
    """A user's own jitted step."""
    parts = dict(PROGRAM.parts, num_parts=2)
    batch = jax.tree.map(lambda a: a[:16], small.data(PROGRAM.mesh))
    step = jax.jit(lambda state, batch: compiled.train_step(state, batch, **parts))
    return step.lower(small.state(PROGRAM), batch)


def lowered_steps_together():
    states, order = (small.state(PROGRAM), small.state(PROGRAM, 1)), small.order(2)
    both, ones = np.stack([order, order], 1), np.ones(2, np.float32)
    run = compiled.run_steps_together
    return run.lower(states, small.data(PROGRAM.mesh), both, 2, ones, program=PROGRAM)


def lowered_ensemble():
    states = jax.tree.map(lambda a: jnp.stack([a, a]), small.state(PROGRAM))
    order = small.order(2)
    both = np.stack([order, order], 1)
    return ensemble.run_steps.lower(states, small.data(PROGRAM.mesh), both, 2, program=PROGRAM)


def lowered_evaluation():
    params = small.state(PROGRAM).params
    return evaluation.evaluate.lower(params, small.data(PROGRAM.mesh), program=PROGRAM)


def lowered_probe():
    data = small.data(PROGRAM.mesh)
    at = place_readout(PROGRAM.model, "top")
    return probe._all_features.lower(at, small.state(PROGRAM).params, (), data.inputs)


def lowered_draws():
    """A mean over draws, of a kernel's gradient."""
    x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))

    def estimate(key):
        return jax.grad(lambda kernel: convolved(x, kernel).sum())(kernel) * jax.random.normal(key)

    return jax.jit(lambda key: mean_of_draws(estimate, key, 3, "scan")).lower(jax.random.key(0))


@pytest.mark.parametrize(
    "lower",
    [
        lowered_steps,
        lambda: lowered_steps(num_parts=2),
        lowered_step_in_parts,
        lowered_steps_together,
        lowered_ensemble,
        lowered_evaluation,
        lowered_probe,
        lowered_draws,
    ],
    ids=["steps", "parts", "own step", "together", "ensemble", "evaluation", "probe", "draws"],
)
def test_loops_have_their_convolutions_in_order(lower):
    """Oracle: the lowered program's text. XLA's CPU compiler runs a convolution in a loop a hundred
    times slower in any other order; no time is measured here (`benchmark.py convnet` does)."""
    wrong = [order for order in orders(lower()) if not IN_ORDER.fullmatch(order)]
    assert not wrong


def convolved(x, kernel, **options):
    """A convolution of Flax's order."""
    dims = ("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NWC", "WIO", "NWC")
    options = {"window_strides": (1,) * (x.ndim - 2), "padding": "SAME", **options}
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=dims, **options)


def transposed(x, kernel):
    return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=True)


def scanned(x, kernel):
    """Inside a loop and a branch of its own."""

    def body(h, _):
        return (jax.lax.cond(h.sum() < 1e9, lambda: convolved(h, kernel), lambda: h), None)

    return jax.lax.scan(body, x, None, length=2)[0]


CASES = {
    "plain": (convolved, (2, 6, 5, 3), (3, 2, 3, 4)),
    "strided": (lambda x, k: convolved(x, k, window_strides=(2, 3)), (2, 7, 8, 3), (3, 3, 3, 4)),
    "dilated": (lambda x, k: convolved(x, k, rhs_dilation=(2, 1)), (2, 7, 8, 3), (3, 3, 3, 4)),
    "grouped": (lambda x, k: convolved(x, k, feature_group_count=3), (2, 5, 4, 6), (3, 3, 2, 9)),
    "one axis": (convolved, (2, 7, 3), (3, 3, 4)),
    "transposed": (transposed, (2, 4, 5, 3), (3, 3, 4, 3)),
    "in a loop": (scanned, (2, 4, 5, 3), (3, 3, 3, 3)),
    "vmapped": (jax.vmap(convolved), (2, 2, 6, 5, 3), (2, 3, 2, 3, 4)),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_order_of_axes_changes_no_number(kind):
    """Exact equality: on small whole numbers every order of sums gives the same bits. A convolution
    and both of its gradients, as written and as the body of a loop."""
    function, *shapes = CASES[kind]
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.integers(-2, 3, shape), jnp.float32) for shape in shapes)

    def both(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        return y, pull(jnp.round(y / 8))

    found = jax.jit(loop_body(both)).lower(x, kernel)
    assert all(IN_ORDER.fullmatch(order) for order in orders(found))
    expected = jax.jit(both)(x, kernel)
    jax.tree.map(np.testing.assert_array_equal, found.compile()(x, kernel), expected)


def test_other_devices_get_the_program_as_it_was_written():
    """Exact equivalence: lowered for a TPU, the convolutions' orders are those without `loop_body`,
    and there is no transposition; so are those of a program whose axes are in order on a CPU."""
    x, kernel = jnp.ones((2, 6, 5, 3)), jnp.ones((3, 2, 3, 4))
    gradient = jax.grad(lambda kernel, x: convolved(x, kernel).sum())
    traces = [jax.jit(one).trace(kernel, x) for one in (loop_body(gradient), gradient)]
    found, expected = (one.lower(lowering_platforms=("tpu",)) for one in traces)
    assert orders(found) == orders(expected)
    assert not all(IN_ORDER.fullmatch(order) for order in orders(found))
    assert found.as_text().count("transpose") == expected.as_text().count("transpose")
    plain = str(jax.make_jaxpr(loop_body(convolved))(x, kernel))
    assert "platform_index" not in plain
    assert plain.count("transpose") == 0


def test_trees_keys_and_what_is_closed_over_come_through():
    """Exact equality: a body with a tree, a random key and an array from outside."""
    outside, kernel = jnp.arange(3.0), jnp.ones((3, 3, 1, 2))

    def body(i, carry):
        x = jax.random.normal(carry["key"], (1, 4, 4, 1)) + outside[i]
        gradient = jax.grad(lambda kernel: convolved(x, kernel).sum())(kernel)
        return {"key": jax.random.fold_in(carry["key"], i), "sum": carry["sum"] + gradient.sum()}

    start = {"key": jax.random.key(3), "sum": jnp.zeros(())}
    found, expected = (
        jax.jit(lambda b=b: jax.lax.fori_loop(0, 3, b, start))() for b in (loop_body(body), body)
    )
    np.testing.assert_array_equal(*(jax.random.key_data(one["key"]) for one in (found, expected)))
    np.testing.assert_allclose(found["sum"], expected["sum"], rtol=1e-5)
