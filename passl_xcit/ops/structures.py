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


def parameters_of(layer, names):
    """Parameters and buffers, None for those that the layer does without."""
    listed = dict(layer.named_parameters())  # faster than attributes; one that has two names is listed once
    return [listed[name] if name in listed else attrgetter(name)(layer) for name in names]


def addresses_in(layer, names):
    """Addresses of the same."""
    return addresses(*parameters_of(layer, names))


def addresses(*tensors):
    return [address(tensor) for tensor in tensors]


def address(tensor):
    return None if tensor is None else tensor.data_ptr()
