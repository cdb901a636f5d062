"""What a data set is, and the order in which its examples are seen."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int32

from dfa_jax.data.stream import Stream
from dfa_jax.errors import InputError
from dfa_jax.types import Batch


class Dataset(NamedTuple):
    """A data set, ready to train on.

    Attributes:
        name: as the configuration spells it.
        train: inputs and targets as NumPy arrays, or trees of them, examples in front: of images
            `[n, height, width, channels]` float32 and `[n]` int32, of text `[n, context]` int32
            both; or a stream of them, whose `inputs` and `targets` are only shapes and types.
        test: the same for the examples that measure; a validation set where one was asked for.
        num_classes: targets are in `[0, num_classes)`; the size of a vocabulary; 0 where unknown.
        shift: what a stored 0 is as a pixel in [0, 1], a number or `[channels]`.
        scale: what a stored 1 is above that, likewise: `pixels = scale * inputs + shift`.
        bytes_per_token: of the test text, for `metrics.bits_per_byte`; None for what is no text.
    """

    name: str
    train: Batch | Stream
    test: Batch | Stream
    num_classes: int
    shift: Any = 0.0
    scale: Any = 1.0
    bytes_per_token: float | None = None


def num_examples(data: Batch | Stream) -> int:
    """The length of the axis in front: examples, or steps of a dispatch.

    >>> num_examples(Batch({"x": np.zeros((3, 2))}, None))
    3
    """
    return len(data) if isinstance(data, Stream) else jax.tree.leaves(data)[0].shape[0]


def check_labels(dataset: Dataset) -> None:
    """Refuses integer targets outside of the classes, which a loss would take for others.

    A stream does so itself, as it reads.

    Raises:
        InputError: names the split, the labels found and those expected.
    """
    for split in ("train", "test"):
        labels = getattr(dataset, split).targets
        if not isinstance(labels, np.ndarray | jax.Array) or not labels.size:
            continue
        if not np.issubdtype(labels.dtype, np.integer):
            continue
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise InputError(
                f"data set '{dataset.name}' has labels {labels.min()} to {labels.max()} in its"
                f" {split} split; expected 0 to {dataset.num_classes - 1}"
            )


class ImageArrays(NamedTuple):
    """A data set as its source stores it.

    Attributes:
        name: as the configuration spells it.
        train: inputs `[n, height, width, channels]` uint8 and targets `[n]` int32, NumPy arrays.
        test: the same for the test split.
        num_classes: targets are in `[0, num_classes)`.
        pixel_max: the value of a fully bright pixel.
    """

    name: str
    train: Batch
    test: Batch
    num_classes: int
    pixel_max: int


@dataclasses.dataclass(frozen=True)
class EpochShuffle:
    """Minibatches addressed by step: a run resumes at any step from one integer.

    Epoch `e` visits the examples in the order `permutation(fold_in(key(seed), e), num_examples)`;
    what remains of it after the last full batch is dropped.

    Attributes:
        num_examples: size of the training set, examples.
        batch_size: examples a step.
        seed: of the permutations; the order depends on nothing else but `num_examples`.

    Raises:
        InputError: a batch is empty or larger than the training set.

    >>> shuffle = EpochShuffle(num_examples=10, batch_size=4, seed=0)
    >>> shuffle.steps_per_epoch, shuffle.indices(start=1, num_steps=3).shape
    (2, (3, 4))
    """

    num_examples: int
    batch_size: int
    seed: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; expected at least 1 example")
        if self.batch_size > self.num_examples:
            raise InputError(
                f"batch_size is {self.batch_size} but there are {self.num_examples} training"
                f" examples; lower batch_size to at most {self.num_examples} or use more examples"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch."""
        return self.num_examples // self.batch_size

    def indices(self, start: int, num_steps: int) -> Int32[np.ndarray, "num_steps batch_size"]:
        """The examples of steps `start` to `start + num_steps - 1`, one row a step.

        Raises:
            InputError: `start` or `num_steps` is negative.
        """
        if start < 0 or num_steps < 0:
            raise InputError(
                f"start is {start}, num_steps is {num_steps}; expected at least 0 steps"
            )
        rows = np.empty((num_steps, self.batch_size), np.int32)
        for row, step in zip(rows, range(start, start + num_steps), strict=True):
            epoch, position = divmod(step, self.steps_per_epoch)
            order = _permutation(self.seed, epoch, self.num_examples)
            row[:] = order[position * self.batch_size :][: self.batch_size]
        return rows


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.array(_draw(jax.random.key(seed), epoch, num_examples), np.int32)
    order.flags.writeable = False  # every caller shares the cached array
    return order


@functools.partial(jax.jit, static_argnames="num_examples")
def _draw(key: Array, epoch: int | Int32[Array, ""], num_examples: int) -> Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
