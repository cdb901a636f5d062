"""`ImageData`: selection, resizing and standardisation."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from dfa_jax.data import ImageData, load_digits
from dfa_jax.errors import InputError


def rows(images):
    """Images as a set of byte strings, to compare sets of examples."""
    return {image.tobytes() for image in images}


@pytest.fixture(scope="module")
def whole():
    return ImageData(standardize="pixel_range").load()


def test_digits_are_scikit_learns_each_once():
    """Oracle: scikit-learn; train and test together are its 1,797 images with their labels."""
    source, ours = datasets.load_digits(), load_digits()
    images = np.concatenate([ours.train.inputs, ours.test.inputs])[..., 0]
    labels = np.concatenate([ours.train.targets, ours.test.targets])
    assert (len(ours.train.targets), len(ours.test.targets)) == (1437, 360)
    pairs = sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
    expected = zip(source.images.astype(np.uint8), source.target, strict=True)
    assert pairs == sorted((image.tobytes(), label) for image, label in expected)


def test_digits_split_is_fixed_and_stratified():
    """Oracle: invariant; a fifth of each class, within one example, and twice the same."""
    ours = load_digits()
    in_test = np.bincount(ours.test.targets)
    in_all = in_test + np.bincount(ours.train.targets)
    assert np.all(np.abs(in_test - in_all / 5) <= 1)
    np.testing.assert_array_equal(ours.test.inputs, load_digits().test.inputs)


def test_types_and_pixel_range(whole):
    """Oracle: closed form; x / 16 for digits, NumPy arrays, float32 and int32."""
    assert whole.name == "digits"
    assert whole.num_classes == 10
    for batch, num in ((whole.train, 1437), (whole.test, 360)):
        assert isinstance(batch.inputs, np.ndarray)
        assert batch.inputs.shape == (num, 8, 8, 1)
        assert (batch.inputs.dtype, batch.targets.dtype) == (np.float32, np.int32)
        assert (batch.inputs.min(), batch.inputs.max()) == (0.0, 1.0)
    assert rows(whole.train.inputs * 16) == rows(load_digits().train.inputs.astype(np.float32))


def test_num_train_takes_the_first_of_one_order(whole):
    """Oracle: exact equivalence; a smaller training set is a prefix of a larger one."""
    small = ImageData(num_train=100, num_test=30, standardize="pixel_range").load()
    for part, all_of_it, num in zip(small[1:3], whole[1:3], (100, 30), strict=True):
        np.testing.assert_array_equal(part.inputs, all_of_it.inputs[:num])
        np.testing.assert_array_equal(part.targets, all_of_it.targets[:num])
    assert len(np.unique(small.train.targets)) == 10  # the order is shuffled


@pytest.mark.parametrize("num_train", [None, 50, 1137])
def test_validation_is_cut_from_the_training_set(whole, num_train):
    """Oracle: invariant; the same 300 whatever is trained on, none of them trained on or tested."""
    config = ImageData(num_validation=300, num_train=num_train, standardize="pixel_range")
    tuned = config.load()
    assert len(tuned.train.targets) == (num_train or 1137)
    np.testing.assert_array_equal(tuned.test.inputs, whole.train.inputs[-300:])
    np.testing.assert_array_equal(tuned.test.targets, whole.train.targets[-300:])
    assert not rows(tuned.train.inputs) & rows(tuned.test.inputs)
    assert not rows(whole.test.inputs) & (rows(tuned.train.inputs) | rows(tuned.test.inputs))


@pytest.mark.parametrize("kind", ["scalar", "channel"])
def test_statistics_are_of_the_training_examples_in_use(write_set, kind):
    """Oracle: closed form in float64, (x - mean) / deviation over the training images alone."""
    draw = np.random.default_rng(1)
    images = (draw.uniform(size=(37, 4, 4, 3)) * [50, 150, 255]).astype(np.uint8)
    labels = np.arange(37) % 3
    sets = write_set({"train": (images[:30], labels[:30]), "test": (images[30:], labels[30:])},
                     shape=(4, 4, 3))  # fmt: skip
    config = ImageData("tiny", str(sets), num_train=12, standardize="pixel_range")
    plain, ours = (c.load() for c in (config, dataclasses.replace(config, standardize=kind)))
    axes = (0, 1, 2) if kind == "channel" else None
    x = np.float64(plain.train.inputs)
    for raw, standardized in zip(plain[1:3], ours[1:3], strict=True):
        expected = (raw.inputs - x.mean(axes)) / x.std(axes)
        np.testing.assert_allclose(standardized.inputs, expected, atol=1e-5)


@pytest.mark.parametrize("size", [5, 16])
def test_resize(whole, size):
    """Oracle: Pillow's bilinear filter, which also averages over an area when it shrinks."""
    resized = ImageData(image_size=size, standardize="pixel_range").load().train.inputs
    assert resized.shape == (1437, size, size, 1)
    for ours, image in zip(resized[::200], whole.train.inputs[::200], strict=True):
        theirs = Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours[..., 0], np.asarray(theirs), atol=1e-5)


def test_size_as_stored_changes_nothing(whole):
    """Oracle: exact equivalence."""
    same = ImageData(image_size=8, standardize="pixel_range").load()
    np.testing.assert_array_equal(same.train.inputs, whole.train.inputs)


def test_constant_images_cannot_be_standardised(write_set):
    """Oracle: the message names the way out."""
    constant = np.full((6, 4, 4, 1), 7, np.uint8), np.arange(6) % 3
    sets = write_set({"train": constant, "test": constant})
    with pytest.raises(InputError, match=r"constant.*pixel_range"):
        ImageData("tiny", str(sets)).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train is 0; expected a positive"),
        ({"num_test": -1}, "num_test is -1; expected a positive"),
        ({"image_size": 2.5}, "image_size is 2.5; expected a positive"),
        ({"num_validation": -3}, "num_validation is -3; expected"),
        ({"standardize": "scaler"}, "did you mean 'scalar'"),
        ({"name": ""}, "name is empty"),
    ],
)
def test_bad_options_are_refused_at_the_door(options, message):
    """Oracle: the message names the option, its value and what is expected."""
    config = ImageData()
    for field, value in options.items():  # the suite's type checks would stop some in __init__
        object.__setattr__(config, field, value)
    with pytest.raises(InputError, match=message):
        config.__post_init__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 1438}, "num_train is 1438 but there are 1437 training"),
        ({"num_test": 361}, "num_test is 361 but there are 360 test"),
        ({"num_train": 1400, "num_validation": 100}, "num_train is 1400 but there are 1337"),
        ({"num_test": 101, "num_validation": 100}, "there are 100 validation"),
        ({"num_validation": 1437}, "num_validation is 1437 but 'digits' has 1437"),
    ],
)
def test_more_examples_than_there_are(options, message):
    """Oracle: the message names both numbers."""
    with pytest.raises(InputError, match=message):
        ImageData(**options).load()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_label_noise(whole, fraction):
    """Statistical test: a fraction f of training labels is redrawn, of which 1 in 10 stays right.

    Within 4 binomial deviations (0.05 at most); test labels and images are left alone, and the same
    labels are corrupted every time.
    """
    noisy = ImageData(standardize="pixel_range", label_noise=fraction).load()
    changed = np.mean(noisy.train.targets != whole.train.targets)
    expected = 0.9 * fraction
    deviation = np.sqrt(expected * (1 - expected) / len(whole.train.targets))
    assert abs(changed - expected) <= 4 * deviation
    assert noisy.train.targets.dtype == whole.train.targets.dtype
    np.testing.assert_array_equal(noisy.test.targets, whole.test.targets)
    np.testing.assert_array_equal(noisy.train.inputs, whole.train.inputs)
    again = ImageData(standardize="pixel_range", label_noise=fraction).load()
    np.testing.assert_array_equal(again.train.targets, noisy.train.targets)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_label_noise_is_a_fraction(fraction):
    """Documented contract: the value, and the range."""
    with pytest.raises(InputError, match=f"label_noise is {fraction}; expected a fraction"):
        ImageData(label_noise=fraction)
