"""Where text comes from: the standard library of this Python, or a prepared TFDS set."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dfa_jax.data.locate import NEEDED, WELL_KNOWN_TEXT, data_directory, find_prepared
from dfa_jax.data.stored import fingerprint, readable
from dfa_jax.errors import InputError, require

_UNUSUAL = frozenset(
    (
        # Left out by some distributions of Python:
        *("ensurepip", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo", "venv"),
        # Tables and generated text:
        *("encodings", "pydoc_data"),
    )
)
_TESTS = frozenset(("test", "tests", "idle_test"))
_AT_A_TIME = 64  # documents read at once


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Documents to train and test on, which are read one after the other.

    Attributes:
        title: name and version, for people and records.
        fingerprint: changes with the documents.
        train: starts to read the training documents, each as UTF-8 bytes.
        test: the same for those to test on.
    """

    title: str
    fingerprint: str
    train: Callable[[], Iterator[bytes]]
    test: Callable[[], Iterator[bytes]]


def open_text(name: str, data_dir: str | os.PathLike[str] | None = None) -> TextSource:
    """The text of this name: `stdlib`, or a prepared TFDS set.

    Raises:
        InputError: the set is unknown, not prepared, damaged, or none of text.
    """
    return standard_library() if name == "stdlib" else open_tfds_text(name, data_dir)


def standard_library() -> TextSource:
    """The modules of the running Python's standard library; a document is a file.

    They come in the order of the SHA-256 of their names, and those are tested on whose first byte
    is below 26: a tenth, and the same files in every version of Python that has them. Tests,
    tables, and what distributions of Python tend to leave out are no part of it. As the text
    depends on the version of Python, the title has it, and the first digits of the SHA-256 of it
    all.
    """
    train, test = _library_files()
    digest = hashlib.sha256()
    for path in (*train, *test):
        digest.update(path.read_bytes() + b"\0")
    mark = digest.hexdigest()
    title = f"stdlib (Python {platform.python_version()}, SHA-256 {mark[:8]})"
    return TextSource(
        title, mark, functools.partial(_contents, train), functools.partial(_contents, test)
    )


def _contents(paths: Sequence[pathlib.Path]) -> Iterator[bytes]:
    return (path.read_bytes() for path in paths)


def _library_files() -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Files to train on and to test on."""
    folder = pathlib.Path(os.__file__).parent
    names = {
        path.relative_to(folder).as_posix()
        for module in sys.stdlib_module_names - _UNUSUAL
        if not module.startswith("_sysconfigdata")  # differs between machines
        for path in (folder / f"{module}.py", *(folder / module).rglob("*.py"))
        if path.is_file() and not _TESTS & set(path.relative_to(folder).parts)
    }
    digests = sorted((hashlib.sha256(name.encode()).digest(), name) for name in names)
    train = [folder / name for digest, name in digests if digest[0] >= 26]
    test = [folder / name for digest, name in digests if digest[0] < 26]
    return train, test


def open_tfds_text(name: str, data_dir: str | os.PathLike[str] | None = None) -> TextSource:
    """A prepared set with a feature of type Text: `text`, or the only one that there is.

    The documents come as they are stored: TFDS has shuffled them, unless the set says otherwise. As
    for images, the 'test' split is tested on, or 'validation' if there is no other.

    Raises:
        InputError: the set is unknown, not prepared, damaged, or none of text.
    """
    folder = find_prepared(name, data_directory(data_dir), WELL_KNOWN_TEXT)
    require("data", f"reading '{name}'", *NEEDED)
    with readable(name, folder):
        import tensorflow_datasets as tfds  # slow to import

        builder: Any = tfds.builder_from_directory(folder)
        feature = _text_feature(name, builder.info.features)
        splits = builder.info.splits
        tests = [split for split in ("test", "validation") if split in splits]
        if "train" not in splits or not tests:
            raise InputError(
                f"data set '{name}' has splits {', '.join(splits)}; expected 'train' and one of"
                " 'test' and 'validation'"
            )
        train, test = (
            functools.partial(_read, name, folder, builder.as_data_source(split), feature)
            for split in ("train", tests[0])
        )
    return TextSource(builder.info.full_name, fingerprint(folder), train, test)


def _text_feature(name: str, features: Any) -> str:
    """The feature to read, or an InputError that lists what there is."""
    from tensorflow_datasets import features as kinds

    texts = [key for key, kind in features.items() if isinstance(kind, kinds.Text)]
    if "text" in texts:
        return "text"
    if len(texts) == 1:
        return texts[0]
    found = ", ".join(f"'{key}' ({type(kind).__name__})" for key, kind in sorted(features.items()))
    raise InputError(
        f"data set '{name}' has features {found}; expected 'text' (Text), or only one feature of"
        " type Text"
    )


def _read(name: str, folder: pathlib.Path, source: Any, feature: str) -> Iterator[bytes]:
    for start in range(0, len(source), _AT_A_TIME):
        with readable(name, folder):
            examples = source.__getitems__(range(start, min(start + _AT_A_TIME, len(source))))
        for example in examples:
            yield example[feature]
