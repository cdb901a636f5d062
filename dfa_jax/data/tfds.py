"""Image-classification sets in TensorFlow Datasets' prepared form, read without TensorFlow."""

import os
from typing import Any

import numpy as np

from dfa_jax.data.base import ImageArrays
from dfa_jax.data.cache import cached_arrays
from dfa_jax.data.locate import NEEDED, data_directory, find_prepared
from dfa_jax.data.stored import StoredSplit, fingerprint, readable
from dfa_jax.errors import InputError, require
from dfa_jax.types import Batch

_CHUNK = 1000  # examples decoded at a time


def load_tfds(name: str, data_dir: str | os.PathLike[str] | None = None) -> ImageArrays:
    """The training split and the test split of a prepared set.

    If there is no test split, or its labels are not public, the validation split stands in for it.

    It opens the prepared folder with the reader under `tfds.data_source`, since that function would
    start to download a set that is missing. Decoded splits are cached (`dfa_jax.data.cache`).

    Args:
        name: `set` or `set/config`, either with `:version`; by default the latest that is prepared.
        data_dir: folder of prepared sets; by default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
        InputError: the set is unknown, not prepared, damaged, or not of 8-bit images of one shape.
    """
    folder = find_prepared(name, data_directory(data_dir))
    require("data", f"reading '{name}'", *NEEDED)
    with readable(name, folder):
        import tensorflow_datasets as tfds  # slow to import

        builder = tfds.builder_from_directory(folder)
        num_classes = _check_features(name, builder.info.features)
        key = f"{builder.info.full_name.replace('/', '-')}-{fingerprint(folder)}"
        train, test = (
            _read_split(f"'{name}', split '{split}'", f"{key}-{split}", source, num_classes)
            for split, source in _open_splits(name, builder).items()
        )
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise InputError(
            f"data set '{name}' has training images {train.inputs.shape[1:]} and test images"
            f" {test.inputs.shape[1:]}; expected one shape"
        )
    return ImageArrays(name, train, test, num_classes, pixel_max=255)


def open_tfds(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[StoredSplit, StoredSplit]:
    """As `load_tfds`, but only opens the two splits, and images may have several shapes.

    Raises:
        InputError: the set is unknown, not prepared, damaged, empty, or not of 8-bit images.
    """
    folder = find_prepared(name, data_directory(data_dir))
    require("data", f"reading '{name}'", "PIL", *NEEDED)
    with readable(name, folder):
        import tensorflow_datasets as tfds  # slow to import

        builder = tfds.builder_from_directory(folder)
        features: Any = builder.info.features
        num_classes = _check_features(name, features)
        # TFDS would take a palette's indices for grey, and CMYK for RGBA; Pillow knows better.
        encoded = {"image": tfds.decode.SkipDecoding()}
        train, test = (
            StoredSplit(name, split, folder, source, features["image"].shape, num_classes)
            for split, source in _open_splits(name, builder, encoded).items()
        )
    for split in (train, test):
        if not len(split):
            raise InputError(f"data set {split.where} is empty; prepare the set again")
    return train, test


def _check_features(name: str, features: Any) -> int:
    """The number of classes of a set of 8-bit images with labels, or an InputError."""
    from tensorflow_datasets import features as kinds

    image, label = (dict(features).get(key) for key in ("image", "label"))
    is_image = isinstance(image, kinds.Image) and image.np_dtype == np.uint8
    if not (is_image and isinstance(label, kinds.ClassLabel) and label.num_classes):
        found = ", ".join(
            f"'{key}' ({type(kind).__name__})" for key, kind in sorted(features.items())
        )
        raise InputError(
            f"data set '{name}' has features {found}; expected 'image' (Image of uint8) and 'label'"
            " (ClassLabel with its number of classes)"
        )
    return label.num_classes


def _open_splits(name: str, builder: Any, decoders: Any = None) -> dict[str, Any]:
    """The training split, then the one to test on: 'test' if it has labels, else 'validation'."""
    splits = builder.info.splits
    test_splits = [split for split in ("test", "validation") if split in splits]
    if "train" not in splits or not test_splits:
        raise InputError(
            f"data set '{name}' has splits {', '.join(splits)}; expected 'train' and one of 'test'"
            " and 'validation'"
        )
    sources = {
        split: builder.as_data_source(split, decoders=decoders) for split in ("train", *test_splits)
    }
    hidden = len(sources[test_splits[0]]) and sources[test_splits[0]][0]["label"] < 0
    kept = test_splits[-1] if hidden else test_splits[0]  # ImageNet's test labels are secret
    return {split: sources[split] for split in ("train", kept)}


def _read_split(where: str, key: str, source: Any, num_classes: int) -> Batch:
    arrays = cached_arrays(key, lambda: _decode(where, source))
    labels = arrays["labels"]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"data set {where} has labels {labels.min()} to {labels.max()}; expected 0 to"
            f" {num_classes - 1}"
        )
    return Batch(arrays["images"], labels)


def _decode(where: str, source: Any) -> dict[str, np.ndarray]:
    """All examples of a split, `images [n, height, width, channels]` and `labels [n]`."""
    if not len(source):
        raise InputError(f"data set {where} is empty; prepare the set again")
    shape = source[0]["image"].shape
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):
        chunk = range(start, min(start + _CHUNK, len(source)))
        for i, example in zip(chunk, source.__getitems__(chunk), strict=True):
            if example["image"].shape != shape:
                raise InputError(
                    f"data set {where} has images of shapes {shape} and {example['image'].shape};"
                    " expected one shape: prepare a resized copy of the set"
                )
            images[i], labels[i] = example["image"], example["label"]
    return {"images": images, "labels": labels}
