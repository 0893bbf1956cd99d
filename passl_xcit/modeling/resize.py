"""Images of another size, computed by the model itself and on any device.

Letters: B images, H x W pixels.
"""

import numpy as np
import paddle

from passl_xcit.modeling.layers import constant
from passl_xcit.utils.errors import DataError


def scale_images(images, side, scaling):
    """images [B, in_chans, H, W] -> [B, in_chans, side, side], by one of `SCALINGS`.

    Interpolation is linear and goes axis by axis: two matrix products, which every device has (the Ascend plugin
    has no bicubic kernel).
    """
    height, width = images.shape[2:]
    if not height or not width:
        raise DataError(f"images of {height} x {width} pixels have nothing to look at")
    if height == width == side:
        return images
    rows = constant(SCALINGS[scaling], height, side, dtype=images.dtype)  # [side, H]
    columns = constant(SCALINGS[scaling], width, side, dtype=images.dtype)  # [side, W]
    return paddle.matmul(rows, paddle.matmul(images, columns, transpose_y=True))


def _bicubic_weights(length, out_length):
    """Cubic convolution (Keys 1981) with a = -0.75, edge pixels repeated: torch's and Paddle's "bicubic"."""
    place = (np.arange(out_length) + 0.5) * (length / out_length) - 0.5
    first = np.floor(place).astype(int)
    weights = np.zeros([out_length, length])
    for tap in (-1, 0, 1, 2):
        pixel = np.clip(first + tap, 0, length - 1)
        np.add.at(weights, (np.arange(out_length), pixel), _cubic(np.abs(place - first - tap)))
    return weights


def _cubic(distance, a=-0.75):
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def _bilinear_aligned_weights(length, out_length):
    """Linear interpolation that maps the first pixel to the first and the last to the last."""
    place = np.arange(out_length) * ((length - 1) / max(out_length - 1, 1))
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(length)))


# How much each pixel of a line gives to each pixel of the scaled line: [out_length, length].
SCALINGS = {"bicubic": _bicubic_weights, "bilinear_aligned": _bilinear_aligned_weights}
