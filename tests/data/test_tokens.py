"""Packed tokens: what is written comes back, and what is damaged is refused by name."""

import hashlib
import json
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from dfa_jax.data import tokens
from dfa_jax.data.tokens import open_tokens, pack_tokens
from dfa_jax.data.vocabulary import (
    BPEVocabulary,
    ByteVocabulary,
    Vocabulary,
    check_bpe_size,
    learn_bpe,
)
from dfa_jax.errors import InputError

DOCUMENTS = [
    b"the cat sat on the mat, the cat sat on the hat",
    b"",
    "naïve 🙂 <|separator|> \0 \t\r\n  don't 12345 ünïcödé".encode(),
    b" leading and trailing \n\n",
    b"the cat " * 50,
]
TEST = [b"a hat on a cat", "ß".encode()]
MADE_OF = {"source": "tale", "number": 3}
LEARN = """
from dfa_jax.data.vocabulary import learn_bpe
words = [b"w%d " % (i * i % 89) + b"x%d" % (i % 7) for i in range(3000)]
description = learn_bpe(words, 290).description
"""


@pytest.fixture(scope="module")
def bpe():
    return learn_bpe(DOCUMENTS, 280)


@pytest.fixture
def folder(tmp_path):
    """A good folder of bytes."""
    pack_tokens(tmp_path / "f", MADE_OF, ByteVocabulary(), {"train": DOCUMENTS, "test": TEST})
    return tmp_path / "f"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(folder, *words, **options):
    """Opening gives one line with these words, and changes nothing."""
    before = contents(folder)
    with pytest.raises(InputError) as caught:
        open_tokens(folder, MADE_OF, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), "delete the folder", *words):
        assert word in message
    assert contents(folder) == before


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_decoded_tokens_are_the_text(tmp_path, bpe, kind):
    """Oracle: the documents, a byte 0 behind each; with bytes the file itself is that text."""
    vocabulary = bpe if kind == "bpe" else ByteVocabulary()
    pack_tokens(tmp_path / "f", MADE_OF, vocabulary, {"train": DOCUMENTS, "test": TEST})
    packed = open_tokens(tmp_path / "f", MADE_OF)
    for split, documents in (("train", DOCUMENTS), ("test", TEST)):
        text = b"".join(document + b"\0" for document in documents)
        found, info = packed.tokens(split), packed.splits[split]
        assert packed.vocabulary.decode(found) == text
        assert (info.num_tokens, info.num_bytes) == (len(found), len(text))
        assert int((found == 0).sum()) >= len(documents)
        stored = (tmp_path / "f" / f"{split}.bin").read_bytes()
        assert info.sha256 == hashlib.sha256(stored).hexdigest()
        if kind == "bytes":
            assert stored == text
        else:
            assert int((found == 0).sum()) == len(documents)  # a text that spells it has none
    assert packed.vocabulary == vocabulary


def test_bpe_encodes_what_it_never_saw(bpe):
    """Oracle: the text; every byte is a token, so nothing is unknown. Bytes that are no UTF-8 become U+FFFD."""
    text = bytes(range(256)).decode("latin1").encode() + "日本語 🐢".encode()
    (found,) = bpe.encode([text])
    assert bpe.decode(found) == text
    assert found.max() < bpe.size == 280
    assert bpe.decode(bpe.encode([b"a\xff"])[0]) == "a\ufffd".encode()


def test_bpe_merges_the_most_frequent_pair():
    """Oracle: counted by hand; of `ab` (5 times) and `cd` (3 times) the one merge is `ab`."""
    learned = learn_bpe([b"ab ab ab ab ab cd cd cd"], 258)
    ab, cd = learned.encode([b"ab", b"cd"])
    assert (len(ab), len(cd)) == (1, 2)
    assert ab[0] == 257


@pytest.mark.slow
def test_bpe_is_the_same_in_another_process():
    """Oracle: exact equivalence; hash tables are ordered otherwise in every process."""
    here: dict[str, str] = {}
    exec(LEARN, here)
    command = [sys.executable, "-c", LEARN + "print(description)"]
    there = subprocess.run(command, capture_output=True, text=True, check=True)
    assert there.stdout == here["description"] + "\n"


@pytest.mark.parametrize("size", [None, 0, 256])
def test_bpe_needs_room_for_all_bytes(size):
    """Oracle: the message names the number and the least."""
    with pytest.raises(InputError, match=f"vocab_size is {size}; .* at least 257"):
        check_bpe_size(size)


def test_bpe_of_too_little_text():
    """Oracle: `ab` has one pair to merge, so 258 tokens at most."""
    with pytest.raises(InputError, match="vocab_size is 300 .* lower it to at most 258"):
        learn_bpe([b"ab"], 300)


class Numbered(Vocabulary):
    """A vocabulary of any size, whose documents are one token: the last."""

    def __init__(self, size):
        self._size = size

    @property
    def size(self):
        return self._size

    def encode(self, documents):
        return [np.array([self._size - 1]) for _ in documents]

    def decode(self, tokens):
        raise NotImplementedError

    def to_json(self):
        return {"kind": "bytes"}


@pytest.mark.parametrize(
    ("size", "width"), [(256, 1), (257, 2), (2**16, 2), (2**16 + 1, 4), (2**20, 4)]
)
def test_smallest_type_that_holds_every_token(tmp_path, size, width):
    """Oracle: the last token, in little-endian bytes of this width, before the separator's."""
    pack_tokens(tmp_path / "f", MADE_OF, Numbered(size), {"train": [b"x"], "test": []})
    written = (tmp_path / "f" / "train.bin").read_bytes()
    assert written == (size - 1).to_bytes(width, "little") + bytes(width)


def test_most_tokens_ends_with_a_whole_document(tmp_path):
    """Oracle: by hand; three documents of 3 tokens with their separators reach 8."""
    documents = {"train": [b"ab", b"cd", b"ef", b"gh"], "test": [b"ab", b"cd", b"ef", b"gh"]}
    pack_tokens(tmp_path / "f", MADE_OF, ByteVocabulary(), documents, most_tokens=8)
    packed = open_tokens(tmp_path / "f", MADE_OF)
    assert packed.tokens("train").tobytes() == b"ab\0cd\0ef\0"
    assert packed.tokens("test").tobytes() == b"ab\0cd\0ef\0gh\0"
    assert packed.splits["train"].num_bytes == 9


def test_an_empty_split_opens(tmp_path):
    """Oracle: no tokens; a memory map of nothing would be an error."""
    pack_tokens(tmp_path / "f", MADE_OF, ByteVocabulary(), {"train": [], "test": []})
    assert open_tokens(tmp_path / "f", MADE_OF).tokens("train").shape == (0,)


@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "missing", "empty"])
def test_damaged_tokens(folder, damage):
    """Oracle: the message names the file; nothing is overwritten."""
    path = folder / "train.bin"
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        bad = {
            "truncated": good[:-1],
            "longer": good + b"\0",
            "flipped": good[:9] + bytes([good[9] ^ 1]) + good[10:],
            "empty": b"",
        }
        path.write_bytes(bad[damage])
    refused(folder, "train.bin", "checksum" if damage == "flipped" else f"instead of {len(good)}")


def test_large_files_are_verified_when_asked(folder, monkeypatch):
    """Oracle: documented contract; the same flipped bit, above the size that is read at once."""
    path = folder / "test.bin"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    monkeypatch.setattr(tokens, "VERIFIED_BYTES", len(good) - 1)
    refused(folder, "test.bin has checksum", verify=True)
    packed = open_tokens(folder, MADE_OF)
    with pytest.raises(InputError, match="test.bin has checksum"):
        packed.verify()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["vocabulary"].update(kind="bpe", tokenizer={}), ["vocabulary", "checksum"]),
        (lambda d: d.update(vocabulary_sha256="0" * 64), ["vocabulary", "checksum 000000000000"]),
        (lambda d: d["splits"]["test"].update(sha256="0" * 64), ["test.bin", "checksum"]),
        (lambda d: d["splits"]["test"].update(num_tokens=3), ["test.bin", "instead of 3"]),
        (lambda d: d["made_of"].update(source="other"), ["made of", "'other'", "'tale'"]),
        (lambda d: d.pop("vocabulary"), ["tokens.json cannot be read"]),
        (lambda d: d["splits"]["test"].pop("sha256"), ["tokens.json cannot be read"]),
        (lambda d: d.update(splits=3), ["tokens.json cannot be read"]),
        (lambda d: d.update(splits={}), ["no split 'train'"]),
        (lambda d: d.update(format=2), ["format 2"]),
    ],
)
def test_descriptions_that_do_not_match(folder, change, words):
    """Oracle: the message names what differs."""
    path = folder / "tokens.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    refused(folder, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"\\ud800"', "\xff"])
def test_descriptions_that_are_none(folder, text):
    """Oracle: one line, whatever JSON says of it."""
    (folder / "tokens.json").write_bytes(text.encode("latin1"))
    refused(folder, "tokens.json cannot be read")


def test_another_vocabulary_of_the_same_form(tmp_path, bpe):
    """Oracle: a BPE description with a merge taken out, its checksum adjusted, is caught by the library or by its tokens' size; with the checksum as it was, by that."""
    pack_tokens(tmp_path / "f", MADE_OF, bpe, {"train": DOCUMENTS, "test": TEST})
    path = tmp_path / "f" / "tokens.json"
    description = json.loads(path.read_text())
    description["vocabulary"]["tokenizer"]["model"]["merges"].pop()
    path.write_text(json.dumps(description))
    refused(tmp_path / "f", "the vocabulary does not match its checksum")
    description["vocabulary"]["tokenizer"] = {"model": "no such thing"}
    description["vocabulary_sha256"] = tokens._checksum(description["vocabulary"])
    path.write_text(json.dumps(description))
    refused(tmp_path / "f", "description of a vocabulary is damaged")


def test_two_that_build_at_once(tmp_path):
    """Oracle: exact equivalence with one that builds alone; both have begun before either ends, both then open the folder, and no temporary one is left."""
    barrier, failures = threading.Barrier(2), []

    def documents():
        yield from DOCUMENTS
        barrier.wait(10)

    def build():
        try:
            pack_tokens(
                tmp_path / "f", MADE_OF, ByteVocabulary(), {"train": documents(), "test": TEST}
            )
            open_tokens(tmp_path / "f", MADE_OF)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    pack_tokens(tmp_path / "g", MADE_OF, ByteVocabulary(), {"train": DOCUMENTS, "test": TEST})
    assert contents(tmp_path / "f") == contents(tmp_path / "g")


def test_a_build_that_fails_leaves_nothing(tmp_path):
    """Oracle: the folder is not there, and no temporary one; the next build is whole."""

    def broken():
        yield b"text"
        raise InputError("document 3 is broken")

    with pytest.raises(InputError, match="document 3"):
        pack_tokens(tmp_path / "f", MADE_OF, ByteVocabulary(), {"train": broken(), "test": TEST})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(folder):
    """Oracle: the bytes that were there; a second build of something else does not replace them."""
    before = contents(folder)
    pack_tokens(folder, MADE_OF, ByteVocabulary(), {"train": [b"other"], "test": TEST})
    assert contents(folder) == before


def test_nowhere_to_write(tmp_path):
    """Oracle: one line with the remedy; the parent is a file, which also stops root."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "tokens" / "f"
    with pytest.raises(InputError, match="cannot be written to .*XDG_CACHE_HOME"):
        pack_tokens(folder, MADE_OF, ByteVocabulary(), {"train": DOCUMENTS, "test": TEST})


def test_memory_is_bounded(tmp_path, monkeypatch):
    """Oracle: peak of traced memory; 32 MB of text in documents of 64 kB, at most 256 kB of text at once."""
    monkeypatch.setattr(tokens, "_AT_A_TIME", 2**18)

    def documents():
        for number in range(512):
            yield bytes([97 + number % 20]) * 2**16

    tracemalloc.start()
    pack_tokens(tmp_path / "f", MADE_OF, ByteVocabulary(), {"train": documents(), "test": TEST})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "f" / "train.bin").stat().st_size == 512 * (2**16 + 1)
    assert peak < 2**21


def test_vocabulary_of_a_description_that_is_none():
    """Oracle: one line; the library raises a bare Exception."""
    with pytest.raises(InputError, match="description of a vocabulary is damaged"):
        BPEVocabulary("{}")
