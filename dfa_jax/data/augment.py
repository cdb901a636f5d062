"""`Augmentation`: random crops, flips and colours of a batch of images, drawn on the device."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dfa_jax.errors import InputError
from dfa_jax.types import PRNGKey

_Image = Float[Array, "height width channel"]
_Plane = Float[Array, "height width"]
_Operation = Callable[[PRNGKey, _Image], _Image]

_PROBABILITIES = ("flip", "color_jitter", "grayscale", "blur", "solarize")
_ASPECTS = (3 / 4, 4 / 3)  # width over height of a crop
_SIGMAS = (0.1, 2.0)  # of the blur, pixels
_SIDES_PER_RADIUS = 20  # so that the blur's kernel is about a tenth of the side
_SOLARIZE_THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of images, in the order of the fields; what is off is not traced.

    Every example has a key of its own, `fold_in(key, index in the batch)`, and every operation one
    derived from it. A result thus depends on neither the rest of the batch nor the number of
    devices, and what one operation draws does not depend on which others are on.

    Attributes:
        crop_min_area: least area, as a fraction of the image's, of a random window that is resized
            to the image's size; areas are uniform from it to 1, aspects (width over height)
            log-uniform from 3/4 to 4/3 as far as such a window fits; 1 for no crop.
        pad: pixels of zeros around the image, out of which its size is cut at random; 0 for none.
        flip: probability of exchanging left and right.
        color_jitter: probability of the four changes below, in random order.
        brightness: largest value to add to all pixels; uniform between minus and plus it.
        contrast: largest change of the factor 1 of all distances from a channel's mean; uniform.
        saturation: largest change of the factor 1 of all saturations (HSV); uniform.
        hue: largest turn of all hues (HSV), of which 1 is the full circle; uniform.
        grayscale: probability of replacing all channels by the luma.
        blur: probability of a Gaussian blur with a deviation uniform from 0.1 to 2 pixels, cut to
            a kernel of about a tenth of the shorter side; the image's edge is continued outwards.
        solarize: probability of inverting the values from 0.5 up.

    Source: Grill et al. (2020), "Bootstrap your own latent", arXiv 2006.07733, and its code, which
    blurs with zeros around the image; `pad` is the usual augmentation of CIFAR-10.
    """

    crop_min_area: float = 1.0
    pad: int = 0
    flip: float = 0.0
    color_jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0

    def __post_init__(self):
        if not 0 < self.crop_min_area <= 1:
            raise InputError(
                f"crop_min_area is {self.crop_min_area}; expected a fraction of the image above 0,"
                " or 1 for no crop"
            )
        if not (isinstance(self.pad, int) and self.pad >= 0):
            raise InputError(f"pad is {self.pad!r}; expected a number of pixels, or 0 for none")
        for field in _PROBABILITIES:
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(
                    f"{field} is {getattr(self, field)}; expected a probability from 0 to 1"
                )
        for field, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, field) <= most:
                raise InputError(
                    f"{field} is {getattr(self, field)}; expected a strength from 0 to {most}"
                )

    def __call__(
        self, key: PRNGKey, images: Num[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Augments each image, independently of the others.

        Args:
            key: of this batch; fold the step into it.
            images: floating point in [0, 1], as `ImageData(standardize="pixel_range")` gives them;
                standardise afterwards.

        Returns:
            Images of the same shape and type in [0, 1]; the very same ones if everything is off.

        Raises:
            InputError: the images are no floats, or are to change colour and have not 3 channels.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images are {images.dtype}; expected floating point in [0, 1]; divide by 255"
            )
        channels = images.shape[-1]
        if (self.color_jitter or self.grayscale) and channels != 3:
            raise InputError(
                f"images have {channels} channel(s), but color_jitter and grayscale expect 3, red,"
                " green and blue; set both to 0"
            )
        operations = self._operations()
        if not any(probability for probability, _ in operations):
            return images
        precision = jnp.promote_types(images.dtype, jnp.float32)

        def augmented(index: Array, image: _Image) -> _Image:
            choice_key, *keys = jax.random.split(jax.random.fold_in(key, index), 8)
            choices = jax.random.uniform(choice_key, (7,))
            image = image.astype(precision)
            for number, (probability, operation) in enumerate(operations):
                if probability:
                    changed = operation(keys[number], image)
                    image = jnp.where(choices[number] < probability, changed, image)
            return jnp.clip(image, 0, 1).astype(images.dtype)

        return jax.vmap(augmented)(jnp.arange(len(images)), images)

    def _operations(self) -> list[tuple[float, _Operation]]:
        """All seven, in order, with their probabilities; a crop is on (1) or off (0)."""
        jitters = any((self.brightness, self.contrast, self.saturation, self.hue))
        return [
            (self.crop_min_area < 1, functools.partial(_cropped, min_area=self.crop_min_area)),
            (self.pad > 0, functools.partial(_shifted, pad=self.pad)),
            (self.flip, _flipped),
            (self.color_jitter if jitters else 0.0, self._jittered),
            (self.grayscale, _gray),
            (self.blur, _blurred),
            (self.solarize, _solarized),
        ]

    def _jittered(self, key: PRNGKey, image: _Image) -> _Image:
        order_key, amount_key = jax.random.split(key)
        amounts = jax.random.uniform(amount_key, (4,), image.dtype, -1, 1)
        changes = [
            functools.partial(change, strength * amount)
            for change, strength, amount in (
                (_brightened, self.brightness, amounts[0]),
                (_contrasted, self.contrast, amounts[1]),
                (_saturated, self.saturation, amounts[2]),
                (_hue_turned, self.hue, amounts[3]),
            )
            if strength
        ]

        def step(image, number):
            # Clipped every time: hue and saturation mean nothing outside of [0, 1].
            return jnp.clip(jax.lax.switch(number, changes, image), 0, 1), None

        # A loop: under vmap each step does all the changes and picks one, so it is traced once.
        return jax.lax.scan(step, image, jax.random.permutation(order_key, len(changes)))[0]


NONE = Augmentation()
"""The identity."""

BYOL_VIEW_1 = Augmentation(
    crop_min_area=0.08, flip=0.5, color_jitter=0.8, grayscale=0.2, blur=1.0, solarize=0.0
)
"""The first view of BYOL's two, always blurred (arXiv 2006.07733, and its code)."""

BYOL_VIEW_2 = dataclasses.replace(BYOL_VIEW_1, blur=0.1, solarize=0.2)
"""The second view of BYOL's two, sometimes blurred or solarised (as above)."""


def two_views(
    key: PRNGKey,
    images: Num[Array, "batch height width channel"],
    first: Augmentation,
    second: Augmentation,
) -> Float[Array, "two_batch height width channel"]:
    """Two independent augmentations of each image, for contrastive learning.

    Args:
        key: of this batch.
        images: floating point in [0, 1].
        first: makes rows 0, 2, 4, ...
        second: makes rows 1, 3, 5, ...

    Returns:
        The views of image i in rows 2i and 2i + 1: where the batch is sharded, they are neighbours
        on one device.

    Raises:
        InputError: as `Augmentation` does.

    >>> images = jnp.zeros((4, 8, 8, 3))
    >>> two_views(jax.random.key(0), images, Augmentation(flip=0.5), NONE).shape
    (8, 8, 8, 3)
    """
    first_key, second_key = jax.random.split(key)
    views = jnp.stack([first(first_key, images), second(second_key, images)], 1)
    return views.reshape(2 * len(images), *images.shape[1:])


def _cropped(key: PRNGKey, image: _Image, min_area: float) -> _Image:
    """A window of fractional position and size, resized to the image's size."""
    height, width = image.shape[:2]
    drawn = jax.random.uniform(key, (4,), image.dtype)
    area = min_area + (1 - min_area) * drawn[0]
    # A window of this area fits at the aspects between these two. Redrawing area and aspect until
    # they fit would favour small areas, and need a loop.
    fitting = area * (width / height), width / height / area
    low, high = (jnp.log(jnp.clip(aspect, *fitting)) for aspect in _ASPECTS)
    aspect = jnp.exp(low + (high - low) * drawn[1])
    window = jnp.sqrt(area * (height * width) * jnp.stack([1 / aspect, aspect]))
    whole = jnp.asarray([height, width], image.dtype)
    corner = drawn[2:] * (whole - window)
    scale = whole / window  # at least 1, so there is nothing to antialias
    enlarged = jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -corner * scale, "cubic", antialias=False
    )
    return jnp.clip(enlarged, 0, 1)  # cubic interpolation overshoots


def _shifted(key: PRNGKey, image: _Image, pad: int) -> _Image:
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def _flipped(key: PRNGKey, image: _Image) -> _Image:
    del key
    return image[:, ::-1]


def _brightened(amount: Array, image: _Image) -> _Image:
    return image + amount


def _contrasted(amount: Array, image: _Image) -> _Image:
    mean = image.mean((0, 1), keepdims=True)
    return mean + (1 + amount) * (image - mean)


def _saturated(amount: Array, image: _Image) -> _Image:
    hue, saturation, value = _to_hsv(image)
    return _from_hsv(hue, jnp.clip((1 + amount) * saturation, 0, 1), value)


def _hue_turned(amount: Array, image: _Image) -> _Image:
    hue, saturation, value = _to_hsv(image)
    return _from_hsv(hue + amount, saturation, value)


def _gray(key: PRNGKey, image: _Image) -> _Image:
    del key
    red, green, blue = jnp.moveaxis(image, -1, 0)
    luma = 0.2989 * red + 0.5870 * green + 0.1140 * blue
    return jnp.stack([luma] * 3, -1)


def _blurred(key: PRNGKey, image: _Image) -> _Image:
    radius = max(min(image.shape[:2]) // _SIDES_PER_RADIUS, 1)
    sigma = jax.random.uniform(key, (), image.dtype, *_SIGMAS)
    weights = jax.nn.softmax(-0.5 * jnp.square(jnp.arange(-radius, radius + 1) / sigma))
    for axis, side in enumerate(image.shape[:2]):
        margins = [(radius, radius) if other == axis else (0, 0) for other in range(3)]
        padded = jnp.pad(image, margins, mode="edge")
        # A sum of slices: a convolution with a kernel for each example is 10 times slower (CPU).
        image = sum(
            (
                weights[start] * jax.lax.slice_in_dim(padded, start, start + side, axis=axis)
                for start in range(2 * radius + 1)
            ),
            start=jnp.zeros_like(image),
        )
    return image


def _solarized(key: PRNGKey, image: _Image) -> _Image:
    del key
    return jnp.where(image < _SOLARIZE_THRESHOLD, image, 1 - image)


def _to_hsv(image: _Image) -> tuple[_Plane, _Plane, _Plane]:
    """Hue, saturation and value in [0, 1]; the hue of a grey is 0, and so black's saturation."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = image.max(-1)
    chroma = value - image.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    from_green_or_blue = jnp.where(
        value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    )
    sixths = jnp.where(value == red, (green - blue) / divisor, from_green_or_blue)
    return sixths / 6 % 1, chroma / jnp.where(value > 0, value, 1), value


def _from_hsv(hue: _Plane, saturation: _Plane, value: _Plane) -> _Image:
    """Each channel is a trapezium over the circle of hues, which need not be in [0, 1]."""

    def channel(sixths_ahead: int) -> _Plane:
        sixths = (sixths_ahead + 6 * hue) % 6
        return value - value * saturation * jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], -1)
