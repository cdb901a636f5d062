"""`PackedTokens`: a text as flat files of tokens, written once and read through a memory map.

A folder holds `train.bin` and `test.bin`, nothing but tokens, and `tokens.json`: what they were
made of, the vocabulary, and checksums of it all.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt

from dfa_jax.data.vocabulary import SEPARATOR, Vocabulary, vocabulary_from_json
from dfa_jax.errors import InputError, require

VERIFIED_BYTES = 2**30
"""Files up to this size are checked against their checksum whenever they are opened."""

_FORMAT = 1
_DESCRIPTION = "tokens.json"
_AT_A_TIME = 2**22  # bytes of text encoded at once, or one document


class SplitInfo(NamedTuple):
    """What `tokens.json` says of a split.

    Attributes:
        num_tokens: with a separator behind every document.
        num_bytes: of the text, likewise.
        sha256: of the file.
    """

    num_tokens: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, eq=False)
class PackedTokens:
    """An opened folder of tokens.

    Attributes:
        folder: where it is.
        vocabulary: what the tokens mean.
        splits: sizes and checksums by split, `train` and `test`.
    """

    folder: pathlib.Path
    vocabulary: Vocabulary
    splits: Mapping[str, SplitInfo]

    def tokens(self, split: str) -> UInt[np.ndarray, " num_tokens"]:
        """All tokens of a split, uint8, uint16 or uint32, as a read-only memory map."""
        if not self.splits[split].num_tokens:
            return np.empty(0, self.vocabulary.dtype)  # nothing cannot be mapped
        return np.memmap(self.folder / f"{split}.bin", self.vocabulary.dtype, mode="r")

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
            InputError: a file is not what was written.
        """
        for split in self.splits:
            self._verify(split)

    def _verify(self, split: str) -> None:
        with (self.folder / f"{split}.bin").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != (expected := self.splits[split].sha256):
            raise _damaged(
                self.folder,
                f"{split}.bin has checksum {found[:12]}, and {_DESCRIPTION} says {expected[:12]}",
            )


def pack_tokens(
    folder: pathlib.Path,
    made_of: Mapping[str, Any],
    vocabulary: Vocabulary,
    documents: Mapping[str, Iterable[bytes]],
    most_tokens: int | None = None,
) -> None:
    """Encodes documents into a new folder, a few megabytes of text at a time.

    The folder appears whole or not at all. If another process makes the same one at the same time,
    the first stays.

    Args:
        folder: where.
        made_of: what `open_tokens` will have to be told again.
        vocabulary: what to encode with.
        documents: of the splits `train` and `test`.
        most_tokens: stop with the training document that reaches this number.

    Raises:
        InputError: the files cannot be written.
    """
    require("data", "a text", "tqdm")
    limits = {"train": most_tokens}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.mkdtemp(dir=folder.parent, suffix=".tmp")
        try:
            infos = {
                split: _write_split(
                    pathlib.Path(unfinished, f"{split}.bin"), vocabulary, texts, limits.get(split)
                )
                for split, texts in documents.items()
            }
            description = _describe(made_of, vocabulary, infos)
            pathlib.Path(unfinished, _DESCRIPTION).write_text(description, encoding="utf-8")
            _rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"tokens cannot be written to {folder.parent} ({error.strerror or error}); point"
            " XDG_CACHE_HOME at a folder with space that can be written"
        ) from error


def open_tokens(
    folder: pathlib.Path, made_of: Mapping[str, Any], *, verify: bool | None = None
) -> PackedTokens:
    """The tokens in a folder that `pack_tokens` wrote, after a check that they are what they were.

    Sizes, the vocabulary's checksum and what the tokens were made of are always compared. Tokens
    are compared with their checksum in files of up to 1 GiB: that takes at most a few seconds,
    where 300 GB would hold a run up for minutes.

    Args:
        folder: where.
        made_of: what they have to be made of.
        verify: compare all checksums, or none of tokens; by default, those of files up to 1 GiB.

    Raises:
        InputError: something differs; nothing is changed.
    """
    try:
        stored = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        infos = {split: SplitInfo(**info) for split, info in stored["splits"].items()}
        was_made_of, described = stored["made_of"], stored["vocabulary"]
        checksum, version = stored["vocabulary_sha256"], stored["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{_DESCRIPTION} cannot be read: {error!r}") from error
    if version != _FORMAT:
        raise _damaged(folder, f"{_DESCRIPTION} has format {version} and not {_FORMAT}")
    if was_made_of != dict(made_of):
        raise _damaged(folder, f"they were made of {was_made_of} and not of {dict(made_of)}")
    for split in ("train", "test"):
        if split not in infos:
            raise _damaged(folder, f"{_DESCRIPTION} has no split '{split}'")
    if checksum != _checksum(described):
        raise _damaged(folder, f"the vocabulary does not match its checksum {str(checksum)[:12]}")
    try:
        packed = PackedTokens(folder, vocabulary_from_json(described), infos)
    except InputError as error:
        raise _damaged(folder, str(error)) from error
    for split, info in infos.items():
        size = _size(folder / f"{split}.bin")
        if size != (expected := info.num_tokens * packed.vocabulary.dtype.itemsize):
            raise _damaged(folder, f"{split}.bin has {size} bytes instead of {expected}")
        if size <= VERIFIED_BYTES if verify is None else verify:
            packed._verify(split)
    return packed


def _damaged(folder: pathlib.Path, reason: str) -> InputError:
    line = " ".join(reason.split())
    return InputError(
        f"the tokens in {folder} are damaged ({line}); delete the folder to have it made anew"
    )


def _size(path: pathlib.Path) -> int:
    """Bytes; -1 for a file that is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _checksum(vocabulary: Any) -> str:
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()


def _describe(
    made_of: Mapping[str, Any], vocabulary: Vocabulary, infos: Mapping[str, SplitInfo]
) -> str:
    described = vocabulary.to_json()
    return json.dumps(
        {
            "format": _FORMAT,
            "made_of": dict(made_of),
            "dtype": vocabulary.dtype.name,
            "vocab_size": vocabulary.size,
            "vocabulary_sha256": _checksum(described),
            "splits": {split: info._asdict() for split, info in infos.items()},
            "vocabulary": described,
        },
        indent=1,
    )


def _rename(unfinished: str, folder: pathlib.Path) -> None:
    """Puts the folder in its place, unless one is there already."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():
            raise


def _write_split(
    path: pathlib.Path, vocabulary: Vocabulary, documents: Iterable[bytes], most: int | None
) -> SplitInfo:
    import tqdm  # of an extra

    num_tokens, num_bytes, digest = 0, 0, hashlib.sha256()
    separator = np.full(1, SEPARATOR, vocabulary.dtype).tobytes()
    bar = tqdm.tqdm(
        desc=f"packing {path.stem}", unit="B", unit_scale=True, delay=2, disable=None, leave=False
    )
    with path.open("wb") as file, bar:
        for texts in _batches(documents):
            for text, tokens in zip(texts, vocabulary.encode(texts), strict=True):
                written = tokens.astype(vocabulary.dtype).tobytes() + separator
                file.write(written)
                digest.update(written)
                num_tokens += len(tokens) + 1
                num_bytes += len(text) + 1
                bar.update(len(text) + 1)
                if most is not None and num_tokens >= most:
                    return SplitInfo(num_tokens, num_bytes, digest.hexdigest())
    return SplitInfo(num_tokens, num_bytes, digest.hexdigest())


def _batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Documents, several at a time so that threads share them, but not too many."""
    documents = iter(documents)
    while first := list(itertools.islice(documents, 1)):
        batch, size = first, len(first[0])
        while size < _AT_A_TIME and (more := list(itertools.islice(documents, 1))):
            batch += more
            size += len(more[0])
        yield batch
