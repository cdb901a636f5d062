"""`ArrayData`: examples of one's own, as arrays in memory."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from dfa_jax.data.base import Dataset, num_examples
from dfa_jax.errors import InputError
from dfa_jax.tree import leaf_names
from dfa_jax.types import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayData:
    """Arrays to train and to test on, of any structure, with the examples in front.

    They are kept as NumPy arrays of the types that JAX computes with (float64 becomes float32), and
    compared by what they hold; do not change them in place.

    Attributes:
        train: inputs and targets, a `Batch` or a pair, each an array or a tree of arrays; targets
            may be None.
        test: the same to measure on.

    Raises:
        InputError: an array holds no numbers, has no examples or another number of them than the
            others, or those of the test set have other names, shapes or types.

    >>> x, y = np.zeros((6, 3)), np.array([0, 1, 2, 0, 1, 2])
    >>> ArrayData(train=(x, y), test=({"x": x}, y))
    Traceback (most recent call last):
    ...
    dfa_jax.errors.InputError: ArrayData.test has inputs/x, targets and ArrayData.train has inputs,
    targets; expected the same structure
    >>> ArrayData(train=(x, y), test=(x, y)).load().num_classes
    3
    """

    train: Any = dataclasses.field(metadata={"in_code": True})
    test: Any = dataclasses.field(metadata={"in_code": True})

    def __post_init__(self):
        for split in ("train", "test"):
            object.__setattr__(self, split, _checked(split, getattr(self, split)))
        _check_alike(self.train, self.test)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ArrayData):
            return NotImplemented
        return self is other or (
            jax.tree.structure(self.train) == jax.tree.structure(other.train)
            and self.digest == other.digest
        )

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"ArrayData({self.digest})"

    @functools.cached_property
    def digest(self) -> str:
        """Of names, shapes, types and numbers."""
        found = hashlib.blake2b(digest_size=8)
        for batch in (self.train, self.test):
            for name, leaf in zip(leaf_names(batch), jax.tree.leaves(batch), strict=True):
                found.update(f"{name} {leaf.dtype} {leaf.shape} ".encode())
                found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a record says of it: shapes, types and digest."""
        shapes = {
            split: {
                name: f"{leaf.dtype}{list(leaf.shape)}"
                for name, leaf in zip(leaf_names(batch), jax.tree.leaves(batch), strict=True)
            }
            for split, batch in (("train", self.train), ("test", self.test))
        }
        return {**shapes, "digest": self.digest}

    def with_validation(self, number: int) -> "ArrayData":
        """The last training examples set aside to test on, in place of the test set.

        Raises:
            InputError: there are no more than that.
        """
        total = num_examples(self.train)
        if not 0 < number < total:
            raise InputError(
                f"num_validation is {number} of {total} training examples; expected at least 1, and"
                " fewer than there are"
            )
        front, back = (
            jax.tree.map(lambda a, part=part: a[part], self.train)
            for part in (slice(total - number), slice(total - number, None))
        )
        return ArrayData(front, back)

    def load(self) -> Dataset:
        """The data set; classes are counted where targets are one array of whole numbers."""
        return Dataset("arrays", self.train, self.test, _num_classes(self.train, self.test))


def _checked(split: str, given: Any) -> Batch:
    """A split as NumPy arrays, after checking them."""
    if not (isinstance(given, tuple) and len(given) == 2):
        raise InputError(
            f"ArrayData.{split} is a {type(given).__name__}; expected a Batch, or a pair of inputs"
            " and targets"
        )
    batch = Batch(*given)
    if not jax.tree.leaves(batch.inputs):
        raise InputError(f"ArrayData.{split} has no inputs; expected at least one array")
    names, leaves = leaf_names(batch), jax.tree.leaves(batch)
    arrays = [_canonical(f"ArrayData.{split}", *one) for one in zip(names, leaves, strict=True)]
    number = len(arrays[0])
    for name, array in zip(names, arrays, strict=True):
        if not len(array):
            raise InputError(f"ArrayData.{split} has no examples in {name}; expected at least one")
        if len(array) != number:
            raise InputError(
                f"ArrayData.{split} has {number} examples in {names[0]} and {len(array)} in {name};"
                " expected the same number in every array"
            )
    return jax.tree.unflatten(jax.tree.structure(batch), arrays)


def _canonical(whose: str, name: str, leaf: Any) -> np.ndarray:
    """An array of a type that JAX computes with."""
    array = np.asarray(leaf) if hasattr(leaf, "shape") else None
    if array is None or not array.ndim:
        raise InputError(
            f"{whose} has {name}, which is {type(leaf).__name__}; expected an array with the"
            " examples in front"
        )
    if not (jax.numpy.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InputError(f"{whose} has {name} of type {array.dtype}; expected numbers")
    kind = jax.dtypes.canonicalize_dtype(array.dtype)
    if np.issubdtype(kind, np.integer) and kind != array.dtype and array.size:
        low, high = int(array.min()), int(array.max())
        if low < np.iinfo(kind).min or high > np.iinfo(kind).max:
            raise InputError(
                f"{whose} has {name} from {low} to {high}; expected whole numbers that fit {kind}"
            )
    return array.astype(kind, copy=False)


def _check_alike(train: Batch, test: Batch) -> None:
    """Refuses a test set on which the model for the training set would not run."""
    names, other = leaf_names(train), leaf_names(test)
    if names != other or jax.tree.structure(train) != jax.tree.structure(test):
        raise InputError(
            f"ArrayData.test has {', '.join(other)} and ArrayData.train has {', '.join(names)};"
            " expected the same structure"
        )
    both = zip(names, jax.tree.leaves(train), jax.tree.leaves(test), strict=True)
    for name, one, two in both:
        if (one.shape[1:], one.dtype) != (two.shape[1:], two.dtype):
            raise InputError(
                f"ArrayData.test has {name} of {two.dtype}{list(two.shape)}, and ArrayData.train of"
                f" {one.dtype}{list(one.shape)}; expected the same type, and the same shape of each"
                " example"
            )


def _num_classes(train: Batch, test: Batch) -> int:
    """Largest label and one; 0 where targets are no labels."""
    labels = (train.targets, test.targets)
    if not all(isinstance(a, np.ndarray) and np.issubdtype(a.dtype, np.integer) for a in labels):
        return 0
    return max(0, 1 + max(int(a.max()) for a in labels))
