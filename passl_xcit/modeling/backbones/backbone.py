"""What every backbone can do besides its forward: give inner features, and take another project's maths."""

from typing import get_type_hints

import paddle
from paddle import nn

from passl_xcit.utils.errors import DataError
from passl_xcit.utils.registry import nearest
from passl_xcit.utils.typing_check import describe, fits


class Backbone(nn.Layer):
    """Base of the backbones.

    `MATHS` says in which constructor arguments another project's weights need another function, such as
    {"mindcv": {"act": "gelu_tanh"}}; these arguments are attributes of the same name. `stages` are the names that
    `extract` knows; a subclass defines it in its constructor, and `_extract`.
    """

    MATHS = {}
    HEAD = "SwinTransformerClsHead"  # what `create_model` puts on top
    TRACED_FOR_ANY_SIZE = True  # whether an exported program takes images of another size than it was traced with
    size_divisor = 1  # sides of images are multiples of it
    stages = ()

    @property
    def maths(self):
        """The arguments named in MATHS with their present values."""
        return {name: getattr(self, name) for options in self.MATHS.values() for name in options}

    @property
    def built_maths(self):
        """The same with the values that the constructor got."""
        return getattr(self, "_built_maths", self.maths)

    def set_maths(self, **options):
        """Compute from now on with these values of the arguments named in MATHS.

        Raises:
            ValueError: for another argument, or a value that its constructor would refuse.
        """
        kind = type(self).__name__
        if options and not self.maths:
            raise ValueError(f"{kind} has one way to compute only, no {next(iter(options))!r}")
        hints = get_type_hints(type(self).__init__)
        for name, value in options.items():
            if name not in self.maths:
                raise ValueError(f"{kind} has no other maths named {name!r}{nearest(name, self.maths)}")
            if not fits(value, hints[name]):
                raise ValueError(f"{name} expects {describe(hints[name])}, not {value!r}")
        if options:
            self._built_maths = self.built_maths
            self._set_maths(**{**self.maths, **options})

    def extract(self, images, stage):
        """Features of `images` [B, in_chans, H, W] at `stage`, one of `stages`.

        Raises:
            ValueError: for a stage that is not in `stages`; the text names them.
        """
        if stage not in self.stages:
            raise ValueError(f"{type(self).__name__} has no stage '{stage}'; known: {', '.join(self.stages)}")
        return self._extract(images, stage)

    def check_size(self, height, width):
        """Raise DataError unless the model takes images of so many pixels."""
        check_sides(height, width, self.size_divisor)

    def check_images(self, images):
        """Raise DataError unless `images` are floating-point numbers of shape [B, in_chans, H, W]."""
        if images.ndim != 4:
            raise DataError(f"images have the shape {list(images.shape)}, expected [batch, channels, height, width]")
        if not paddle.is_floating_point(images):
            raise DataError(f"images hold {_short_type(images)}, expected float32 after normalisation")
        if images.shape[1] != self.in_chans:
            raise DataError(f"images have {images.shape[1]} channels, but the model's in_chans is {self.in_chans}")


def check_sides(height, width, divisor):
    """Raise DataError unless both sides are multiples of `divisor`, the side of a patch, and not 0."""
    if height % divisor or width % divisor or not height or not width:
        raise DataError(
            f"images of {height} x {width} pixels do not divide into patches of {divisor}: "
            f"let CenterCrop or Resize make both sides multiples of {divisor}"
        )


def _short_type(tensor):
    return str(tensor.dtype).rpartition(".")[2]
