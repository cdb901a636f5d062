"""Training on a stream: the run that it would be in memory, chunk by chunk, and after a stop."""

import dataclasses

import numpy as np
import pytest

from dfa_jax.data import ImageData, feed
from dfa_jax.errors import InputError
from dfa_jax.train import ensemble, fit, loop
from tests import helpers, prepared
from tests.train import small

BYTES_EACH = 4 * 8 * 8 + 4  # an image and its label on the device
CHUNKS = {"a batch": 10, "some batches": 48, "an epoch": 1000}  # examples in a chunk


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """64 images to train on and 24 to test on, `[8, 8, 1]`, of ten classes."""
    draw = np.random.default_rng(0)
    return {
        split: (draw.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8), draw.integers(0, 10, n))
        for split, n in {"train": 64, "test": 24}.items()
    }


@pytest.fixture(scope="module")
def config(files, tmp_path_factory):
    """Three epochs of four steps; sites are measured."""
    folder = prepared.write(
        tmp_path_factory.mktemp("prepared"), files, num_classes=10, shape=(8, 8, 1)
    )
    data = ImageData("tiny", str(folder), stream=True)
    return small.config("direct_feedback_alignment", data=data, alignment_examples=16)


@pytest.fixture(scope="module")
def in_memory(config):
    data = dataclasses.replace(config.data, stream=False)
    return fit(dataclasses.replace(config, data=data), progress=False)


@pytest.mark.parametrize("name", CHUNKS)
def test_equals_the_run_in_memory(config, in_memory, monkeypatch, name):
    """Exact equivalence up to rounding (1e-6), whatever fits into a chunk: parameters, and every
    point of the curve. Test sets of 24 leave a last chunk of 4 images, which must count as 4."""
    monkeypatch.setattr(feed, "CHUNK_BYTES", CHUNKS[name] * BYTES_EACH)
    streamed = fit(config, progress=False)
    helpers.assert_close(small.plain(streamed.state), small.plain(in_memory.state), 1e-6)
    ours, theirs = (small.without_time(r.record.curve) for r in (streamed, in_memory))
    assert len(ours) == len(theirs) == 3
    for point, expected in zip(ours, theirs, strict=True):
        helpers.assert_close(point, expected, 1e-6)


def test_resumed_equals_unbroken(config, monkeypatch, tmp_path):
    """Oracle: the run left alone, bit by bit, with a stop in the middle of the second epoch, after
    which other chunks are read."""
    monkeypatch.setattr(feed, "CHUNK_BYTES", CHUNKS["some batches"] * BYTES_EACH)
    straight = fit(config, progress=False)
    run_steps, calls = loop.run_steps, []

    def stop(*args, **options):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_steps(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_steps", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(config, run_dir=tmp_path / "run", progress=False)
    monkeypatch.setattr(feed, "CHUNK_BYTES", 16 * BYTES_EACH)
    resumed = fit(
        config, run_dir=tmp_path / "run", resume=True, save_seconds=np.inf, progress=False
    )
    helpers.assert_identical(small.plain(resumed.state), small.plain(straight.state))
    curves = [small.without_time(r.record.curve) for r in (resumed, straight)]
    assert [p["step"] for p in curves[0]] == [4, 8, 12]
    for point, expected in zip(*curves, strict=True):
        helpers.assert_close(point, expected, 1e-6)  # sums over other chunks


def test_broken_image_stops_the_run(files, tmp_path):
    """Documented contract: the image is named, though a thread has read it ahead of its step."""
    images, labels = files["train"]
    images = [*images[:40], b"broken", *images[41:]]
    folder = prepared.write(
        tmp_path, {**files, "train": (images, labels)}, num_classes=10, shape=(8, 8, 1)
    )
    data = ImageData("tiny", str(folder), stream=True, standardize="pixel_range")
    with pytest.raises(InputError, match="image 40 of data set 'tiny', split 'train' cannot"):
        fit(small.config(data=data), progress=False)


def test_ensembles_refuse_streams(config):
    """Documented contract: the set, and both remedies."""
    shared = dataclasses.replace(config, feedback_seed=1)
    with pytest.raises(InputError, match="'tiny' is streamed, .* set stream to false, or train"):
        ensemble.fit_ensemble(shared, [0, 1])
