"""TFDS sets: read without TensorFlow, cached, and refused by name when they cannot be used."""

import json
import os
import socket
import sys

import numpy as np
import pytest

import dfa_jax.data.tfds
from dfa_jax.data import ImageData, load_tfds
from dfa_jax.errors import InputError


@pytest.fixture
def decoded(monkeypatch):
    """The list of splits that were decoded, not served from the cache."""
    seen, decode = [], dfa_jax.data.tfds._decode

    def counted(where, source):
        seen.append(where.split("'")[-2])
        return decode(where, source)

    monkeypatch.setattr(dfa_jax.data.tfds, "_decode", counted)
    return seen


@pytest.fixture
def offline(monkeypatch):
    """Fails the test on any use of the network."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network used: {args}")

    for function in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, function, refuse)


class NoTensorFlow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        del path, target
        assert name.split(".")[0] != "tensorflow"


def check(arrays, splits, test_split="test"):
    for batch, split in ((arrays.train, "train"), (arrays.test, test_split)):
        np.testing.assert_array_equal(batch.inputs, splits[split][0])
        np.testing.assert_array_equal(batch.targets, splits[split][1])
        assert (batch.inputs.dtype, batch.targets.dtype) == (np.uint8, np.int32)


def test_reads_what_was_written_without_tensorflow(write_set, tiny, monkeypatch, offline):
    """Oracle: the arrays that were written; absence: TensorFlow cannot be imported."""
    sets = write_set(tiny)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoTensorFlow, *sys.meta_path])
    arrays = load_tfds("tiny", sets)
    check(arrays, tiny)
    assert (arrays.name, arrays.num_classes, arrays.pixel_max) == ("tiny", 3, 255)


def test_image_data_reads_it_from_the_environment(write_set, tiny, monkeypatch):
    """Oracle: the arrays that were written, as a set, divided by 255."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(write_set(tiny)))
    ours = ImageData("tiny", standardize="pixel_range").load()
    written = sorted(image.tobytes() for image in tiny["train"][0])
    back = np.rint(ours.train.inputs * 255).astype(np.uint8)
    assert sorted(image.tobytes() for image in back) == written


def test_validation_stands_in_for_a_missing_test_split(write_set, tiny):
    """Oracle: the arrays that were written."""
    splits = {"train": tiny["train"], "validation": tiny["test"]}
    check(load_tfds("tiny", write_set(splits)), splits, "validation")


@pytest.mark.parametrize("stream", [False, True])
def test_validation_stands_in_for_secret_labels(write_set, tiny, stream):
    """Oracle: the labels that were written; TFDS hides labels as -1, as those of ImageNet's test
    set."""
    hidden = tiny["test"][0], np.full(7, -1)
    folder = write_set({**tiny, "test": hidden, "validation": tiny["test"]})
    test = ImageData("tiny", str(folder), stream=stream).load().test
    targets = test.take(np.arange(7)).targets if stream else test.targets
    np.testing.assert_array_equal(np.sort(targets), np.sort(tiny["test"][1]))


def test_versions_and_configs(write_set, tiny):
    """Oracle: the arrays that were written; the latest version is 10, not the 9 that sorts last."""
    swapped = {"train": tiny["test"], "test": tiny["train"]}
    write_set(swapped, version="9.0.0")
    sets = write_set(tiny, version="10.0.0")
    write_set(swapped, name="other/small")
    check(load_tfds("tiny", sets), tiny)
    check(load_tfds("tiny:9.0.0", sets), swapped)
    check(load_tfds("other/small", sets), swapped)
    with pytest.raises(InputError, match="did you mean 'other/small'"):
        load_tfds("other/smalll", sets)


def test_cache_hit_equals_a_fresh_decode(write_set, tiny, decoded, cache_home):
    """Oracle: exact equivalence; the second call decodes nothing."""
    sets = write_set(tiny)
    for _ in range(2):
        check(load_tfds("tiny", sets), tiny)
        assert decoded == ["train", "test"]
    assert len(list(cache_home.iterdir())) == 2  # and no temporary files


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "flipped"])
def test_damaged_cache_is_built_again(write_set, tiny, decoded, cache_home, damage):
    """Oracle: the arrays that were written; the third call is served from the cache again."""
    sets = write_set(tiny)
    load_tfds("tiny", sets)
    for path in cache_home.iterdir():
        good = path.read_bytes()
        middle = len(good) // 3
        flipped = good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]
        bad = {"truncated": good[:-40], "empty": b"", "garbage": b"x" * 99, "flipped": flipped}
        path.write_bytes(bad[damage])
    for _ in range(2):
        check(load_tfds("tiny", sets), tiny)
        assert len(decoded) == 4


def test_changed_set_is_not_served_stale(write_set, tiny, decoded):
    """Oracle: the arrays that were written, after the same name and version was prepared anew."""
    sets = write_set(tiny)
    load_tfds("tiny", sets)
    os.rename(sets, sets.with_name("old"))
    changed = {split: (255 - images, labels) for split, (images, labels) in tiny.items()}
    check(load_tfds("tiny", write_set(changed)), changed)
    assert len(decoded) == 4


def test_unwritable_cache_is_no_error(write_set, tiny, monkeypatch, tmp_path):
    """Oracle: the arrays that were written; the cache's parent is a file, which also stops root."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check(load_tfds("tiny", write_set(tiny)), tiny)


@pytest.mark.parametrize("exists", [True, False])
def test_missing_set_says_at_once_how_to_get_it(tmp_path, monkeypatch, offline, exists):
    """Absence: TFDS cannot even be imported, so nothing can be downloaded or waited for."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    sets = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(InputError) as caught:
        ImageData("mnist", str(sets)).load()
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"'mnist' is not in {sets}:",
        "pip install 'dfa_jax[prepare]'",
        f"python -m dfa_jax.data.prepare mnist --data-dir {sets}",
        "--data.data-dir or TFDS_DATA_DIR",
    ):
        assert part in message


def test_stock_name_outside_the_suggestions_is_missing_not_unknown(tmp_path, offline):
    """Oracle: TFDS's registry knows eurosat."""
    with pytest.raises(InputError, match="'eurosat' is not in"):
        load_tfds("eurosat", tmp_path)


@pytest.mark.parametrize(
    ("name", "nearest"), [("minst", "mnist"), ("tinny", "tiny"), ("tiny:2.0.0", "tiny:1.0.0")]
)
def test_unknown_name_is_answered_with_the_nearest(write_set, tiny, offline, name, nearest):
    """Oracle: the name that was meant, stock or prepared by the user."""
    with pytest.raises(InputError, match=f"unknown data set '{name}'; did you mean '{nearest}'"):
        load_tfds(name, write_set(tiny))


def test_images_of_several_shapes(write_set, tiny):
    """Oracle: the message names both shapes."""
    images = [*tiny["train"][0][:5], np.zeros((4, 6, 1), np.uint8)]
    mixed = {"train": (images, np.zeros(6)), "test": tiny["test"]}
    with pytest.raises(InputError, match=r"'train' has .*\(4, 4, 1\) and \(4, 6, 1\)"):
        load_tfds("tiny", write_set(mixed, shape=(None, None, 1)))


def test_splits_of_several_shapes(write_set, tiny):
    """Oracle: the message names both shapes."""
    splits = {"train": tiny["train"], "test": (np.zeros((2, 5, 4, 1), np.uint8), [0, 1])}
    with pytest.raises(InputError, match=r"\(4, 4, 1\) and test images \(5, 4, 1\)"):
        load_tfds("tiny", write_set(splits, shape=(None, None, 1)))


def test_labels_out_of_range(write_set, tiny):
    """Oracle: the message names the split and the range; TFDS hides labels as -1."""
    hidden = {"train": tiny["train"], "test": (tiny["test"][0], np.full(7, -1))}
    with pytest.raises(InputError, match="'test' has labels -1 to -1; expected 0 to 2"):
        load_tfds("tiny", write_set(hidden))


def test_missing_split(write_set, tiny):
    """Oracle: the message lists the splits that there are."""
    with pytest.raises(InputError, match="has splits train; expected"):
        load_tfds("tiny", write_set({"train": tiny["train"]}))


def test_sets_that_are_not_labelled_images(write_set, tiny):
    """Oracle: the message lists the features with their kinds."""
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.Scalar(np.int64)}
    with pytest.raises(
        InputError, match=r"features 'image' \(Image\), 'label' \(Scalar\); expected"
    ):
        load_tfds("tiny", write_set(tiny, features=kinds))


@pytest.mark.parametrize(
    ("damage", "message"),
    [("delete", "cannot be read"), ("truncate", "cannot be read"), ("json", "cannot be read"),
     ("tfrecord", "not stored as array_record")],
)  # fmt: skip
def test_damaged_set_is_one_line(write_set, tiny, damage, message):
    """Oracle: one line that names the set and the remedy, whatever TFDS raised."""
    sets = write_set(tiny)
    folder = sets / "tiny" / "1.0.0"
    record, info = next(folder.glob("*train*")), folder / "dataset_info.json"
    if damage == "delete":
        record.unlink()
    elif damage == "truncate":
        record.write_bytes(record.read_bytes()[:-50])
    elif damage == "json":
        info.write_text("{")
    else:
        info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=f"'tiny' in .*{message}") as caught:
        load_tfds("tiny", sets)
    assert "\n" not in str(caught.value)
    assert "dfa_jax.data.prepare tiny" in str(caught.value)
