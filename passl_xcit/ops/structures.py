"""What the native operators' structs (native/operators.h) are made of: sizes, and addresses of tensors."""

import ctypes
from operator import attrgetter


def affine(*layers):
    """Names of the weight and the bias of each."""
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def pointers(*names):
    return [(name, ctypes.c_void_p) for name in names]


def integers(*names):
    return [(name, ctypes.c_int64) for name in names]


def addresses_in(layer, names):
    """Addresses of parameters and buffers, None for those that the layer does without."""
    return [address(attrgetter(name)(layer)) for name in names]


def addresses(*tensors):
    return [address(tensor) for tensor in tensors]


def address(tensor):
    return None if tensor is None else tensor.data_ptr()
