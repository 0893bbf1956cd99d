"""Weights and inputs that any framework can make again from names and formulas, so that parity needs no download.

Every tensor is drawn from a seed made of its own name in the official release (torch's layout), and only
NumPy is needed, so PyTorch and Paddle get the same numbers without sharing a file.
"""

import math
import zlib

import numpy as np

_ABOUT_ONE = ("temperature", "gamma1", "gamma2", "gamma3", "running_var")


def fill_by_name(shapes, layer_scale=1.0):
    """Weights for `shapes`, {official name: shape}, as {official name: float64 array}.

    Matrices and kernels have the standard deviation 1/sqrt(fan in): at 0.02 an evaluated BatchNorm stem passes
    on hardly anything of the image. Biases and means are 0.1 normal; what multiplies (norm weights, running
    variances, temperatures, LayerScale times `layer_scale`) is 1 + 0.1 normal.
    """
    return {name: _draw(name, tuple(shape), layer_scale) for name, shape in shapes.items()}


def _draw(name, shape, layer_scale):
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last in _ABOUT_ONE or (last == "weight" and len(shape) == 1):
        return (layer_scale if last.startswith("gamma") else 1.0) * np.abs(1 + 0.1 * normal)
    fan_in = math.prod(shape[1:])
    return normal / math.sqrt(fan_in) if len(shape) > 1 else 0.1 * normal


def formula_images(batch, height, width, channels=3):
    """[batch, channels, height, width] float64 in [-2, 2]: waves whose direction tells images and channels apart."""
    b, c, y, x = np.indices((batch, channels, height, width), dtype="float64")
    return np.sin((0.9 + 0.3 * b) * x + 0.2 * c * y) + np.cos((0.7 + 0.2 * c) * y - 0.1 * (b + 1) * x)


def fill_paddle(shapes, layer_scale=1.0):
    """The same weights for a Paddle model: {name in its state dict: shape} -> {that name: float64 array}."""
    official = {official_name(name): shape[::-1] if len(shape) == 2 else shape for name, shape in shapes.items()}
    return paddle_layout(fill_by_name(official, layer_scale))


def paddle_layout(official):
    """{official name: array} in torch's layout -> the same under Paddle's names and in Paddle's layout.

    Two-dimensional tensors are Linear weights, [out, in] -> [in, out]; BatchNorm's buffers change their names.
    """
    return {paddle_name(name): value.T if value.ndim == 2 else value for name, value in official.items()}


def paddle_name(name):
    """`...running_mean` -> `..._mean`, `...running_var` -> `..._variance`; other names are the same."""
    return name.replace(".running_mean", "._mean").replace(".running_var", "._variance")


def official_name(name):
    """The inverse of `paddle_name`."""
    return name.replace("._mean", ".running_mean").replace("._variance", ".running_var")
