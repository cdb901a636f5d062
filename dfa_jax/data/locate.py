"""Where TensorFlow Datasets' prepared sets are on this machine; offline and at once."""

import importlib
import os
import pathlib
from collections.abc import Sequence

from dfa_jax.errors import InputError, require, unknown

WELL_KNOWN = ("digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn_cropped")
"""Names to suggest beside those that are prepared; `digits` is embedded."""

WELL_KNOWN_TEXT = ("stdlib", "tiny_shakespeare", "wiki40b/en", "lm1b", "c4/en")
"""The same for text; `stdlib` is embedded."""


NEEDED = ("tensorflow_datasets", "importlib_resources", "array_record")
"""Modules that read prepared sets; TFDS does not say that it needs the second."""


class NotPreparedError(InputError):
    """A set that TFDS has is not on this machine."""


def data_directory(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Where prepared sets are: `data_dir`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(os.path.expanduser(chosen))


def find_prepared(
    name: str, directory: pathlib.Path, well_known: Sequence[str] = WELL_KNOWN
) -> pathlib.Path:
    """The folder of a prepared set, named `set` or `set/config`, either with `:version`.

    Args:
        name: as the user spells it.
        directory: of prepared sets.
        well_known: names to suggest beside those that are prepared.

    Raises:
        NotPreparedError: it is not there; says how to get it.
        InputError: there is no such set; says which name is near.
    """
    prepared = prepared_sets(directory)
    if name in prepared:
        return prepared[name]
    base = name.split(":")[0].split("/")[0]
    variants = [other for other in prepared if other.startswith((f"{base}/", f"{base}:"))]
    if variants:
        raise InputError(f"{unknown('data set', name, variants)} (in {directory})")
    if base not in well_known and base not in registered():
        latest = (other for other in prepared if ":" not in other)
        names = dict.fromkeys((*well_known, *latest))
        raise InputError(f"{unknown('data set', name, names)} (searched {directory})")
    raise NotPreparedError(
        f"data set '{name}' is not in {directory}: get it with `pip install 'dfa_jax[prepare]'` and"
        f" `python -m dfa_jax.data.prepare {name} --data-dir {directory}`, or point --data.data-dir"
        " or TFDS_DATA_DIR at a folder that has it"
    )


def prepared_sets(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Folders of the sets in `directory` by `name:version`, and by name for the latest version."""
    found = []
    for depth in ("*/*", "*/*/*"):  # set/version, set/config/version
        for info in directory.glob(f"{depth}/dataset_info.json"):
            numbers = info.parent.name.split(".")
            if all(number.isdecimal() for number in numbers):  # not an `incomplete.*` folder
                found.append((tuple(map(int, numbers)), info.parent))
    by_name = {}
    for _, folder in sorted(found):
        name = folder.parent.relative_to(directory).as_posix()
        by_name[name] = by_name[f"{name}:{folder.name}"] = folder
    return by_name


def registered() -> Sequence[str]:
    """Names that TFDS can prepare."""
    require("data", "a list of TFDS's data sets", *NEEDED)
    import tensorflow_datasets as tfds  # slow to import

    # TFDS stops to look for names at the first folder that does not import (one needs h5py), before
    # it has come to this one, which has c4 and wiki40b.
    importlib.import_module("tensorflow_datasets.text")
    return tfds.list_builders(with_community_datasets=False)
