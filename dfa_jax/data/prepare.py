"""Prepares a data set for `dfa_jax`: `python -m dfa_jax.data.prepare NAME --data-dir DIR`.

The only place that needs TensorFlow (`pip install 'dfa_jax[prepare]'`), and a network.
"""

import argparse
import difflib
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from dfa_jax.data.locate import NEEDED, data_directory, registered
from dfa_jax.errors import InputError, reason, require


def prepare(name: str, directory: pathlib.Path) -> pathlib.Path:
    """Downloads a TFDS set and stores it as ArrayRecord; returns its folder.

    Raises:
        InputError: TFDS does not know the name, TensorFlow is missing, or the preparation failed.
    """
    require("prepare", "preparing a data set", *NEEDED)
    import tensorflow_datasets as tfds  # slow to import

    names = registered()
    if (base := name.split(":")[0].split("/")[0]) not in names:
        near = difflib.get_close_matches(base, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(
            f"unknown TFDS data set '{name}'; {hint}tfds.list_builders() lists all {len(names)}"
        )
    require("prepare", "preparing a data set", "tensorflow")  # TFDS would only find out later
    try:
        builder = tfds.builder(name, data_dir=directory)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # any kind: network, disk, checksum, a set that needs manual steps
        raise InputError(
            f"preparing '{name}' in {directory} failed: {reason(error, 300)}"
        ) from error
    return pathlib.Path(builder.data_dir)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; usage: {' '.join(self.format_usage().split()[1:])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for bad input."""
    parser = _Parser(prog="python -m dfa_jax.data.prepare", description=__doc__)
    parser.add_argument("name", help="TFDS name: set, set/config, or either with :version")
    parser.add_argument(
        "--data-dir", help="folder for prepared sets (default: TFDS_DATA_DIR, else TFDS's own)"
    )
    try:
        options = parser.parse_args(arguments)
        print(f"prepared: {prepare(options.name, data_directory(options.data_dir))}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
