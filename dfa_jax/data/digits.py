"""The embedded data set: 1,797 handwritten digits of 8x8 pixels, no download."""

from typing import Any

import numpy as np

from dfa_jax.data.base import ImageArrays
from dfa_jax.errors import require
from dfa_jax.types import Batch


def load_digits() -> ImageArrays:
    """Digits 0 to 9, `[n, 8, 8, 1]`, pixels 0 to 16: 1,437 for training and 360 for testing.

    The split is fixed and stratified: the test set is every fifth example of a shuffled order that
    is grouped by class.

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository (its test set), as scikit-learn ships it (`sklearn.datasets.load_digits`).
    """
    require("data", "the data set 'digits'", "sklearn")
    from sklearn import datasets  # slow to import

    source: Any = datasets.load_digits()
    images = source.images.astype(np.uint8)[..., None]
    labels = source.target.astype(np.int32)
    # RandomState and not default_rng: NumPy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    test = by_class[::5]
    train = np.setdiff1d(by_class, test)
    return ImageArrays(
        name="digits",
        train=Batch(images[train], labels[train]),
        test=Batch(images[test], labels[test]),
        num_classes=10,
        pixel_max=16,
    )
