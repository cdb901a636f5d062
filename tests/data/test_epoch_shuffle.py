"""Minibatches addressed by step."""

import jax
import numpy as np
import pytest

from dfa_jax.data import EpochShuffle
from dfa_jax.errors import InputError


@pytest.mark.parametrize("start", [0, 1, 3, 4, 11, 14])
def test_any_step_without_the_earlier_ones(start):
    """Oracle: exact equivalence with a slice of the run from step 0."""
    shuffle = EpochShuffle(num_examples=17, batch_size=4, seed=3)
    run = shuffle.indices(0, 20)
    assert run.dtype == np.int32
    np.testing.assert_array_equal(shuffle.indices(start, 6), run[start : start + 6])


def test_every_epoch_is_another_permutation():
    """Oracle: invariant; each epoch visits each example once, in an order of its own."""
    shuffle = EpochShuffle(num_examples=24, batch_size=6, seed=0)
    epochs = shuffle.indices(0, 3 * shuffle.steps_per_epoch).reshape(3, -1)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(24), (3, 1)))
    assert len({tuple(order) for order in epochs}) == 3


def test_order_is_the_documented_one():
    """Oracle: the definition, permutation(fold_in(key(seed), epoch), n), remainder dropped."""
    shuffle = EpochShuffle(num_examples=11, batch_size=3, seed=5)
    assert shuffle.steps_per_epoch == 3
    for epoch in range(3):
        key = jax.random.fold_in(jax.random.key(5), epoch)
        expected = np.asarray(jax.random.permutation(key, 11))[:9].reshape(3, 3)
        np.testing.assert_array_equal(shuffle.indices(3 * epoch, 3), expected)


def test_a_caller_cannot_spoil_a_later_answer():
    """Oracle: invariant; what was handed out can be overwritten, the source does not change."""
    shuffle = EpochShuffle(num_examples=8, batch_size=8, seed=1)
    first = shuffle.indices(0, 1)
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(shuffle.indices(0, 1), expected)


def test_no_steps_is_an_empty_answer():
    """Oracle: closed form."""
    assert EpochShuffle(5, 2, 0).indices(7, 0).shape == (0, 2)


def test_batch_larger_than_the_set_is_refused_by_name():
    """Oracle: the message names both numbers and the remedy."""
    with pytest.raises(InputError, match=r"batch_size is 9 .* 8 training examples; lower"):
        EpochShuffle(num_examples=8, batch_size=9, seed=0)
    with pytest.raises(InputError, match="batch_size is 0"):
        EpochShuffle(num_examples=8, batch_size=0, seed=0)
    with pytest.raises(InputError, match="start is -1"):
        EpochShuffle(num_examples=8, batch_size=2, seed=0).indices(-1, 1)
