"""`ArrayData`: arrays of one's own, checked before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.data import ArrayData
from dfa_jax.errors import InputError

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6) % 3
GOOD = (X, Y)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([X, Y], GOOD, r"train is a list; expected a Batch, or a pair"),
        ((X, Y[:4]), GOOD, "train has 6 examples in inputs and 4 in targets"),
        ((X[:0], Y[:0]), GOOD, "train has no examples in inputs"),
        (((), Y), GOOD, "train has no inputs"),
        (({"x": X, "n": 3}, Y), GOOD, "train has inputs/n, which is int; expected an array"),
        ((X.astype(str), Y), GOOD, "train has inputs of type <U.*; expected numbers"),
        ((X, Y * 2**40), GOOD, "train has targets from 0 to 2199023255552; expected .* fit int32"),
        (GOOD, ({"x": X}, Y), "test has inputs/x, targets and .* expected the same structure"),
        (GOOD, (X, None), "test has inputs and ArrayData.train has inputs, targets"),
        (GOOD, (X[:, :1], Y), r"test has inputs of float32\[6, 1\], .* of float32\[6, 2\]"),
        (GOOD, (X, Y / 2), r"test has targets of float32\[6\], and .* of int32\[6\]"),
    ],
)
def test_bad_arrays_are_refused(train, test, said):
    """Documented contract: one line with the split, the array's name, what it is and what it should
    be. NumPy would broadcast some of these, and a loss take them for something else."""
    with pytest.raises(InputError, match=f"ArrayData.{said}") as caught:
        ArrayData(train, test)
    assert len(str(caught.value).splitlines()) == 1


def test_arrays_of_any_kind_become_what_jax_computes_with():
    """Oracle: NumPy. Types are those of JAX arrays, numbers the same, classes those of both splits."""
    data = ArrayData((jnp.asarray(X), Y), (X[:2], np.array([4, 0])))
    loaded = data.load()
    assert jax.tree.map(lambda a: a.dtype.name, loaded.train) == ("float32", "int32")
    np.testing.assert_array_equal(loaded.train.inputs, X)
    assert loaded.num_classes == 5
    assert ArrayData((X, None), (X, None)).load().num_classes == 0


def test_equal_if_they_hold_the_same():
    """Oracle: definition. A run is known by its data; one changed number is another run."""
    first, again = ArrayData(GOOD, GOOD), ArrayData((X.copy(), Y.copy()), GOOD)
    assert first == again
    assert hash(first) == hash(again)
    assert first != ArrayData((X + np.eye(6, 2), Y), GOOD)
    assert first != ArrayData(GOOD, (X[::-1], Y))
    assert first.summary() == again.summary()
    assert first.summary()["test"] == {"inputs": "float32[6, 2]", "targets": "int32[6]"}


def test_validation_is_the_end_of_the_training_set():
    """Oracle: slices. A learning rate must be chosen on examples that are neither trained on nor the
    test set."""
    cut = ArrayData(GOOD, (X + 100, Y)).with_validation(2)
    np.testing.assert_array_equal(cut.train.inputs, X[:4])
    np.testing.assert_array_equal(cut.test.inputs, X[4:])
    np.testing.assert_array_equal(cut.test.targets, Y[4:])
    for number in (0, 6):
        with pytest.raises(InputError, match=f"num_validation is {number} of 6"):
            ArrayData(GOOD, GOOD).with_validation(number)
