"""`Augmentation`: what each operation does, how often, and on what its draws depend.

Amounts and windows are read off the images, as what is drawn depends on the key and the index only.
"""

import colorsys
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from dfa_jax.data.augment import BYOL_VIEW_1, BYOL_VIEW_2, NONE, Augmentation, two_views
from dfa_jax.errors import InputError

KEY = jax.random.key(0)
NUM = 2000  # examples; always the same shape, as most of the time is compiling
EVERYTHING = dataclasses.replace(BYOL_VIEW_2, pad=1, blur=0.5, solarize=0.3, grayscale=0.4)
OPERATIONS = ("crop_min_area", "pad", "flip", "color_jitter", "grayscale", "blur", "solarize")
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.5, "hue": 0.3}
SMALL = 1e-4  # a p-value that a right implementation undercuts in one of 10,000 seeds

compiled = functools.cache(jax.jit)


def augmented(augmentation, images, key=KEY):
    return np.asarray(compiled(augmentation)(key, jnp.asarray(images)))


def random_images(*shape):
    return np.random.RandomState(0).uniform(size=shape).astype(np.float32)


def jitter(**strengths):
    return Augmentation(color_jitter=1.0, **{**dict.fromkeys(STRENGTHS, 0.0), **strengths})


def copies(num, image):
    image = np.asarray(image, np.float32)
    return np.broadcast_to(image, (num, *image.shape))


def assert_uniform(values, low, high):
    """Kolmogorov-Smirnov test; with 500 values it sees a distribution function 0.1 off."""
    assert scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > SMALL


def palette():
    """Five probes, greys, black, white, full saturation, both sides of red, and others."""
    probes = [[0.5] * 3, [0.4] * 3, [0.6] * 3, [0.8, 0.4, 0.4], [0, 1, 0]]
    corners = list(itertools.product((0, 0.5, 1), repeat=3))
    return np.concatenate([probes, corners, [[1, 0, 0.01]], random_images(7, 3)]).reshape(4, 10, 3)


@functools.cache
def one_change(change):
    """500 palettes after one change, and its amounts, read off the first five colours."""
    out = augmented(jitter(**{change: STRENGTHS[change]}), copies(500, palette()))
    grey, darker, lighter, reddish, green = np.moveaxis(out[:, 0, :5].astype(np.float64), 1, 0)
    amounts = {
        "brightness": lambda: grey[:, 0] - 0.5,
        "contrast": lambda: (lighter - darker)[:, 0] / 0.2 - 1,
        "saturation": lambda: 2 * (1 - reddish[:, 1] / 0.8) - 1,
        "hue": lambda: np.asarray([colorsys.rgb_to_hsv(*color)[0] - 1 / 3 for color in green]),
    }[change]()
    return out, amounts


def changed_by_colorsys(change, amount, image):
    """One change of one image, pixel by pixel."""
    image = np.asarray(image, np.float64)
    if change == "brightness":
        return np.clip(image + amount, 0, 1)
    if change == "contrast":
        mean = image.mean((0, 1))
        return np.clip(mean + (1 + amount) * (image - mean), 0, 1)
    out = np.empty_like(image)
    for place in np.ndindex(*image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*image[place])
        h, s = (h + amount, s) if change == "hue" else (h, min((1 + amount) * s, 1.0))
        out[place] = colorsys.hsv_to_rgb(h % 1, s, v)
    return out


def test_identity_bit_for_bit():
    """Exact equivalence: NONE returns the images, in whatever type and range they are."""
    images = jnp.asarray(100 * random_images(2, 3, 3, 1) - 50)
    for dtype in ("float32", "bfloat16"):
        given = images.astype(dtype)
        found = NONE(KEY, given)
        assert found.dtype == dtype
        assert np.asarray(found).tobytes() == np.asarray(given).tobytes()


def test_what_is_off_is_not_traced():
    """Proof of absence: no equation at all, and none of the other operations' beside a flip's."""
    images = jnp.asarray(random_images(2, 4, 4, 3))
    for off in (NONE, Augmentation(brightness=1.0, hue=0.5), jitter()):
        assert not jax.make_jaxpr(off)(KEY, images).eqns
    flip, everything = (
        str(jax.make_jaxpr(augmentation)(KEY, images))
        for augmentation in (Augmentation(flip=0.5), EVERYTHING)
    )
    assert " rev[" in flip
    for absent in ("scan", "sort", "dot_general", "pad", "gather", "exp", "reduce_max"):
        assert f" {absent}" in everything
        assert f" {absent}" not in flip


def test_flip():
    """Closed form: at probability 1 the columns in reverse, bit for bit."""
    images = random_images(3, 4, 5, 1)
    np.testing.assert_array_equal(augmented(Augmentation(flip=1.0), images), images[:, :, ::-1])


@functools.cache
def one_operation(field):
    """The 2,000 examples after one operation of `EVERYTHING`."""
    one = Augmentation(**{field: getattr(EVERYTHING, field)})
    return augmented(one, random_images(NUM, 6, 6, 3))


def test_probabilities():
    """Statistical test: 2,000 examples, frequencies and correlations to 5 deviations.

    That is 0.056 of a frequency of 0.5. Equal keys of two operations, which would flip just the
    images that are blurred, make a correlation of 0.4 or more; the tolerance is 0.11.
    """
    images, fields = random_images(NUM, 6, 6, 3), OPERATIONS[2:]
    changed = [(np.abs(one_operation(field) - images) > 1e-6).any((1, 2, 3)) for field in fields]
    for field, frequency in zip(fields, np.mean(changed, 1), strict=True):
        probability = getattr(EVERYTHING, field)
        deviation = np.sqrt(probability * (1 - probability) / NUM)
        assert abs(frequency - probability) < 5 * deviation, field
    np.testing.assert_allclose(np.corrcoef(changed), np.eye(5), rtol=0, atol=5 / np.sqrt(NUM))


def test_together_as_one_by_one():
    """Exact equivalence, to 1e-5: all operations at once, and one after the other with the same key.

    So the order is the fields', and what one draws does not depend on which others are on.
    """
    images = random_images(NUM, 6, 6, 3)
    expected = images
    for field in OPERATIONS:
        changed = augmented(Augmentation(**{field: getattr(EVERYTHING, field)}), expected)
        assert not np.array_equal(changed, expected), field
        expected = changed
    found = augmented(EVERYTHING, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert found.min() >= 0
    assert found.max() <= 1


@functools.cache
def crops(height, width, min_area):
    """500 crops of two ramps, which tell the window, and of two random channels, which do not.

    Returns the images, their crops, and the windows' top, left, height and width: away from the
    edges, cubic interpolation of a ramp is a ramp.
    """
    ramps = np.stack(np.broadcast_arrays(np.arange(height)[:, None], np.arange(width)), -1)
    ramps = copies(500, (ramps + 0.5) / (height, width))
    images = np.concatenate([ramps, random_images(500, height, width, 2)], -1)
    found = augmented(Augmentation(crop_min_area=min_area), images)
    at = found[..., :2].astype(np.float64) * [height, width]
    y, x = height // 2 - 1, width // 2 - 1
    step_y, step_x = at[:, y + 1, x, 0] - at[:, y, x, 0], at[:, y, x + 1, 1] - at[:, y, x, 1]
    top, left = at[:, y, x, 0] - (y + 0.5) * step_y, at[:, y, x, 1] - (x + 0.5) * step_x
    return images, found, np.stack([top, left, step_y * height, step_x * width], 1)


@pytest.mark.parametrize(("height", "width", "min_area"), [(16, 16, 0.08), (24, 12, 0.5)])
def test_crop(height, width, min_area):
    """Independent implementation: Pillow's bicubic resize out of the same fractional window.

    Statistical test: area, log aspect and place of 500 windows, each uniform where it may be. Drawing
    the side instead of the area puts the distribution function 0.14 off at the first size.
    """
    images, found, windows = crops(height, width, min_area)
    for image, out, (top, left, tall, wide) in list(zip(images, found, windows, strict=True))[:8]:
        box = np.clip([left, top, left + wide, top + tall], 0, [width, height, width, height])
        for channel in (2, 3):
            whole = Image.fromarray(image[..., channel])
            resized = whole.resize((width, height), Image.Resampling.BICUBIC, box=tuple(box))
            expected = np.clip(np.asarray(resized), 0, 1)
            np.testing.assert_allclose(out[..., channel], expected, rtol=0, atol=2e-4)

    top, left, tall, wide = windows.T
    area = tall * wide / (height * width)
    assert_uniform(area, min_area, 1)
    fits = np.log([area * width / height, width / height / area])
    low, high = (np.clip(np.log(aspect), *fits) for aspect in (3 / 4, 4 / 3))
    log_aspect = np.log(wide / tall)
    np.testing.assert_array_less(low - 1e-4, log_aspect)
    np.testing.assert_array_less(log_aspect, high + 1e-4)
    free = (high - low > 0.02) & (height - tall > 0.05) & (width - wide > 0.05)
    assert free.sum() > 100
    shares = (log_aspect - low, high - low), (top, height - tall), (left, width - wide)
    shares = [part[free] / whole[free] for part, whole in shares]  # elsewhere rounding is too large
    for share in shares:
        assert_uniform(share, 0, 1)
    correlations = np.corrcoef([area[free], *shares])
    np.testing.assert_allclose(correlations, np.eye(4), rtol=0, atol=5 / np.sqrt(free.sum()))
    assert min(top.min(), left.min()) > -1e-4
    assert min((height - tall - top).min(), (width - wide - left).min()) > -1e-4


def test_pad():
    """Independent implementation: one of the 25 windows of `np.pad`'s, all of them equally often.

    Chi-square over 1,000 examples of the same image; one window in three that never comes, as with
    an exclusive upper end, gives a p-value below 1e-30.
    """
    num, pad = 1000, 2
    image = random_images(4, 5, 1) + 0.1
    padded = np.pad(np.clip(image, 0, 1), ((pad, pad), (pad, pad), (0, 0)))
    shifts = [padded[top : top + 4, left : left + 5] for top in range(5) for left in range(5)]
    out = augmented(Augmentation(pad=pad), copies(num, np.clip(image, 0, 1)))
    same = np.stack([(out == shift).all((1, 2, 3)) for shift in shifts], 1)
    np.testing.assert_array_equal(same.sum(1), 1)
    assert scipy.stats.chisquare(same.sum(0)).pvalue > SMALL


@pytest.mark.parametrize("change", STRENGTHS)
def test_one_change(change):
    """Independent implementation: NumPy, and colorsys for hue and saturation.

    Statistical test: 500 amounts are uniform within the strength; seen if 0.1 off.
    """
    found, amounts = one_change(change)
    for out, amount in list(zip(found, amounts, strict=True))[:10]:
        expected = changed_by_colorsys(change, amount, palette())
        np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)
    assert_uniform(amounts, -STRENGTHS[change], STRENGTHS[change])


def test_amounts_are_independent():
    """Statistical test: correlations of the four amounts over 500 examples, to 5 deviations."""
    amounts = [one_change(change)[1] for change in STRENGTHS]
    np.testing.assert_allclose(np.corrcoef(amounts), np.eye(4), rtol=0, atol=5 / np.sqrt(500))


def test_order_of_changes():
    """Independent implementation in all 24 orders; statistical test of which one was taken.

    Some orders do the same to an image. If every order is as likely, the share of those that explain
    an image and have a given change in a given place is 1/4 on average, whatever the image. To 5
    deviations of 300 images (0.125); a fixed order is 0.3 off or more.
    """
    num = 300
    image = np.clip(1.6 * random_images(1, 3, 3) - 0.3, 0, 1)
    amounts = {change: one_change(change)[1] for change in STRENGTHS}
    found = augmented(jitter(**STRENGTHS), copies(num, image))
    orders = list(itertools.permutations(STRENGTHS))
    shares = np.zeros((num, 4, 4))
    for example in range(num):
        places = []
        for order in orders:
            out = image
            for change in order:
                out = changed_by_colorsys(change, amounts[change][example], out)
            if np.abs(out - found[example]).max() < 1e-4:
                places.append([order.index(change) for change in STRENGTHS])
        assert places
        shares[example] = (np.asarray(places)[:, :, None] == np.arange(4)).mean(0)
    assert shares.max(2).mean() > 0.5  # many images tell their order
    deviation = np.sqrt(0.25 * 0.75 / num)
    np.testing.assert_allclose(shares.mean(0), 0.25, rtol=0, atol=5 * deviation)


def test_grayscale():
    """Closed form: 0.2989 red + 0.587 green + 0.114 blue, in all three channels."""
    images = random_images(2, 3, 4, 3)
    luma = images.astype(np.float64) @ [0.2989, 0.5870, 0.1140]
    found = augmented(Augmentation(grayscale=1.0), images)
    np.testing.assert_allclose(found, np.stack([luma] * 3, -1), rtol=0, atol=1e-6)


def test_solarize():
    """Closed form: x below a half, 1 - x from there."""
    images = random_images(2, 3, 4, 1)
    expected = np.where(images < 0.5, images, 1 - images)
    np.testing.assert_array_equal(augmented(Augmentation(solarize=1.0), images), expected)


@functools.cache
def blurs(height, width):
    """An image, 200 blurs of it, and their deviations.

    They are read off the response to a single bright pixel, exp(-1 / (2 sigma^2)) beside it.
    """
    image = random_images(height, width, 2)
    y, x = height // 2, width // 2
    image[y - 6 : y + 7, x - 6 : x + 7] = 0
    image[y, x] = 1
    found = augmented(Augmentation(blur=1.0), copies(200, image))
    ratio = found[:, y, x + 1, 0].astype(np.float64) / found[:, y, x, 0]
    return image, found, np.sqrt(-0.5 / np.log(ratio))


@pytest.mark.parametrize(("height", "width", "radius"), [(16, 24, 1), (64, 40, 2)])
def test_blur(height, width, radius):
    """Independent implementation: SciPy's truncated Gaussian filter with the edge continued.

    Statistical test: 200 deviations are uniform from 0.1 to 2 pixels; seen if 0.16 off.
    """
    image, found, sigmas = blurs(height, width)
    assert_uniform(sigmas, 0.1, 2.0)
    for out, sigma in list(zip(found, sigmas, strict=True))[:5]:
        expected = scipy.ndimage.gaussian_filter(
            image, sigma, mode="nearest", radius=radius, axes=(0, 1)
        )
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


def test_operations_have_keys_of_their_own():
    """Statistical test: a crop's area and a blur's deviation, of 200 examples, to 5 deviations.

    One key for both would draw them from the same number, with a correlation of 1.
    """
    tall, wide = crops(16, 16, 0.08)[2].T[2:]
    sigmas = blurs(16, 24)[2]
    assert abs(np.corrcoef((tall * wide)[:200], sigmas)[0, 1]) < 5 / np.sqrt(200)


def test_range():
    """Invariant: pixels of 0 and 1, which contrast and cubic interpolation push out, end within."""
    out = augmented(EVERYTHING, (random_images(NUM, 6, 6, 3) > 0.5).astype(np.float32))
    assert (out.min(), out.max()) == (0, 1)


def test_half_precision():
    """Exact equivalence: bfloat16 is single precision, rounded once, at the end."""
    brighter = jitter(brightness=STRENGTHS["brightness"])
    images = jnp.asarray(copies(500, palette())).astype(jnp.bfloat16)
    half = compiled(brighter)(KEY, images)
    single = augmented(brighter, images.astype(jnp.float32))
    np.testing.assert_array_equal(np.asarray(half), single.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_type(dtype, x64):
    """Invariant: the type stays, also where it is not the default one of what is drawn."""
    out = jax.eval_shape(EVERYTHING, KEY, jnp.zeros((2, 6, 6, 3), dtype))
    assert (out.shape, out.dtype) == ((2, 6, 6, 3), dtype)


def test_example_by_example():
    """Exact equivalence: the first 4 of a batch as a batch of those 4, to 1e-5; the rest is free.

    To the bit if the batch is as large, as vectorised exponentials round otherwise. The same image
    comes out differently in every place, or a batch would be augmented alike.
    """
    images = random_images(NUM, 6, 6, 3)
    whole = augmented(EVERYTHING, images)
    few = augmented(EVERYTHING, images[:4])
    np.testing.assert_allclose(few, whole[:4], rtol=0, atol=1e-5)
    others = np.concatenate([images[:4], images[:3:-1]])
    np.testing.assert_array_equal(augmented(EVERYTHING, others)[:4], whole[:4])
    assert not np.allclose(augmented(EVERYTHING, images, jax.random.key(1))[:4], whole[:4])
    alike = augmented(EVERYTHING, copies(NUM, images[0]))
    for one, other in itertools.combinations(alike[:8], 2):
        assert not np.allclose(one, other)


def unlike_views(key, images):
    return two_views(key, images, NONE, Augmentation(flip=1.0))


def test_eight_devices_equal_one():
    """Exact equivalence: batch sharded over a mesh of 8, to 1e-5; and no word between devices.

    The views stay where their images are, and what is drawn does not depend on the machine. A
    program for another number of images rounds in another order, in ten operations on end.
    """
    images = random_images(NUM, 6, 6, 3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put(images, split)

    for function in (EVERYTHING, unlike_views):
        program = jax.jit(function, out_shardings=split).lower(KEY, sharded).compile()
        found = program(KEY, sharded)
        assert len(found.sharding.device_set) == 8
        np.testing.assert_allclose(found, augmented(function, images), rtol=0, atol=1e-5)
        for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
            assert word not in program.as_text()


def test_two_views():
    """Invariants: rows 2i and 2i + 1 are views of image i, the first and the second kind, unlike."""
    images = random_images(NUM, 6, 6, 3)
    pairs = augmented(unlike_views, images)
    np.testing.assert_array_equal(pairs[0::2], images)
    np.testing.assert_array_equal(pairs[1::2], images[:, :, ::-1])
    flip = Augmentation(flip=0.5)
    pairs = augmented(functools.partial(two_views, first=flip, second=flip), images)
    same = (pairs[0::2] == pairs[1::2]).all((1, 2, 3))
    assert abs(same.mean() - 0.5) < 5 * np.sqrt(0.25 / NUM)  # as often as not


def test_byol():
    """Golden numbers: BYOL's published configuration; the views differ in blur and solarisation."""
    shared = {
        "crop_min_area": 0.08,
        "pad": 0,
        "flip": 0.5,
        "color_jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale": 0.2,
    }
    assert dataclasses.asdict(BYOL_VIEW_1) == {**shared, "blur": 1.0, "solarize": 0.0}
    assert dataclasses.asdict(BYOL_VIEW_2) == {**shared, "blur": 0.1, "solarize": 0.2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_min_area": 0.0}, "crop_min_area is 0.0; expected a fraction of the image above 0"),
        ({"crop_min_area": 1.5}, "crop_min_area is 1.5"),
        ({"pad": -1}, "pad is -1; expected a number of pixels"),
        ({"flip": 1.1}, "flip is 1.1; expected a probability from 0 to 1"),
        ({"color_jitter": -0.1}, "color_jitter is -0.1"),
        ({"grayscale": float("nan")}, "grayscale is nan"),
        ({"blur": 2.0}, "blur is 2.0"),
        ({"solarize": 2.0}, "solarize is 2.0"),
        ({"brightness": 1.5}, "brightness is 1.5; expected a strength from 0 to 1"),
        ({"contrast": -0.5}, "contrast is -0.5"),
        ({"saturation": 3.0}, "saturation is 3.0"),
        ({"hue": 0.6}, "hue is 0.6; expected a strength from 0 to 0.5"),
    ],
)
def test_refused(fields, message):
    """Documented contract: the field, its value, and the range."""
    with pytest.raises(InputError, match=message):
        Augmentation(**fields)


@pytest.mark.parametrize("field", ["color_jitter", "grayscale"])
def test_colour_needs_three_channels(field):
    """Documented contract: the number of channels and the remedy; all else takes any number."""
    images = jnp.asarray(random_images(2, 4, 4, 1))
    with pytest.raises(InputError, match="images have 1 channel.*set both to 0"):
        Augmentation(**{field: 0.1})(KEY, images)
    colourless = dataclasses.replace(EVERYTHING, color_jitter=0.0, grayscale=0.0)
    assert jax.eval_shape(colourless, KEY, images).shape == (2, 4, 4, 1)


def test_integers_refused():
    """Documented contract: bytes would be clipped to black and white."""
    with pytest.raises(InputError, match="images are uint8; expected floating point"):
        NONE(KEY, jnp.zeros((1, 2, 2, 3), "uint8"))
