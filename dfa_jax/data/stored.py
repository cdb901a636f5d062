"""A split of a prepared set, from which single examples are read; and what TFDS raises over it."""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from dfa_jax.errors import InputError, reason


@dataclasses.dataclass(frozen=True)
class StoredSplit:
    """One split of a prepared set, of which examples are read when they are asked for.

    Attributes:
        name: of the set, as the configuration spells it.
        split: its name.
        folder: of the prepared set.
        source: TFDS's reader, which leaves images encoded.
        image_shape: (height, width, channels); None for a side that differs between images.
        num_classes: labels are in `[0, num_classes)`.
    """

    name: str
    split: str
    folder: pathlib.Path
    source: Any
    image_shape: tuple[Any, Any, Any]
    num_classes: int

    @property
    def where(self) -> str:
        """Set and split, for messages."""
        return f"'{self.name}', split '{self.split}'"

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.source)

    def read(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Stored examples: `image`, encoded bytes, and `label`, among others.

        Raises:
            InputError: the set is damaged.
        """
        with readable(self.name, self.folder):
            return self.source.__getitems__(indices)


@contextlib.contextmanager
def readable(name: str, folder: pathlib.Path) -> Iterator[None]:
    """Turns what TFDS raises over a damaged set into one line."""
    remedy = f"`python -m dfa_jax.data.prepare {name} --data-dir OTHER_FOLDER`"
    try:
        yield
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(
            f"data set '{name}' in {folder} is not stored as array_record, and other formats need"
            f" TensorFlow to read; prepare it anew with {remedy}"
        ) from error
    except Exception as error:  # TFDS, array_record, protobuf and Pillow share no base class
        raise InputError(
            f"data set '{name}' in {folder} cannot be read ({reason(error)}); prepare it anew with"
            f" {remedy}"
        ) from error


def fingerprint(folder: pathlib.Path) -> str:
    """Changes with any file of the prepared set: their names, sizes and times of change."""
    status = sorted((file.name, file.stat()) for file in folder.iterdir())
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in status]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
