"""`TextData`: which text to train and test a language model on; a command-line group."""

import dataclasses
import hashlib
import json
import pathlib
import re

import numpy as np

from dfa_jax.data.base import Dataset
from dfa_jax.data.cache import cache_directory
from dfa_jax.data.documents import TextSource, open_text
from dfa_jax.data.stream import Stream
from dfa_jax.data.tokens import PackedTokens, open_tokens, pack_tokens
from dfa_jax.data.vocabulary import ByteVocabulary, Tokenizer, check_bpe_size, learn_bpe
from dfa_jax.data.windows import TokenWindows
from dfa_jax.errors import InputError, check_choices
from dfa_jax.types import Batch

STREAMED_BYTES = 2**30
"""Windows that take more memory than this are streamed unless `stream` says otherwise."""

_PACKED_AT_LEAST = 2**30  # training tokens: of larger sets, only as many of these as are needed
_BYTES_A_TOKEN = 8  # in memory: an int32 among the inputs, another among the targets


@dataclasses.dataclass(frozen=True)
class TextData:
    """Text in windows of equal length, for models that predict the next token.

    Documents follow each other, a separator (token 0) behind each, and windows are cut regardless
    of where they end. The tokens are packed once and then kept in the cache, with their vocabulary
    and checksums (`dfa_jax.data.tokens`).

    Attributes:
        name: `stdlib`, the text of this Python's standard library (embedded), or any text set of
            TensorFlow Datasets, as `wiki40b/en`.
        data_dir: folder of prepared TFDS sets; default `TFDS_DATA_DIR`, else TFDS's own.
        tokenizer: `bytes`, or `bpe`, which is learned from the training text.
        vocab_size: tokens of `bpe`, at least 257; bytes are 256.
        context: tokens a window.
        num_train: training tokens to use, the first ones, in whole windows; default all.
        num_test: test (or validation) tokens to use, likewise; default all.
        num_validation: training tokens set aside to replace the test set, for tuning, the very
            first ones; 0 for none.
        stream: read windows from the file when a step needs them, instead of holding them all on
            the device as int32, 8 bytes a token; default for more than 1 GiB.
    """

    name: str = "stdlib"
    data_dir: str | None = None
    tokenizer: Tokenizer = "bytes"
    vocab_size: int | None = None
    context: int = 256
    num_train: int | None = None
    num_test: int | None = None
    num_validation: int = 0
    stream: bool | None = None

    def __post_init__(self):
        if not self.name:
            raise InputError("name is empty; expected 'stdlib' or the name of a TFDS text set")
        if self.context < 1:
            raise InputError(f"context is {self.context}; expected at least 1 token")
        for field in ("num_train", "num_test", "num_validation"):
            value = getattr(self, field)
            if (
                value is not None
                and value < self.context
                and (field, value)
                != (
                    "num_validation",
                    0,
                )
            ):
                raise InputError(
                    f"{field} is {value} tokens, less than a window of {self.context}; raise it, or"
                    " lower context"
                )
        check_choices(self)
        if self.tokenizer == "bpe":
            check_bpe_size(self.vocab_size)
        elif self.vocab_size is not None:
            raise InputError(
                f"vocab_size is {self.vocab_size} and tokenizer 'bytes' has 256 tokens; leave it"
                " out, or choose tokenizer 'bpe'"
            )

    def load(self) -> Dataset:
        """Packs the text if that has not been done, and cuts windows.

        Raises:
            InputError: the set is unknown, not prepared or none of text, its packed tokens are
                damaged, or more tokens are asked for than there are.
        """
        source = open_text(self.name, self.data_dir)
        packed = self._packed(source)
        train, test = packed.tokens("train"), packed.tokens("test")
        measured = packed.splits["test"]
        if self.num_validation:
            validation = self.num_validation // self.context * self.context
            test, train = train[: validation + 1], train[validation:]
            measured = packed.splits["train"]
        return Dataset(
            name=source.title,
            train=self._windows(packed, train, "num_train", "training"),
            test=self._windows(packed, test, "num_test", "test"),
            num_classes=packed.vocabulary.size,
            bytes_per_token=measured.num_bytes / max(1, measured.num_tokens),
        )

    def _windows(
        self, packed: PackedTokens, tokens: np.ndarray, field: str, role: str
    ) -> Batch | Stream:
        """The windows of a split, the first ones if the field has a number."""
        number, found = getattr(self, field), max(0, len(tokens) - 1)
        if found < self.context:
            raise InputError(
                f"data set '{self.name}' has {len(tokens)} {role} tokens, and a window of"
                f" {self.context} needs one more than that; lower context, or use more text"
            )
        if number is not None:
            if number > found:
                raise InputError(
                    f"{field} is {number} but there are {found} {role} tokens to predict; lower it,"
                    " or leave it out to use all"
                )
            tokens = tokens[: number // self.context * self.context + 1]
        where = f"'{self.name}', {role} tokens"
        windows = TokenWindows(tokens, self.context, packed.vocabulary.size, where)
        large = len(windows) * self.context * _BYTES_A_TOKEN > STREAMED_BYTES
        return windows if (large if self.stream is None else self.stream) else windows.read_all()

    def _packed(self, source: TextSource) -> PackedTokens:
        """The tokens from the cache, after packing them if they are not there."""
        made_of = {
            "source": source.title,
            "fingerprint": source.fingerprint,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "most_tokens": self._most_tokens(),
        }
        folder = _folder(made_of)
        if not folder.exists():
            vocabulary = ByteVocabulary()
            if self.tokenizer == "bpe":
                vocabulary = learn_bpe(source.train(), self.vocab_size or 0)
            documents = {"train": source.train(), "test": source.test()}
            pack_tokens(folder, made_of, vocabulary, documents, made_of["most_tokens"])
        return open_tokens(folder, made_of)

    def _most_tokens(self) -> int | None:
        """Training tokens to pack, a multiple of 2^30; None for all of them.

        Packing all of `c4` would take a day and 300 GB.
        """
        if self.num_train is None:
            return None
        needed = self.num_validation + self.num_train + 1
        return -(-needed // _PACKED_AT_LEAST) * _PACKED_AT_LEAST


def _folder(made_of: dict) -> pathlib.Path:
    """A name for people, and a digest of everything."""
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    words = re.sub(r"[^\w.]+", "-", made_of["source"]).strip("-")
    size = made_of["vocab_size"] or ""
    return cache_directory() / "tokens" / f"{words}-{made_of['tokenizer']}{size}-{digest}"
