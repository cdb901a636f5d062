"""`ImageData`: which images to train and test on, and in what form; a command-line group."""

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np

from dfa_jax.data.base import Dataset
from dfa_jax.data.digits import load_digits
from dfa_jax.data.image_stream import ImageStream
from dfa_jax.data.tfds import load_tfds, open_tfds
from dfa_jax.errors import InputError, check_choices
from dfa_jax.types import Batch

Standardize = Literal["pixel_range", "scalar", "channel"]
"""Pixels in [0, 1]; or mean 0 and deviation 1 over all pixels; or the same for each channel."""

_CHUNK = 1024  # images; bounds the float64 copies
_MEASURED = 1000  # training images of a stream that its mean and deviation are of


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images with labels, by name.

    Attributes:
        name: `digits` (embedded), or any image set of TensorFlow Datasets, as `mnist`.
        data_dir: folder of prepared TFDS sets; default `TFDS_DATA_DIR`, else TFDS's own.
        num_train: training examples to use, the first of a fixed shuffled order; default all.
        num_test: test (or validation) examples to use, chosen likewise; default all.
        num_validation: training examples set aside to replace the test set, for tuning; 0 for none.
        image_size: side of the square to resize to, pixels; default as stored. A streamed image is
            first cut to the largest square in its middle; others are stretched.
        label_noise: fraction of the training labels that are replaced by classes drawn at random,
            among which may be the right one.
        standardize: to [0, 1], or to mean 0 and deviation 1 of all training pixels or by channel.
        stream: decode images when a step needs them, for TFDS sets that do not fit in memory or
            whose images have several shapes; mean and deviation are then of the first 1,000
            training examples in use, or of all if there are fewer.
    """

    name: str = "digits"
    data_dir: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    num_validation: int = 0
    image_size: int | None = None
    label_noise: float = 0.0
    standardize: Standardize = "scalar"
    stream: bool = False

    def __post_init__(self):
        if not self.name:
            raise InputError("name is empty; expected 'digits' or the name of a TFDS image set")
        for field in ("num_train", "num_test", "image_size"):
            value = getattr(self, field)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise InputError(
                    f"{field} is {value!r}; expected a positive integer, or None for what is stored"
                )
        if not (isinstance(self.num_validation, int) and self.num_validation >= 0):
            raise InputError(
                f"num_validation is {self.num_validation!r}; expected a number of examples, or 0 to"
                " keep the test set"
            )
        if not 0 <= self.label_noise <= 1:
            raise InputError(f"label_noise is {self.label_noise}; expected a fraction from 0 to 1")
        check_choices(self)

    def load(self) -> Dataset:
        """Reads, selects, resizes and standardises; statistics are of the training examples in use.

        Raises:
            InputError: as `load_tfds`, or more examples are asked for than there are; a stream also
                needs `image_size` for images of several shapes, and reads on in `ImageStream.take`.
        """
        if self.stream:
            return self._open_streams()
        source = load_digits() if self.name == "digits" else load_tfds(self.name, self.data_dir)
        train_order, test_order = self._select(len(source.train.targets), len(source.test.targets))
        train = _take(source.train, train_order)
        test = _take(source.train if self.num_validation else source.test, test_order)
        images = _resized(train.inputs, self.image_size)
        if self.standardize == "pixel_range":
            shift, scale = np.zeros((), np.float32), np.full((), source.pixel_max, np.float32)
        else:
            shift, scale = _mean_and_deviation(images, by_channel=self.standardize == "channel")
        test_images = _resized(test.inputs, self.image_size)
        for array in (images, test_images):  # in place: CIFAR-10 is 0.6 GB
            array -= shift
            array /= scale
        return Dataset(
            name=self.name,
            train=Batch(images, _corrupted(train.targets, self.label_noise, source.num_classes)),
            test=Batch(test_images, test.targets),
            num_classes=source.num_classes,
            shift=shift / source.pixel_max,
            scale=scale / source.pixel_max,
        )

    def _open_streams(self) -> Dataset:
        """As `load`, but of the images only those that the statistics need are read."""
        if self.name == "digits":
            raise InputError(
                "stream is true but 'digits' is in memory; set it to false, or name a TFDS set"
            )
        stored_train, stored_test = open_tfds(self.name, self.data_dir)
        train_order, test_order = self._select(len(stored_train), len(stored_test))
        stored_test = stored_train if self.num_validation else stored_test
        num_classes = stored_train.num_classes
        train = ImageStream(
            stored_train,
            train_order,
            self.image_size,
            _new_labels(len(train_order), self.label_noise, num_classes),
        )
        test = ImageStream(stored_test, test_order, self.image_size)
        if self.standardize == "pixel_range":
            shift, scale = np.zeros((), np.float32), np.full((), 255, np.float32)
        else:
            images = train.read(np.arange(min(_MEASURED, len(train)))).inputs
            shift, scale = _mean_and_deviation(images, by_channel=self.standardize == "channel")
        train, test = (dataclasses.replace(s, shift=shift, scale=scale) for s in (train, test))
        return Dataset(self.name, train, test, num_classes, shift / 255, scale / 255)

    def _select(self, num_train: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the stored examples to train and test on, in order.

        With validation the latter are of the training split too, the last ones of its order.
        """
        order = _order(num_train)
        num_left = len(order) - self.num_validation
        if num_left < 1:
            raise InputError(
                f"num_validation is {self.num_validation} but '{self.name}' has {len(order)}"
                " training examples; leave some to train on"
            )
        train = _first("num_train", self.num_train, order[:num_left], "training")
        if self.num_validation:
            return train, _first("num_test", self.num_test, order[num_left:], "validation")
        return train, _first("num_test", self.num_test, _order(num_test), "test")


def _order(num_examples: int) -> np.ndarray:
    """A fixed shuffled order."""
    # RandomState and not default_rng: NumPy promises that its stream never changes.
    return np.random.RandomState(0).permutation(num_examples)


def _first(field: str, number: int | None, order: np.ndarray, role: str) -> np.ndarray:
    if number is not None and number > len(order):
        raise InputError(
            f"{field} is {number} but there are {len(order)} {role} examples; lower it, or leave it"
            " out to use all"
        )
    return order[:number]


def _take(batch: Batch, order: np.ndarray) -> Batch:
    return Batch(batch.inputs[order], batch.targets[order])


def _corrupted(labels: np.ndarray, fraction: float, num_classes: int) -> np.ndarray:
    """The labels with a fraction of them redrawn; always the same ones."""
    new = _new_labels(len(labels), fraction, num_classes)
    return np.where(new < 0, labels, new).astype(labels.dtype)


def _new_labels(num_labels: int, fraction: float, num_classes: int) -> np.ndarray:
    """Labels for a fraction of the examples, drawn at random, and -1 for the others; int32."""
    random = np.random.RandomState(1)
    chosen = random.random_sample(num_labels) < fraction
    drawn = random.randint(num_classes, size=num_labels)
    return np.where(chosen, drawn, -1).astype(np.int32)


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
    """float32 `[n, size, size, channels]`, linear with antialiasing; keeps the pixels' range."""
    num, height, width, channels = images.shape
    if size is None or (height, width) == (size, size):
        return images.astype(np.float32)
    resized = np.empty((num, size, size, channels), np.float32)
    for start in range(0, num, _CHUNK):
        resized[start : start + _CHUNK] = _resize(images[start : start + _CHUNK], size)
    return resized


@functools.partial(jax.jit, static_argnames="size")
def _resize(images: jax.Array, size: int) -> jax.Array:
    shape = (images.shape[0], size, size, images.shape[-1])
    return jax.image.resize(images.astype(np.float32), shape, "linear", antialias=True)


def _mean_and_deviation(images: np.ndarray, *, by_channel: bool) -> tuple[np.ndarray, np.ndarray]:
    """Over all pixels (scalars) or by channel (`[channels]`); sums in float64."""
    total = squares = np.zeros(images.shape[-1])
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].astype(np.float64)
        total = total + chunk.sum((0, 1, 2))
        squares = squares + np.square(chunk).sum((0, 1, 2))
    count = images.size / images.shape[-1]
    mean, mean_square = total / count, squares / count
    if not by_channel:
        mean, mean_square = mean.mean(), mean_square.mean()
    variance = mean_square - np.square(mean)
    if np.any(variance <= 1e-12 * mean_square):
        raise InputError(
            "the training images are constant, so they have no deviation to divide by; use"
            " standardize 'pixel_range'"
        )
    return np.asarray(mean, np.float32), np.asarray(np.sqrt(variance), np.float32)
