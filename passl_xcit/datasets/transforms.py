"""Transforms of one image, under the names and arguments of PASSL v1.x (paddle.vision.transforms).

A transform is called as `transform(image, rng)` and returns the new image; the one it was given stays as it
was. `image` is a PIL image of mode RGB or L until `Transpose` makes it a [C, H, W] uint8 array, and float32
after `Normalize`. `rng` is a numpy.random.Generator which gives every random number; transforms that draw say so
(`draws = True`), the others ignore it. Constructors raise ValueError for values out of range.
"""

import math
from typing import Optional, Sequence, Union

import numpy as np
from PIL import Image, ImageOps

from passl_xcit.datasets.imagenet import MAX_PIXELS
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import TRANSFORMS

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
ATTEMPTS = 10


def require(condition, argument, value, expected):
    """Raise ValueError that names the argument, its value and what is expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{argument} is {value!r}, expected {expected}")


def require_probability(argument, value):
    """Raise ValueError unless `value` is a number from 0 to 1."""
    require(0 <= value <= 1, argument, value, "a number from 0 to 1")


def pil_interpolation(name, known=tuple(INTERPOLATIONS)):
    """PIL's resampling filter called `name`; ValueError with the known names when there is none."""
    require(name in known, "interpolation", name, f"one of {', '.join(known)}")
    return INTERPOLATIONS[name]


def require_pil(image, transform):
    """Raise ConfigError if `image` is an array already, DataError if its mode is neither RGB nor L."""
    if not isinstance(image, Image.Image):
        raise ConfigError(f"{type(transform).__name__} takes a PIL image: put it before Transpose")
    if image.mode not in ("RGB", "L"):
        raise DataError(f"{type(transform).__name__} takes an RGB or L image, not {image.mode}")


def _require_array(image, transform, after):
    if not isinstance(image, np.ndarray):
        raise ConfigError(f"{type(transform).__name__} takes an array [C, H, W]: put it after {after}")


def _height_width(size):
    pair = (size, size) if isinstance(size, int) else tuple(size)
    require(len(pair) == 2 and min(pair) > 0, "size", size, "an int above 0 or [height, width], both above 0")
    return pair


def require_range(argument, pair, most):
    """Raise ValueError unless `pair` is (low, high) with 0 < low <= high <= most."""
    ordered = len(pair) == 2 and 0 < pair[0] <= pair[1] <= most
    bound = "" if most == math.inf else f" <= {most}"
    require(ordered, argument, pair, f"two numbers, 0 < low <= high{bound}")


class Resize:
    """Resize with PIL's antialiasing filters.

    Args:
        size: int, the length of the short side (the long one is cut to whole pixels: torchvision's and Paddle's
            rule), or [height, width].
        interpolation: nearest, bilinear, bicubic, lanczos, box or hamming.
    """

    def __init__(self, size: Union[int, Sequence[int]], interpolation: str = "bilinear"):
        _height_width(size)
        self.size, self.filter = size, pil_interpolation(interpolation)

    def __call__(self, image, rng):
        require_pil(image, self)
        height, width = self._target(image)
        if height * width > MAX_PIXELS:  # a strip of 1 x 1,000,000 pixels would become one of 224 x 224,000,000
            have = f"an image of {image.width} x {image.height} pixels"
            raise DataError(f"{have} would become one of {width} x {height}; more than 64 million are refused")
        return image.resize((width, height), self.filter)

    def _target(self, image):
        if not isinstance(self.size, int):
            return self.size
        short = min(image.size)
        return int(self.size * image.height / short), int(self.size * image.width / short)


def _centre_offset(length, crop):
    """First pixel of a central crop; negative where black is added, the odd pixel of it after the image."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)


class CenterCrop:
    """Cut the middle out; an image that is too small gets a black border. Rounds as torchvision does.

    Args:
        size: int for a square, or [height, width].
    """

    def __init__(self, size: Union[int, Sequence[int]]):
        self.height, self.width = _height_width(size)

    def __call__(self, image, rng):
        require_pil(image, self)
        left, top = _centre_offset(image.width, self.width), _centre_offset(image.height, self.height)
        return image.crop((left, top, left + self.width, top + self.height))


class RandomCrop:
    """Cut a window at a uniformly drawn place out of the (padded) image.

    Args:
        size: int for a square, or [height, width].
        padding: pixels added on each of the four sides first.
        fill: value of the added pixels, 0 to 255.

    Raises:
        DataError: when called, if the padded image is smaller than `size`.
    """

    draws = True

    def __init__(self, size: Union[int, Sequence[int]], padding: int = 0, fill: int = 0):
        require(padding >= 0, "padding", padding, "a number of pixels, 0 or more")
        require(0 <= fill <= 255, "fill", fill, "a pixel value from 0 to 255")
        self.height, self.width = _height_width(size)
        self.padding, self.fill = padding, fill

    def __call__(self, image, rng):
        require_pil(image, self)
        fill = self.fill if image.mode == "L" else (self.fill,) * 3
        image = ImageOps.expand(image, self.padding, fill)
        if image.height < self.height or image.width < self.width:
            have, want = f"{image.height}x{image.width}", f"{self.height}x{self.width}"
            raise DataError(f"RandomCrop of {want} from an image of {have}, padding included: add padding or Resize")
        top = int(rng.integers(0, image.height - self.height + 1))
        left = int(rng.integers(0, image.width - self.width + 1))
        return image.crop((left, top, left + self.width, top + self.height))


class RandomResizedCrop:
    """Cut out a random part of random shape and resize it (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    The rule is torchvision's: area uniform in `scale`, log of the aspect ratio uniform in log `ratio`, ten
    attempts, then the largest central crop that `ratio` allows.

    Args:
        size: int for a square, or [height, width].
        scale: smallest and largest area of the part, as fractions of the image's area.
        ratio: smallest and largest width / height of the part.
        interpolation: nearest, bilinear, bicubic, lanczos, box or hamming.
    """

    draws = True

    def __init__(
        self,
        size: Union[int, Sequence[int]],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ):
        require_range("scale", scale, most=1)
        require_range("ratio", ratio, most=math.inf)
        self.height, self.width = _height_width(size)
        self.scale, self.ratio = scale, ratio
        self.filter = pil_interpolation(interpolation)

    def __call__(self, image, rng):
        require_pil(image, self)
        top, left, height, width = self.draw_box(image.height, image.width, rng)
        # Image.resize(box=...) would be one call, but lets pixels around the box into the filter.
        part = image.crop((left, top, left + width, top + height))
        return part.resize((self.width, self.height), self.filter)

    def draw_box(self, height, width, rng):
        """(top, left, height, width) in pixels of the part to cut out of a `height` x `width` image."""
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(*log_ratio))
            box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = int(rng.integers(0, height - box_height + 1))
                left = int(rng.integers(0, width - box_width + 1))
                return top, left, box_height, box_width
        return self._central_box(height, width)

    def _central_box(self, height, width):
        box_height, box_width = height, width
        if width / height < self.ratio[0]:
            box_height = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            box_width = round(height * self.ratio[1])
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class RandomHorizontalFlip:
    """Mirror the image left to right with probability `prob`."""

    draws = True

    def __init__(self, prob: float = 0.5):
        require_probability("prob", prob)
        self.prob = prob

    def __call__(self, image, rng):
        require_pil(image, self)
        return ImageOps.mirror(image) if rng.random() < self.prob else image


class Transpose:
    """PIL image -> uint8 array with the axes of [H, W, C] in the given order; [C, H, W] by default."""

    def __init__(self, order: Sequence[int] = (2, 0, 1)):
        require(sorted(order) == [0, 1, 2], "order", order, "0, 1 and 2 in some order")
        self.order = tuple(order)

    def __call__(self, image, rng):
        require_pil(image, self)
        pixels = np.asarray(image).reshape(image.height, image.width, -1)  # [H, W, C]
        return np.ascontiguousarray(pixels.transpose(self.order))


class Normalize:
    """(image - mean) / std for each channel of a [C, H, W] array, in float32.

    Args:
        mean, std: one value a channel, on the scale of the pixels: 0 to 255, as in PASSL's files.

    Raises:
        DataError: when called, if the image has another number of channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        require(len(mean) == len(std) > 0, "std", std, f"as many values as mean, which is {mean!r}")
        require(min(std) > 0, "std", std, "values above 0")
        self.mean = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        self.std = np.asarray(std, np.float32).reshape(-1, 1, 1)

    def __call__(self, image, rng):
        _require_array(image, self, after="Transpose")
        if len(image) != len(self.mean):
            raise DataError(f"Normalize has {len(self.mean)} mean values, but the image has {len(image)} channels")
        image = image - self.mean
        image /= self.std
        return image


class RandomErasing:
    """Erase rectangles of a normalised [C, H, W] image (Zhong et al. 2017, arXiv:1708.04896, algorithm 1).

    The rule is timm's (timm/data/random_erasing.py): ten attempts for each rectangle; one that is as wide or as
    high as the image is drawn again.

    Args:
        prob: probability that an image is touched at all.
        min_area, max_area: area of all rectangles together, as fractions of the image's area.
        min_aspect, max_aspect: height / width of a rectangle; `max_aspect` is 1 / `min_aspect` by default.
        mode: what a rectangle is filled with: 'const' zeros, 'rand' one N(0, 1) value a channel, 'pixel' one
            N(0, 1) value a pixel and channel.
        min_count, max_count: the number of rectangles is uniform between them; `max_count` is `min_count` by
            default.
    """

    draws = True
    MODES = ("const", "rand", "pixel")

    def __init__(
        self,
        prob: float = 0.5,
        min_area: float = 0.02,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
        max_aspect: Optional[float] = None,
        mode: str = "const",
        min_count: int = 1,
        max_count: Optional[int] = None,
    ):
        max_aspect = 1 / min_aspect if max_aspect is None and min_aspect > 0 else max_aspect
        max_count = min_count if max_count is None else max_count
        require_probability("prob", prob)
        require_range("min_area, max_area", (min_area, max_area), most=1)
        require_range("min_aspect, max_aspect", (min_aspect, max_aspect), most=math.inf)
        require_range("min_count, max_count", (min_count, max_count), most=math.inf)
        require(mode in self.MODES, "mode", mode, f"one of {', '.join(self.MODES)}")
        self.prob, self.mode = prob, mode
        self.area, self.count = (min_area, max_area), (min_count, max_count)
        self.log_aspect = math.log(min_aspect), math.log(max_aspect)

    def __call__(self, image, rng):
        _require_array(image, self, after="Normalize")
        if image.dtype != np.float32:
            raise ConfigError("RandomErasing fills with values of normalised images: put it after Normalize")
        if rng.random() >= self.prob:
            return image
        image = image.copy()
        for top, left, height, width in self.draw_boxes(*image.shape[1:], rng):
            box = image[:, top : top + height, left : left + width]
            box[:] = self._filling(box.shape, rng)
        return image

    def draw_boxes(self, height, width, rng):
        """Yield (top, left, height, width) in pixels of the rectangles of a `height` x `width` image."""
        count = int(rng.integers(self.count[0], self.count[1] + 1))
        for _ in range(count):
            for _ in range(ATTEMPTS):
                area = height * width * rng.uniform(*self.area) / count
                aspect = math.exp(rng.uniform(*self.log_aspect))
                box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if box_height < height and box_width < width:
                    top = int(rng.integers(0, height - box_height + 1))
                    left = int(rng.integers(0, width - box_width + 1))
                    yield top, left, box_height, box_width
                    break

    def _filling(self, shape, rng):
        if self.mode == "const":
            return 0.0
        return rng.standard_normal(shape if self.mode == "pixel" else (shape[0], 1, 1), dtype=np.float32)


for _transform in (
    Resize,
    CenterCrop,
    RandomCrop,
    RandomResizedCrop,
    RandomHorizontalFlip,
    Transpose,
    Normalize,
    RandomErasing,
):
    TRANSFORMS.register(_transform)
