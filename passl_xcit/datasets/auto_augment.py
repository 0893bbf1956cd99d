"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719), as timm reads it from strings like 'rand-m9-mstd0.5-inc1'.

Levels, ranges and the two sets of operations are those of timm/data/auto_augment.py. An operation is a pure
function of the image and a level; a level is 0 to 10 (more with 'mmax'), and negative for the other direction.
"""

import re
from functools import partial
from typing import Callable, NamedTuple, Sequence, get_type_hints

from PIL import Image, ImageEnhance, ImageOps

from passl_xcit.datasets.transforms import pil_interpolation, require, require_pil, require_probability
from passl_xcit.utils.registry import TRANSFORMS

IMAGENET_MEAN = (123.675, 116.28, 103.53)
FULL_LEVEL = 10


def _affine(image, matrix, warp):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **warp)


def rotate(image, level, warp):
    """Up to 30 degrees, counter-clockwise for positive levels."""
    return image.rotate(level / FULL_LEVEL * 30, **warp)


def shear_x(image, level, warp):
    """Rows move by up to 0.3 of their y."""
    return _affine(image, (1, level / FULL_LEVEL * 0.3, 0, 0, 1, 0), warp)


def shear_y(image, level, warp):
    """Columns move by up to 0.3 of their x."""
    return _affine(image, (1, 0, 0, level / FULL_LEVEL * 0.3, 1, 0), warp)


def translate_x(image, level, warp):
    """Up to 0.45 of the width, to the left for positive levels."""
    return _affine(image, (1, 0, level / FULL_LEVEL * 0.45 * image.width, 0, 1, 0), warp)


def translate_y(image, level, warp):
    """Up to 0.45 of the height, upwards for positive levels."""
    return _affine(image, (1, 0, 0, 0, 1, level / FULL_LEVEL * 0.45 * image.height), warp)


def auto_contrast(image, level, warp):
    """Stretch each channel to 0..255."""
    return ImageOps.autocontrast(image)


def equalize(image, level, warp):
    """Flatten each channel's histogram."""
    return ImageOps.equalize(image)


def invert(image, level, warp):
    """255 - value."""
    return ImageOps.invert(image)


def _map_values(image, table):
    return image.point(table * len(image.getbands()))


def _keep_bits(image, bits):
    # Not ImageOps.posterize: level 10 keeps 0 bits, which is black up to Pillow 11 and an error in Pillow 13.
    dropped = 8 - max(bits, 0)
    return _map_values(image, [value >> dropped << dropped for value in range(256)])


def posterize(image, level, warp):
    """Keep 0 to 4 bits of each value: the higher the level, the more."""
    return _keep_bits(image, int(level / FULL_LEVEL * 4))


def posterize_increasing(image, level, warp):
    """Keep 4 to 0 bits of each value: the higher the level, the fewer."""
    return _keep_bits(image, 4 - int(level / FULL_LEVEL * 4))


def solarize(image, level, warp):
    """Invert the values from 256 * level / 10 on: the higher the level, the fewer."""
    return ImageOps.solarize(image, int(level / FULL_LEVEL * 256))


def solarize_increasing(image, level, warp):
    """Invert the values from 256 - 256 * level / 10 on: the higher the level, the more."""
    return ImageOps.solarize(image, 256 - int(level / FULL_LEVEL * 256))


def solarize_add(image, level, warp):
    """Add up to 110 (128 beyond level 10) to the values below 128."""
    add = min(128, int(level / FULL_LEVEL * 110))
    return _map_values(image, [min(255, value + add) if value < 128 else value for value in range(256)])


def enhance(enhancer, image, level, warp):
    """PIL's enhancement by 0.1 (level 0) to 1.9 (level 10); 1.0, at level 5, changes nothing."""
    return enhancer(image).enhance(level / FULL_LEVEL * 1.8 + 0.1)


def enhance_increasing(enhancer, image, level, warp):
    """PIL's enhancement by 1 +- 0.9 (level +-10); level 0 changes nothing."""
    return enhancer(image).enhance(max(0.1, 1 + level / FULL_LEVEL * 0.9))


class Op(NamedTuple):
    """`apply(image, level, warp)`; `warp` holds PIL's `resample` and `fillcolor` for the operations that move pixels.

    `signed`: the level becomes negative with probability 1/2.
    """

    apply: Callable
    signed: bool = False


def _ops(posterize, solarize, enhance, enhance_signed):
    """The 15 operations, in timm's order."""
    return {
        "AutoContrast": Op(auto_contrast),
        "Equalize": Op(equalize),
        "Invert": Op(invert),
        "Rotate": Op(rotate, signed=True),
        "Posterize": Op(posterize),
        "Solarize": Op(solarize),
        "SolarizeAdd": Op(solarize_add),
        "Color": Op(partial(enhance, ImageEnhance.Color), enhance_signed),
        "Contrast": Op(partial(enhance, ImageEnhance.Contrast), enhance_signed),
        "Brightness": Op(partial(enhance, ImageEnhance.Brightness), enhance_signed),
        "Sharpness": Op(partial(enhance, ImageEnhance.Sharpness), enhance_signed),
        "ShearX": Op(shear_x, signed=True),
        "ShearY": Op(shear_y, signed=True),
        "TranslateXRel": Op(translate_x, signed=True),
        "TranslateYRel": Op(translate_y, signed=True),
    }


PLAIN_OPS = _ops(posterize, solarize, enhance, enhance_signed=False)
INCREASING_OPS = _ops(posterize_increasing, solarize_increasing, enhance_increasing, enhance_signed=True)


class RandPolicy(NamedTuple):
    """What a 'rand-...' string says; the defaults are timm's.

    m: mean level. n: operations drawn for an image. p: probability that a drawn one is applied.
    mstd: standard deviation of the level; above 100, the level is uniform from 0 to m.
    mmax: largest level. inc: 1 for the set of operations that all do more at higher levels.
    """

    m: int = 10
    n: int = 2
    p: float = 0.5
    mstd: float = 0.0
    mmax: int = 10
    inc: int = 0

    @classmethod
    def parse(cls, text):
        """Read a string like 'rand-m9-mstd0.5-inc1'; ValueError that names the section it cannot read."""
        first, *sections = text.split("-")
        require(first == "rand", "config_str", text, "RandAugment's form, like 'rand-m9-mstd0.5-inc1'")
        values = [cls._parse_section(section, text) for section in sections]
        require(len(dict(values)) == len(values), "config_str", text, "each key once")
        policy = cls(**dict(values))
        require(policy.n > 0 and policy.mmax > 0, "config_str", text, "n and mmax above 0")
        require_probability(f"p in config_str {text!r}", policy.p)
        require(policy.inc in (0, 1), "config_str", text, "inc0 or inc1")
        return policy

    @classmethod
    def _parse_section(cls, section, text):
        kinds = get_type_hints(cls)
        key, number = re.fullmatch(r"(\D*)(.*)", section).groups()
        if key not in kinds:
            raise ValueError(f"config_str {text!r} has no key {key!r} ({section!r}); known: {', '.join(kinds)}")
        try:
            return key, kinds[key](number)
        except ValueError:
            wanted = "a whole number" if kinds[key] is int else "a number"
            raise ValueError(f"config_str {text!r}: {key!r} needs {wanted} after it, not {number!r}") from None


class AutoAugment:
    """RandAugment: n times, draw one of 15 operations, and apply it with probability p at a random level.

    Args:
        config_str: 'rand' and sections joined by '-': m (level, 10), n (operations, 2), p (probability, 0.5),
            mstd (deviation of the level, 0), mmax (largest level, 10), inc1 (the increasing set).
        interpolation: nearest, bilinear or bicubic, for the operations that move pixels.
        img_size: taken because PASSL's files give it; no operation of RandAugment depends on it.
        mean: colour of pixels moved in from outside, 0 to 255; three values, or one for grey images.
    """

    draws = True

    def __init__(
        self,
        config_str: str,
        interpolation: str = "bicubic",
        img_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
    ):
        require(img_size > 0, "img_size", img_size, "a number of pixels above 0")
        self.policy = RandPolicy.parse(config_str)
        self.ops = list((INCREASING_OPS if self.policy.inc else PLAIN_OPS).values())
        self.filter = pil_interpolation(interpolation, known=("nearest", "bilinear", "bicubic"))
        self.fill = _fill_colours(mean)

    def __call__(self, image, rng):
        require_pil(image, self)
        warp = {"resample": self.filter, "fillcolor": self.fill[image.mode]}
        for _ in range(self.policy.n):
            op = self.ops[rng.integers(0, len(self.ops))]
            if rng.random() < self.policy.p:
                image = op.apply(image, self._draw_level(op, rng), warp)
        return image

    def _draw_level(self, op, rng):
        policy = self.policy
        level = rng.uniform(0, policy.m) if policy.mstd > 100 else rng.normal(policy.m, policy.mstd)
        level = min(max(level, 0.0), policy.mmax)
        return -level if op.signed and rng.random() >= 0.5 else level


def _fill_colours(mean):
    """{mode: pixel value}; a grey image gets the luma of an RGB mean."""
    require(len(mean) in (1, 3) and min(mean) >= 0 and max(mean) <= 255, "mean", mean, "1 or 3 values from 0 to 255")
    require(max(mean) == 0 or max(mean) > 1, "mean", mean, "values on the 0 to 255 scale of Normalize, not 0 to 1")
    colour = tuple(round(value) for value in mean) * (3 // len(mean))
    return {"RGB": colour, "L": Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))}


TRANSFORMS.register(AutoAugment)
