"""The convolutional stem in C++: what ConvPatchEmbed's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes

import paddle

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, addresses_in, integers, pointers

MAX_STAGES = 8
STAGE_PARAMETERS = ("0.weight", "1.weight", "1.bias", "1._mean", "1._variance")


class Stem(ctypes.Structure):
    _fields_ = [
        *integers("batch", "height", "width", "stages"),
        ("widths", ctypes.c_int64 * (MAX_STAGES + 1)),
        *pointers("images", "positions", "y"),
        *[(name, ctypes.c_void_p * MAX_STAGES) for name in STAGE_PARAMETERS],
    ]


def stem(patch_embed, images, positions):
    """A ConvPatchEmbed in evaluation and the positional encoding: images [B, I, H * p, W * p] -> tokens [B, N, C]

    Args:
        positions: [N, C]
    """
    stages = list(patch_embed.proj)[::2]  # GELU lies between them
    batch, channels, height, width = images.shape
    widths = [channels, *(stage[0].weight.shape[0] for stage in stages)]
    y = paddle.empty([batch, *positions.shape], dtype="float32")
    operator = Stem(batch, height, width, len(stages), tuple(widths), *addresses(images, positions, y))
    for name in STAGE_PARAMETERS:
        getattr(operator, name)[: len(stages)] = [addresses_in(stage, [name])[0] for stage in stages]
    library().run("stem", operator, half=True)
    return y
