"""`ImageStream`: sets that do not fit in memory, decoded by index; and how the loop is fed with them."""

import dataclasses
import io
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from dfa_jax.data import EpochShuffle, ImageData, feed
from dfa_jax.data.image_stream import ImageStream
from dfa_jax.errors import InputError
from dfa_jax.train import sharding
from dfa_jax.types import Batch
from tests.prepared import encoded
from tests.train import small

BYTES_EACH = 4 * 8 * 8 * 3 + 4  # an image and its label on the device


@pytest.fixture
def imagenet(write_set):
    """A prepared set with imagenet2012's features (JPEG, any shape, 1,000 classes) and splits."""
    import tensorflow_datasets as tfds

    draw = np.random.default_rng(0)
    splits = {}
    for split, number in {"train": 11, "validation": 5}.items():
        shapes = draw.integers(10, 40, (number, 2))
        images = [encoded(draw.integers(0, 256, (*s, 3), dtype=np.uint8), "jpeg") for s in shapes]
        splits[split] = (images, draw.integers(0, 1000, number))
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
        "file_name": tfds.features.Text(),
    }
    folder = write_set(splits, name="imagenet2012", version="5.1.0", features=features)
    return ImageData("imagenet2012", str(folder), image_size=8, stream=True), splits


def stream_of(write_set, images, shape=(None, None, 3), **options):
    """A stream of these training images, in the order in which they are given."""
    split = images, np.arange(len(images)) % 3
    folder = write_set({"train": split, "test": split}, shape=shape)
    data = ImageData("tiny", str(folder), stream=True, standardize="pixel_range", **options)
    train = data.load().train
    return dataclasses.replace(train, order=np.arange(len(images)))


def whole(stream):
    return stream.take(np.arange(len(stream)))


OPTIONS = {
    "scalar": {},
    "channel": {"standardize": "channel"},
    "pixel range": {"standardize": "pixel_range"},
    "fewer": {"num_train": 13, "num_test": 2},
    "validation": {"num_validation": 6, "num_train": 9},
    "label noise": {"label_noise": 0.5},
    "size": {"image_size": 4},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_set_in_memory(write_set, tiny, name):
    """Oracle: exact equivalence, bit by bit; the same examples in the same order, labels, noise,
    statistics. A set must not mean something else because it is streamed."""
    colours = {
        split: (np.concatenate([x, 255 - x, x // 2], -1), y) for split, (x, y) in tiny.items()
    }
    folder = str(write_set(colours, shape=(4, 4, 3)))
    in_memory = ImageData("tiny", folder, **OPTIONS[name]).load()
    streamed = ImageData("tiny", folder, stream=True, **OPTIONS[name]).load()
    assert (streamed.name, streamed.num_classes) == (in_memory.name, in_memory.num_classes)
    for ours, theirs in zip(streamed[1:3], in_memory[1:3], strict=True):
        for abstract, read, array in zip(
            (ours.inputs, ours.targets), whole(ours), theirs, strict=True
        ):
            assert (abstract.shape, abstract.dtype) == (array.shape, array.dtype)
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)


def test_takes_by_index_in_any_order(write_set, tiny):
    """Oracle: the rows of the whole; a batch is addressed by its indices and nothing else."""
    train = ImageData("tiny", str(write_set(tiny)), stream=True, label_noise=0.5).load().train
    indices = np.array([7, 0, 7, 19, 3])
    for row, all_rows in zip(train.take(indices), whole(train), strict=True):
        np.testing.assert_array_equal(row, all_rows[indices])


def test_imagenet_is_read_without_tensorflow(imagenet, monkeypatch):
    """Oracle: Pillow, image by image: decode, cut the square in the middle, resize; in the order
    `RandomState(0).permutation`. Absence: TensorFlow cannot be imported."""
    data, splits = imagenet
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    dataset = dataclasses.replace(data, standardize="pixel_range").load()
    assert dataset.num_classes == 1000
    for stream, split in ((dataset.train, "train"), (dataset.test, "validation")):
        files, labels = splits[split]
        order = np.random.RandomState(0).permutation(len(files))
        read = whole(stream)
        assert read.inputs.shape == (len(files), 8, 8, 3)
        np.testing.assert_array_equal(read.targets, labels[order])
        for ours, index in zip(read.inputs, order, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(files[index])))
            (height, width), side = pixels.shape[:2], min(pixels.shape[:2])
            top, left = (height - side) // 2, (width - side) // 2
            square = Image.fromarray(pixels[top : top + side, left : left + side])
            theirs = square.resize((8, 8), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(ours, np.float32(theirs) / 255)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_square_in_the_middle(write_set, size):
    """Closed form: of a wide and a tall image the outer thirds, which are white, are cut away; the
    square that is left is resized, and enlarged if it is smaller than asked for."""
    wide = np.full((2, 6, 3), 255, np.uint8)
    wide[:, 2:4] = 90
    images = [encoded(wide), encoded(wide.swapaxes(0, 1))]
    read = whole(stream_of(write_set, images, image_size=size))
    assert read.inputs.shape == (2, size, size, 3)
    np.testing.assert_array_equal(read.inputs, np.full_like(read.inputs, 90) / 255)


COLOURS = {  # what is stored, how, and what an RGB set is to make of it
    "grey": ([77], "L", [77, 77, 77]),
    "palette": ([10, 200, 30], "P", [10, 200, 30]),
    "transparent": ([10, 200, 30, 128], "RGBA", [10, 200, 30]),
    "CMYK": ([245, 55, 225, 0], "CMYK", [10, 200, 30]),
}


@pytest.mark.parametrize("name", COLOURS)
def test_other_colours_become_the_sets(write_set, name):
    """Closed form: grey thrice, a palette's colour, without transparency, 255 - ink. ImageNet's
    files are of several kinds; a palette's indices or inks taken for colours would go unseen."""
    stored, mode, expected = COLOURS[name]
    if mode == "P":
        image = Image.fromarray(np.zeros((4, 4), np.uint8))
        image.putpalette(stored)
    elif mode == "L":
        image = Image.fromarray(np.full((4, 4), stored[0], np.uint8))
    else:
        image = Image.frombytes(mode, (4, 4), bytes(stored) * 16)
    file = io.BytesIO()
    image.save(file, "tiff" if mode == "CMYK" else "png")
    read = whole(stream_of(write_set, [file.getvalue()], image_size=4))
    np.testing.assert_array_equal(read.inputs * 255, np.broadcast_to(expected, (1, 4, 4, 3)))


def test_colours_in_a_grey_set(write_set):
    """Oracle: Pillow's luma; a set of one channel stays one."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = stream_of(write_set, [encoded(pixels)], shape=(None, None, 1), image_size=4)
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(np.rint(whole(stream).inputs[0, ..., 0] * 255), luma)


def test_statistics_are_of_a_fixed_part(write_set, tiny, monkeypatch):
    """Closed form in float64: mean and deviation of the first 8 examples of the training order."""
    monkeypatch.setattr("dfa_jax.data.images._MEASURED", 8)
    data = ImageData("tiny", str(write_set(tiny)), stream=True)
    train = data.load().train
    used = np.float64(train.read(np.arange(8)).inputs)
    all_pixels = np.float64(train.read(np.arange(20)).inputs)
    expected = (all_pixels - used.mean()) / used.std()
    np.testing.assert_allclose(whole(train).inputs, expected, atol=1e-6)


def test_broken_image_is_named(write_set):
    """Documented contract: set, split, index as stored, remedy; and only when it is asked for."""
    good = encoded(np.full((4, 4, 3), 9, np.uint8))
    stream = stream_of(write_set, [good, good, good[:-30], good, b"no image"], image_size=4)
    stream.take(np.array([0, 1, 3]))
    for index in (2, 4):
        with pytest.raises(InputError) as caught:
            dataclasses.replace(stream, order=stream.order[::-1]).take(np.array([4 - index]))
        message = str(caught.value)
        assert message.startswith(f"image {index} of data set 'tiny', split 'train' cannot be dec")
        assert "prepare" in message
        assert "\n" not in message


def test_damaged_set_is_one_line(write_set, tiny):
    """Documented contract: the set, the folder and the remedy, whatever TFDS raised."""
    folder = write_set(tiny)
    next((folder / "tiny" / "1.0.0").glob("*train*")).unlink()
    with pytest.raises(InputError, match=r"'tiny' in .*cannot be read.*prepare tiny"):
        ImageData("tiny", str(folder), stream=True).load()


def test_label_out_of_range(write_set, tiny):
    """Documented contract: the image, the label and the range; TFDS hides labels as -1."""
    labels = np.array([0, 1, 2, -1])
    images = tiny["train"][0][:4]
    folder = write_set({"train": tiny["train"], "test": (images, labels)})
    test = ImageData("tiny", str(folder), stream=True).load().test
    with pytest.raises(InputError, match="image 3 .*'test' has label -1; expected 0 to 2"):
        whole(test)


def test_several_shapes_need_a_size(imagenet):
    """Documented contract: the remedy is named, before anything is decoded."""
    data, _ = imagenet
    with pytest.raises(InputError, match=r"several shapes.*set image_size"):
        dataclasses.replace(data, image_size=None).load()


def test_image_unlike_the_sets_description(write_set, tiny):
    """Documented contract: both shapes and the index."""
    images = [*tiny["train"][0][:2], np.zeros((4, 6, 1), np.uint8)]
    stream = stream_of(write_set, images, shape=(4, 4, 1))
    with pytest.raises(InputError, match="image 2 .* is 4 by 6 pixels, .* 4 by 4; set image_size"):
        whole(stream)


def test_digits_are_not_streamed():
    """Documented contract."""
    with pytest.raises(InputError, match="stream is true but 'digits' is in memory"):
        ImageData(stream=True).load()


def test_more_examples_than_there_are(imagenet):
    """Documented contract: as in memory."""
    with pytest.raises(InputError, match="num_train is 12 but there are 11 training"):
        dataclasses.replace(imagenet[0], num_train=12).load()


def here():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_dispatches_are_the_steps_batches(imagenet, monkeypatch):
    """Oracle: the batches that `EpochShuffle` addresses, whatever the chunks; all of one shape."""
    data, _ = imagenet
    train, source = data.load().train, EpochShuffle(11, 2, seed=3)
    expected = [train.take(row) for row in source.indices(4, 7)]
    for chunk_bytes, steps in ((1, 1), (6 * BYTES_EACH, 3), (2**28, 5)):
        monkeypatch.setattr(feed, "CHUNK_BYTES", chunk_bytes)
        found, at = [], 4
        for begin, stop, chunk, rows in feed.dispatches(
            train, source, 4, 11, most_steps=5, sharding=here()
        ):
            assert rows is None  # the steps' own examples
            assert (begin, chunk.inputs.shape[:2]) == (at, (steps, 2))
            found += [jax.tree.map(lambda a, i=i: a[i], chunk) for i in range(stop - begin)]
            at = stop
        assert at == 11
        for ours, theirs in zip(found, expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_each_device_gets_its_share_of_every_batch(imagenet, monkeypatch):
    """Oracle: the whole batches; and each example is read once, though devices along the model axis
    hold the same ones."""
    train, read = imagenet[0].load().train, []
    take = type(train).take
    monkeypatch.setattr(
        type(train), "take", lambda self, rows: read.extend(rows) or take(self, rows)
    )
    source, split = EpochShuffle(11, 4, seed=3), sharding.over_steps(small.mesh(4, 2))
    ((_, _, chunk, _),) = feed.dispatches(train, source, 0, 2, most_steps=3, sharding=split)
    order = source.indices(0, 2)
    assert sorted(read) == sorted(order.ravel())
    assert chunk.inputs.sharding.shard_shape(chunk.inputs.shape)[:2] == (3, 1)
    for i, row in enumerate(order):
        np.testing.assert_array_equal(chunk.inputs[i], take(train, row).inputs)
    assert not np.asarray(chunk.inputs[2]).any()


def test_chunks_are_the_whole_set(imagenet, monkeypatch):
    """Oracle: the set taken at once; the last chunk is what remains."""
    test = imagenet[0].load().test
    monkeypatch.setattr(feed, "CHUNK_BYTES", 2 * BYTES_EACH)
    parts = list(feed.chunks(test, here()))
    assert [len(part.targets) for part in parts] == [2, 2, 1]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, whole(test))
    in_memory = Batch(np.zeros((3, 2)), np.zeros(3))
    assert next(feed.chunks(in_memory, here())) is in_memory


@pytest.mark.parametrize("number", [3, 99])
def test_first_examples(imagenet, number):
    """Oracle: the first rows of the set taken at once, as many as there are; of arrays likewise."""
    train = imagenet[0].load().train
    expected = jax.tree.map(lambda a: a[:number], whole(train))
    for data in (train, whole(train)):
        jax.tree.map(np.testing.assert_array_equal, feed.first(data, number, here()), expected)


def test_next_is_made_while_the_last_is_used():
    """Invariant: before item n is used up, n + 1 is made, and n + 2 is not begun."""
    made, second = [], threading.Event()

    def make(number):
        made.append(number)
        if number == 1:
            second.set()
        return number

    items = feed.prefetched(make, range(4))
    assert next(items) == 0
    assert second.wait(10)
    assert made == [0, 1]
    assert list(items) == [1, 2, 3]
    assert list(feed.prefetched(make, [])) == []


def test_fault_in_the_thread_reaches_the_caller():
    """Invariant: an error while decoding ahead is raised when its turn comes, not lost."""

    def make(number):
        if number == 2:
            raise InputError("image 2")
        return number

    items = feed.prefetched(make, range(4))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(InputError, match="image 2"):
        next(items)


def test_stream_is_no_array(imagenet):
    """Invariant: what is asked of `inputs` and `targets` reads no image."""
    data, _ = imagenet
    train = dataclasses.replace(data, standardize="pixel_range").load().train
    assert isinstance(train, ImageStream)
    broken = dataclasses.replace(train, split=dataclasses.replace(train.split, source=None))
    assert (broken.inputs.shape, broken.targets.shape) == ((11, 8, 8, 3), (11,))
    assert len(broken) == len(broken.targets) == 11
