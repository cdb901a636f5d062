"""What programs cost, measured side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue, cost
from dfa_jax.report.cost import Program

MATRIX = jax.ShapeDtypeStruct((64, 32), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((32, 32), jnp.float32)


def product(x, w):
    return x @ w


def through_a_copy(x, w):
    """Two products, whose result between them must be kept."""
    return (x @ w) @ w


PROGRAMS = {
    "one": Program(product, (MATRIX, SQUARE)),
    "two": Program(through_a_copy, (MATRIX, SQUARE)),
}


def test_flops_and_memory():
    """Oracle: by hand; 2 m n k FLOPs a product, and one result kept: else the columns are lies."""
    found = cost.measure(PROGRAMS)
    np.testing.assert_allclose(found["gigaflops"], [64 * 32 * 32 * 2e-9, 64 * 32 * 32 * 4e-9])
    kept = 64 * 32 * 4e-6
    np.testing.assert_allclose(found["megabytes"][1] - found["megabytes"][0], kept, rtol=0.1)
    assert found["seconds"].shape == (2, 0)


def test_what_does_not_fit_is_not_run():
    """Oracle: documented contract; NaN, not 0, stands for what was not measured."""
    found = cost.measure(PROGRAMS, rounds=3, bytes_to_run=64 * 32 * 2)
    assert np.isfinite(found["seconds"][0]).all()
    assert (found["seconds"][0] > 0).all()
    assert np.isnan(found["seconds"][1]).all()
    assert np.isnan(cost.ratios(found["seconds"])[1]).all()


def test_turns_are_taken():
    """Oracle: a log of the calls; every round has each program once, in an order that changes."""
    calls = []
    running = {name: (lambda name=name: calls.append(name), ()) for name in "abc"}
    times = cost.in_turns(running, rounds=6)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 7  # the first is not counted
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    assert {len(seconds) for seconds in times.values()} == {6}


def test_ratios_are_taken_within_a_round():
    """Oracle: by hand; a round that is ten times slower for all leaves every ratio alone."""
    seconds = np.array([[1.0, 10.0, 1.0], [2.0, 20.0, 2.0]])
    np.testing.assert_array_equal(cost.ratios(seconds), [[1, 1, 1], [2, 2, 2]])
    np.testing.assert_array_equal(cost.ratios(seconds, base=1)[0], [0.5, 0.5, 0.5])


def test_filled_keeps_shapes_types_and_range():
    """Oracle: documented contract; labels outside of the classes would index past the outputs."""
    shapes = {"x": MATRIX, "labels": jax.ShapeDtypeStruct((100,), jnp.int32)}
    found = cost.filled(shapes, num_labels=3)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), shapes
    )
    assert set(np.asarray(found["labels"]).tolist()) == {0, 1, 2}
    assert np.isfinite(found["x"]).all()


@pytest.mark.parametrize(("programs", "rounds"), [({}, 1), (PROGRAMS, -1)])
def test_refusals(programs, rounds):
    """Oracle: the message; what was given, and what is expected."""
    with pytest.raises(InputError, match=f"{len(programs)} programs and {rounds} rounds; expected"):
        cost.measure(programs, rounds)


def test_fused_losses_of_a_block_need_no_copy_for_each_group():
    """Oracle: closed form; naive losses hold the features once a group, fused ones once in all."""
    case = catalogue.run_file("forward_gradient/memory")["BlockLosses"]
    found = case(((4, 2), (4, 16)), channels=64, batch_size=8).run()
    features = 4e-6 * 8 * 4 * 64
    assert (found["megabytes"][:, 0] < 3 * features).all()
    assert (found["megabytes"][:, 1] > np.array([2, 16]) * features).all()
