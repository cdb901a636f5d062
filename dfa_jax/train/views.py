"""`Views`: the images of a batch, augmented on the device, once or as two views each."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfa_jax.data import Dataset
from dfa_jax.data.augment import Augmentation, two_views
from dfa_jax.keys import named_key
from dfa_jax.types import Batch, PRNGKey


@dataclasses.dataclass(frozen=True)
class Views:
    """What a step trains on in place of the stored examples.

    Augmentations want pixels in [0, 1] and data sets are stored standardised, hence

        pixels = scale * inputs + shift

    before them, and the way back behind them.

    Attributes:
        first: of every image; without `second` the batch stays as long as it is.
        second: of every image again: then rows 2i and 2i + 1 are the views of image i.
        shift: a pixel's value where the input is 0; one number, or one a channel.
        scale: what an input of 1 adds to that, likewise.
    """

    first: Augmentation
    second: Augmentation | None = None
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, dataset: Dataset, first: Augmentation, second: Augmentation | None) -> "Views":
        """Views of a data set's images."""
        shift, scale = (tuple(np.ravel(x).tolist()) for x in (dataset.shift, dataset.scale))
        return cls(first, second, shift, scale)

    @property
    def per_image(self) -> int:
        """Rows of the result an image."""
        return 1 if self.second is None else 2

    def __call__(self, key: PRNGKey, batch: Batch) -> Batch:
        """The batch of a step; `key` is the step's, and an image's own follows from its index."""
        key = named_key(key, "views")
        scale, shift = self._by_channel(self.scale), self._by_channel(self.shift)
        pixels = batch.inputs * scale + shift
        if self.second is None:
            pixels, targets = self.first(key, pixels), batch.targets
        else:
            pixels = two_views(key, pixels, self.first, self.second)
            targets = jnp.repeat(batch.targets, 2, axis=0)
        return Batch((pixels - shift) / scale, targets)

    def _by_channel(self, values: tuple[float, ...]) -> Float[Array, "1 1 1 channels"]:
        return jnp.asarray(values, jnp.float32)[None, None, None]
