"""`TextData`: which documents, cut into which windows."""

import dataclasses
import os
import pathlib
import platform

import jax
import numpy as np
import pytest

from dfa_jax import metrics
from dfa_jax.data import EpochShuffle, Stream, TextData, documents, feed, text
from dfa_jax.data.base import check_labels
from dfa_jax.data.windows import TokenWindows
from dfa_jax.errors import InputError

TRAIN = ["a tale of a cat", "", "naïve 🙂 mice", "the cat and the hat, the cat and the mat" * 3]
TEST = ["the mat and the cat", "a hat"]
SPLITS = {"train": TRAIN, "test": TEST}


def joined(texts):
    """What a split is, byte by byte."""
    return b"".join(t.encode() + b"\0" for t in texts)


def windows(stream, context, start=0):
    """Inputs and targets by Python's slices."""
    places = range(start, len(stream) - context, context)
    return (
        [list(stream[i : i + context]) for i in places],
        [list(stream[i + 1 : i + context + 1]) for i in places],
    )


def arrays(data):
    return data.take(np.arange(len(data))) if isinstance(data, Stream) else data


def check(data, expected):
    found = arrays(data)
    for array, rows in zip(found, expected, strict=True):
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, rows)


@pytest.fixture
def tale(write_texts):
    return TextData("tale", str(write_texts(SPLITS)), context=4)


@pytest.fixture
def opened(monkeypatch):
    """How many times documents began to be read."""
    seen, read = [], documents._read

    def counted(*args):
        seen.append(args[0])
        return read(*args)

    monkeypatch.setattr(documents, "_read", counted)
    return seen


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("context", [1, 4, 7, 22])
def test_windows_are_slices_of_the_joined_documents(tale, context, stream):
    """Oracle: plain Python; documents with a byte 0 behind each, cut into windows, targets one later."""
    data = dataclasses.replace(tale, context=context, stream=stream).load()
    check(data.train, windows(joined(TRAIN), context))
    check(data.test, windows(joined(TEST), context))
    assert isinstance(data.train, TokenWindows) == stream
    assert data.train.inputs.shape == data.train.targets.shape
    assert (data.num_classes, data.bytes_per_token) == (256, 1.0)
    check_labels(data)


def test_any_window_of_a_stream(tale):
    """Oracle: exact equivalence with the windows in memory, in any order and with repetitions."""
    whole, data = tale.load().train, dataclasses.replace(tale, stream=True).load().train
    chosen = np.array([3, 0, 3, 11], np.int32)
    for ours, theirs in zip(data.take(chosen), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[chosen])
    assert (data.inputs.shape, data.inputs.dtype) == (whole.inputs.shape, whole.inputs.dtype)


def test_large_sets_are_streamed_unless_told_otherwise(tale, monkeypatch):
    """Oracle: 8 bytes a token against a threshold just above and just below."""
    size = 8 * tale.load().train.inputs.size
    for limit, streamed in ((size, False), (size - 1, True)):
        monkeypatch.setattr(text, "STREAMED_BYTES", limit)
        assert isinstance(tale.load().train, Stream) == streamed
        assert not isinstance(dataclasses.replace(tale, stream=False).load().train, Stream)


def test_numbers_count_tokens(tale):
    """Oracle: plain Python; the first windows, as many as the tokens fill."""
    data = dataclasses.replace(tale, num_train=23, num_test=8).load()
    check(data.train, windows(joined(TRAIN)[:21], 4))
    check(data.test, windows(joined(TEST)[:9], 4))


@pytest.mark.parametrize("num_train", [None, 12])
def test_validation_is_the_front_of_the_training_text(tale, num_train):
    """Oracle: plain Python; the same windows whatever is trained on, none of them trained on."""
    data = dataclasses.replace(tale, num_validation=18, num_train=num_train).load()
    stream = joined(TRAIN)
    check(data.test, windows(stream[:17], 4))
    check(data.train, windows(stream[: None if num_train is None else 29], 4, start=16))


@pytest.mark.parametrize("stream", [False, True])
def test_bpe_windows_decode_to_the_text(tale, stream):
    """Oracle: closed form; all inputs in a row are tokens of the text, with as many bytes as are said."""
    config = dataclasses.replace(tale, tokenizer="bpe", vocab_size=270, context=1, stream=stream)
    data = config.load()
    assert data.num_classes == 270
    (folder,) = text.cache_directory().joinpath("tokens").iterdir()
    vocabulary = text.open_tokens(folder, config_of(folder)).vocabulary
    for split, texts in ((data.train, TRAIN), (data.test, TEST)):
        found = arrays(split)
        row = np.append(found.inputs[:, 0], found.targets[-1, 0])
        assert vocabulary.decode(row) == joined(texts)
        assert len(row) < len(joined(texts))
    assert data.bytes_per_token == pytest.approx(len(joined(TEST)) / len(row))


def config_of(folder):
    import json

    return json.loads((folder / "tokens.json").read_text())["made_of"]


def test_bpe_is_learned_from_the_training_text_alone(write_texts, tmp_path, monkeypatch):
    """Oracle: exact equivalence; another test text changes no training token, and two caches hold the same bytes."""
    found = []
    for number, test in enumerate((TEST, TEST, ["zzzz zzzz zzzz zzzz"])):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{number}"))
        sets = write_texts({"train": TRAIN, "test": test}, name=f"tale{number}")
        TextData(f"tale{number}", str(sets), tokenizer="bpe", vocab_size=270, context=4).load()
        (folder,) = (tmp_path / f"cache{number}" / "dfa_jax" / "tokens").iterdir()
        found.append({split: (folder / f"{split}.bin").read_bytes() for split in ("train", "test")})
    assert found[0] == found[1]
    assert found[0]["train"] == found[2]["train"]
    assert found[0]["test"] != found[2]["test"]


def test_bits_per_byte_of_the_uniform_guess(tale):
    """Oracle: closed form; log2 of the vocabulary for each token, spread over its bytes."""
    data = dataclasses.replace(tale, tokenizer="bpe", vocab_size=270, context=1).load()
    tokens = len(data.test.targets) + 1
    ours = metrics.bits_per_byte(float(np.log(270)), data.bytes_per_token or 0)
    assert ours == pytest.approx(np.log2(270) * tokens / len(joined(TEST)))


def test_dispatches_are_the_steps_windows(tale, monkeypatch):
    """Oracle: exact equivalence of a stream and of arrays in memory, fed to the loop; a chunk holds 3 windows of 4 tokens, inputs and targets, so one step of 2."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    monkeypatch.setattr(feed, "CHUNK_BYTES", 3 * 2 * 4 * 4)
    memory, stream = (dataclasses.replace(tale, stream=s).load().train for s in (False, True))
    source = EpochShuffle(len(memory.targets), 2, seed=1)

    def steps(data):
        return [
            jax.tree.map(lambda a, row=row: np.asarray(a)[row], chunk)
            for begin, stop, chunk, rows in feed.dispatches(
                data, source, 3, 9, most_steps=5, sharding=device
            )
            for row in (range(stop - begin) if rows is None else rows[: stop - begin])
        ]

    ours = steps(stream)
    assert len(ours) == 6
    jax.tree.map(np.testing.assert_array_equal, ours, steps(memory))
    parts = list(feed.chunks(stream, device))
    assert {len(part.targets) for part in parts[:-1]} == {3}
    np.testing.assert_array_equal(np.concatenate([p.inputs for p in parts]), memory.inputs)


def test_packed_once(tale, opened):
    """Absence: the second run, with other windows, reads no document; a set prepared anew is read."""
    tale.load()
    assert opened == ["tale"] * 2
    dataclasses.replace(tale, context=3, stream=True).load()
    assert opened == ["tale"] * 2
    dataset = pathlib.Path(tale.data_dir) / "tale" / "1.0.0" / "dataset_info.json"
    os.utime(dataset, (1, 1))
    tale.load()
    assert opened == ["tale"] * 4


def test_of_a_large_set_only_what_is_needed_is_packed(tale, monkeypatch, cache_home):
    """Oracle: by hand; units of 16 tokens, of which 18 + 12 + 1 need two, to the document's end."""
    monkeypatch.setattr(text, "_PACKED_AT_LEAST", 16)
    data = dataclasses.replace(tale, num_validation=18, num_train=12).load()
    check(data.train, windows(joined(TRAIN)[:29], 4, start=16))
    (folder,) = (cache_home / "tokens").iterdir()
    assert (folder / "train.bin").read_bytes() == joined(TRAIN[:3])[:40]
    assert (folder / "test.bin").read_bytes() == joined(TEST)


def test_damage_is_refused_and_kept(tale, cache_home, opened):
    """Oracle: one line, the file as the damage left it, nothing read again."""
    tale.load()
    (folder,) = (cache_home / "tokens").iterdir()
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    bad = path.read_bytes()
    with pytest.raises(InputError, match="train.bin has .*; delete the folder"):
        tale.load()
    assert path.read_bytes() == bad
    assert len(opened) == 2


def test_a_token_outside_of_the_vocabulary():
    """Oracle: the message names it; a file that was changed after it was opened."""
    data = TokenWindows(np.array([1, 2, 9, 3], np.uint16), 3, 9, "'x', training tokens")
    with pytest.raises(InputError, match="'x', training tokens has token 9; expected 0 to 8"):
        data.take(np.array([0]))


# The standard library


def library():
    source = documents.standard_library()
    return list(source.train()), list(source.test()), source


def test_standard_library_is_of_files_each_in_one_split():
    """Oracle: a walk over the folder; every document is a file of it outside of tests and installed packages, once, and a tenth of them is tested on."""
    train, test, source = library()
    folder = pathlib.Path(os.__file__).parent
    files = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(parts):
            files.setdefault(path.read_bytes(), path)
    assert set(train) | set(test) <= files.keys()
    common = set(train) & set(test)  # packages begin with the same comment, or nothing
    assert not [document for document in common if len(document) > 100]
    names = [set(paths) for paths in documents._library_files()]
    assert not names[0] & names[1]
    assert 0.05 < len(test) / (len(train) + len(test)) < 0.15
    assert pathlib.Path(os.__file__).read_bytes() in {*train, *test}
    assert sum(map(len, train)) > 5e6
    assert platform.python_version() in source.title
    assert source.fingerprint[:8] in source.title


def test_standard_library_is_the_default_and_fixed():
    """Oracle: the documents joined, and invariants; any two reads give the same tokens."""
    train, test, source = library()
    data = TextData(stream=True).load()
    assert data.name == source.title
    assert data.train.tokens.tobytes() == b"".join(d + b"\0" for d in train)
    assert data.test.tokens.tobytes() == b"".join(d + b"\0" for d in test)
    assert library()[0] == train


# Prepared sets


def test_features_that_are_read(write_texts):
    """Oracle: the texts that were written; `text` among others, or the only one of type Text."""
    sets = write_texts(SPLITS, title="not this")
    write_texts(SPLITS, name="named", feature="body")
    write_texts(SPLITS, name="several", feature="body", title="not this")
    for name in ("tale", "named"):
        data = TextData(name, str(sets), context=4).load()
        check(data.train, windows(joined(TRAIN), 4))
    with pytest.raises(
        InputError, match=r"'several' has features 'body' \(Text\), 'title' \(Text\)"
    ):
        TextData("several", str(sets)).load()


def test_sets_that_are_no_text(write_set, tiny):
    """Oracle: the message lists the features."""
    sets = write_set(tiny)
    with pytest.raises(InputError, match=r"'image' \(Image\), 'label' \(ClassLabel\); expected"):
        TextData("tiny", str(sets)).load()


def test_splits_that_are_read(write_texts):
    """Oracle: the texts that were written; 'test' before 'validation', which stands in for it."""
    both = write_texts({**SPLITS, "validation": ["never read"]})
    check(TextData("tale", str(both), context=4).load().test, windows(joined(TEST), 4))
    write_texts({"train": TRAIN, "validation": TEST}, name="other")
    check(TextData("other", str(both), context=4).load().test, windows(joined(TEST), 4))
    write_texts({"train": TRAIN}, name="half")
    with pytest.raises(InputError, match="'half' has splits train; expected"):
        TextData("half", str(both), context=4).load()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stdlb", "unknown data set 'stdlb'; did you mean 'stdlib'"),
        ("tal", "unknown data set 'tal'; did you mean 'tale'"),
        ("tiny_shakespere", "did you mean 'tiny_shakespeare'"),
        ("wiki40b/en", "'wiki40b/en' is not in .*dfa_jax.data.prepare wiki40b/en"),
    ],
)
def test_sets_that_are_not_there(write_texts, name, message):
    """Oracle: the name that was meant, or how to get it."""
    with pytest.raises(InputError, match=message):
        TextData(name, str(write_texts(SPLITS))).load()


def test_damaged_set_is_one_line(tale):
    """Oracle: one line that names the set; the records are cut short."""
    folder = pathlib.Path(tale.data_dir) / "tale" / "1.0.0"
    record = next(folder.glob("*train*"))
    record.write_bytes(record.read_bytes()[:-50])
    with pytest.raises(InputError, match="'tale' in .* cannot be read") as caught:
        tale.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 500}, "has 155 training tokens, and a window of 500 needs one more"),
        ({"context": 60}, "has 26 test tokens, and a window of 60 needs"),
        ({"num_train": 155}, "num_train is 155 but there are 154 training tokens"),
        ({"num_test": 100}, "num_test is 100 but there are 25 test tokens"),
        ({"num_validation": 152}, "has 3 training tokens, and a window of 4"),
        ({"tokenizer": "bpe", "vocab_size": 4096}, "vocab_size is 4096 .* lower it to at most"),
    ],
)
def test_more_than_there_is(tale, options, message):
    """Oracle: the message has both numbers."""
    assert (len(joined(TRAIN)), len(joined(TEST))) == (155, 26)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tale, **options).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name is empty"),
        ({"context": 0}, "context is 0; expected at least 1"),
        ({"num_train": 255}, "num_train is 255 tokens, less than a window of 256"),
        ({"num_validation": -1}, "num_validation is -1 tokens"),
        ({"tokenizer": "byte"}, "unknown tokenizer 'byte'; did you mean 'bytes'"),
        ({"tokenizer": "bpe"}, "vocab_size is None; .* at least 257"),
        ({"tokenizer": "bpe", "vocab_size": 255}, "vocab_size is 255; .* at least 257"),
        ({"vocab_size": 256}, "vocab_size is 256 and tokenizer 'bytes' has 256"),
    ],
)
def test_bad_options_are_refused_at_the_door(options, message):
    """Oracle: the message names the option, its value and what is expected."""
    config = TextData()
    for field, value in options.items():  # the suite's type checks would stop some in __init__
        object.__setattr__(config, field, value)
    with pytest.raises(InputError, match=message):
        config.__post_init__()
