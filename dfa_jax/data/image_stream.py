"""`ImageStream`: images that do not fit in memory, decoded by index when they are asked for."""

import concurrent.futures
import dataclasses
import io
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dfa_jax.data.stored import StoredSplit
from dfa_jax.data.stream import Stream
from dfa_jax.errors import InputError, reason
from dfa_jax.types import Batch

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's names for 8-bit pixels of so many channels."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStream(Stream):
    """Examples of one split, in a fixed order, of which only those asked for are in memory.

    Stored images may be of any shape and any colours: a grey, palette, CMYK or RGBA image becomes
    what the set's others are (transparency is dropped), and `image_size` pixels a side are made of
    the largest square in the middle, by linear interpolation with antialiasing, back to 8 bits.

    Attributes:
        split: where the examples are stored.
        order: which stored example each of these is, `[n]`.
        image_size: side of the square to resize to, pixels; None for images of one stored shape.
        new_labels: labels in place of the stored ones, `[n]`, -1 to keep one; None to keep all.
        shift: what to subtract from the pixels, 0 to 255; one number, or `[channels]` float32.
        scale: what to divide by then, likewise.

    Raises:
        InputError: images have no fixed shape and there is no `image_size`, or an odd number of
            channels.
    """

    split: StoredSplit
    order: np.ndarray
    image_size: int | None = None
    new_labels: np.ndarray | None = None
    shift: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0

    def __post_init__(self):
        if self._channels not in _MODES:
            raise InputError(
                f"data set {self.split.where} has images of {self._channels} channels; expected"
                f" {', '.join(map(str, _MODES))}"
            )
        if self.image_size is None and None in self.split.image_shape:
            raise InputError(
                f"data set {self.split.where} has images of several shapes,"
                f" {self.split.image_shape}; set image_size to the pixels a side to resize to"
            )

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.order)

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """Shape and type of all inputs, `[n, height, width, channels]` float32."""
        height, width = self._sides
        return jax.ShapeDtypeStruct((len(self), height, width, self._channels), np.float32)

    @property
    def targets(self) -> jax.ShapeDtypeStruct:
        """Shape and type of all targets, `[n]` int32."""
        return jax.ShapeDtypeStruct((len(self),), np.int32)

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at these places of the order, standardised, as NumPy arrays.

        Raises:
            InputError: an image is broken, or a label is out of range; names set, split and index.
        """

        def standardized(pixels: np.ndarray) -> np.ndarray:
            image = pixels.astype(np.float32)
            image -= self.shift
            image /= self.scale
            return image

        return self._collect(indices, np.float32, standardized)

    def read(self, indices: np.ndarray) -> Batch:
        """As `take`, with pixels as stored, inputs `[k, height, width, channels]` uint8."""
        return self._collect(indices, np.uint8, lambda pixels: pixels)

    def _collect(
        self, indices: np.ndarray, dtype: type, convert: Callable[[np.ndarray], np.ndarray]
    ) -> Batch:
        stored: list[int] = self.order[indices].tolist()
        examples = self.split.read(stored)
        images = np.empty((len(examples), *self.inputs.shape[1:]), dtype)

        def decode(row: int) -> None:
            images[row] = convert(self._decoded(stored[row], examples[row]["image"]))

        # Threads, not processes: Pillow and NumPy work without the interpreter's lock.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(decode, range(len(examples))))
        labels = np.array([example["label"] for example in examples], np.int32)
        self._check_labels(stored, labels)
        if self.new_labels is not None:
            new = self.new_labels[indices]
            labels = np.where(new < 0, labels, new).astype(np.int32)
        return Batch(images, labels)

    @property
    def _channels(self) -> int:
        return self.split.image_shape[-1]

    @property
    def _sides(self) -> tuple[int, int]:
        """Height and width of every image."""
        size = self.image_size
        return self.split.image_shape[:2] if size is None else (size, size)

    def _decoded(self, index: int, encoded: bytes) -> np.ndarray:
        """`[height, width, channels]` uint8."""
        from PIL import Image  # of an extra

        try:
            with Image.open(io.BytesIO(encoded)) as image:
                image = image.convert(_MODES[self._channels])
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
            raise InputError(
                f"image {index} of data set {self.split.where} cannot be decoded ({reason(error)});"
                " prepare the set anew"
            ) from error
        height, width = self._sides
        if self.image_size is not None:
            image = _squared(image, self.image_size)
        elif (image.height, image.width) != (height, width):
            raise InputError(
                f"image {index} of data set {self.split.where} is {image.height} by {image.width}"
                f" pixels, unlike its description, {height} by {width}; set image_size to resize"
            )
        return np.asarray(image).reshape(height, width, self._channels)

    def _check_labels(self, stored: list[int], labels: np.ndarray) -> None:
        wrong = (labels < 0) | (labels >= self.split.num_classes)
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"image {stored[row]} of data set {self.split.where} has label {labels[row]};"
                f" expected 0 to {self.split.num_classes - 1}"
            )


def _squared(image: Any, size: int) -> Any:
    """The largest square in the middle, resized; one that is of this size already is unchanged."""
    from PIL import Image  # of an extra

    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    # Cut first: `resize(box=...)` lets pixels from outside of the box shine in at its border.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)
