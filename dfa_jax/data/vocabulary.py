"""From documents to tokens and back: single bytes, or byte pairs that a text made worth a token."""

import abc
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from dfa_jax.errors import InputError, reason, require

Tokenizer = Literal["bytes", "bpe"]
"""A token a byte, 256 of them; or byte-level byte-pair encoding, learned from the training text."""

SEPARATOR = 0
"""The token behind every document; of bytes the byte 0, which text does not contain."""

SMALLEST_BPE = 257
"""Tokens of a vocabulary of all bytes and the separator."""

_SEPARATOR_NAME = "<|separator|>"
_LEARN_FROM = 2**28  # bytes of text; the library keeps every distinct word in memory


class Vocabulary(abc.ABC):
    """Tokens `0` to `size - 1`, of which 0 is the separator; any bytes can be encoded."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of tokens."""

    @abc.abstractmethod
    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """The tokens of each document, without separators."""

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> bytes:
        """The text of some tokens; a separator becomes a byte 0."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All that `vocabulary_from_json` needs."""

    @property
    def dtype(self) -> np.dtype:
        """The smallest of `uint8`, `uint16` and `uint32` that holds every token; little-endian."""
        for dtype in ("<u1", "<u2"):
            if self.size <= np.iinfo(dtype).max + 1:
                return np.dtype(dtype)
        return np.dtype("<u4")


@dataclasses.dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """A token a byte.

    >>> ByteVocabulary().encode([b"ab"])
    [array([97, 98], dtype=uint8)]
    """

    @property
    def size(self) -> int:
        """256."""
        return 256

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """The bytes of each document."""
        return [np.frombuffer(document, np.uint8) for document in documents]

    def decode(self, tokens: np.ndarray) -> bytes:
        """The tokens' bytes."""
        return np.asarray(tokens).astype(np.uint8).tobytes()

    def to_json(self) -> dict[str, Any]:
        """Its kind says it all."""
        return {"kind": "bytes"}


@dataclasses.dataclass(frozen=True)
class BPEVocabulary(Vocabulary):
    """Byte-level byte-pair encoding, by the library `tokenizers`.

    Text is cut into words, spaces and numbers as for GPT-2, and merges stay within those. A
    document must be UTF-8: what is not becomes U+FFFD.

    Attributes:
        description: the library's own description of a tokenizer, as JSON text.

    Raises:
        InputError: the library cannot read the description.

    Source: Sennrich et al. (2016), arXiv 1508.07909; over bytes, Radford et al. (2019), GPT-2.
    """

    description: str

    def __post_init__(self):
        _ = self._tokenizer

    @property
    def size(self) -> int:
        """Bytes, the separator, and a token for every merge."""
        return self._tokenizer.get_vocab_size()

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """The tokens of each document, in several threads."""
        texts = [document.decode("utf-8", "replace") for document in documents]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def decode(self, tokens: np.ndarray) -> bytes:
        """The tokens' text; a character that is cut in two at an end becomes U+FFFD."""
        tokens = np.asarray(tokens)
        documents = np.split(tokens, np.flatnonzero(tokens == SEPARATOR))
        texts = (self._tokenizer.decode(document.tolist()) for document in documents)
        return b"\0".join(text.encode() for text in texts)

    def to_json(self) -> dict[str, Any]:
        """The library's description, in which order matters nowhere but in lists."""
        return {"kind": "bpe", "tokenizer": json.loads(self.description)}

    @functools.cached_property
    def _tokenizer(self) -> Any:
        require("data", "a vocabulary of byte pairs", "tokenizers")
        import tokenizers  # slow to import

        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.description)
        except Exception as error:  # the library raises no class of its own
            raise InputError(
                f"the description of a vocabulary is damaged ({reason(error)})"
            ) from error
        tokenizer.encode_special_tokens = True  # a text that spells a separator contains none
        return tokenizer


def learn_bpe(documents: Iterable[bytes], size: int) -> BPEVocabulary:
    """The vocabulary of `size` tokens that merges the most frequent pairs of these documents.

    It reads the first 256 MiB. The same documents give the same vocabulary.

    Raises:
        InputError: `size` is below 257, or more than there are pairs to merge.
    """
    require("data", "a vocabulary of byte pairs", "tokenizers")
    import tokenizers  # slow to import

    check_bpe_size(size)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_SEPARATOR_NAME],  # the first, so that its token is 0
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document.decode("utf-8", "replace") for document in _first(documents, _LEARN_FROM))
    tokenizer.train_from_iterator(texts, trainer)
    found = _bpe_from_json(json.loads(tokenizer.to_str()))
    if found.size < size:
        raise InputError(
            f"vocab_size is {size} but the training text has pairs to merge for {found.size} tokens"
            f" only; lower it to at most {found.size}, or use more text"
        )
    return found


def check_bpe_size(size: int | None) -> None:
    """Refuses a number of tokens that has no room for every byte and the separator."""
    if size is None or size < SMALLEST_BPE:
        raise InputError(
            f"vocab_size is {size}; tokenizer 'bpe' needs at least {SMALLEST_BPE} tokens: 256 bytes"
            " and the separator between documents"
        )


def vocabulary_from_json(stored: dict[str, Any]) -> Vocabulary:
    """The vocabulary that `to_json` described.

    Raises:
        InputError: it is none.
    """
    if stored.get("kind") == "bytes":
        return ByteVocabulary()
    if stored.get("kind") == "bpe":
        return _bpe_from_json(stored.get("tokenizer"))
    raise InputError(f"a vocabulary is of kind {stored.get('kind')!r}; expected 'bytes' or 'bpe'")


def _bpe_from_json(description: Any) -> BPEVocabulary:
    """Equal descriptions give equal vocabularies, in whatever order they were written."""
    return BPEVocabulary(json.dumps(description, sort_keys=True))


def _first(documents: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    """Whole documents until there are so many bytes."""
    for document in documents:
        yield document
        num_bytes -= len(document)
        if num_bytes <= 0:
            return
