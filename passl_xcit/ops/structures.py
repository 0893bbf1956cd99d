"""What the native operators' structs (native/operators.h) are made of: sizes, and addresses of tensors."""

import ctypes
from operator import attrgetter

import paddle

NO_TENSORS = (None, None, None)  # x, y and packed of a struct that has none yet


def affine(*layers):
    """Names of the weight and the bias of each."""
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def pointers(*names):
    return [(name, ctypes.c_void_p) for name in names]


def integers(*names):
    return [(name, ctypes.c_int64) for name in names]


def with_tokens(operator, x, y):
    """The operator, a struct with `batch`, `tokens` and `channels`, for x [B, M, C] and y.

    Raises:
        ValueError: x has another shape.
    """
    check_tokens(x, None, operator.channels)
    operator.batch, operator.tokens = x.shape[:2]
    operator.x, operator.y = addresses(x, y)
    return operator


def check_tokens(x, tokens, channels):
    """
    Raises:
        ValueError: x is not [B, tokens, channels]; any number of tokens where that is None.
    """
    if x.ndim != 3 or x.shape[2] != channels or tokens not in (None, x.shape[1]):
        raise ValueError(f"expected tokens [B, {tokens or 'M'}, {channels}], not {list(x.shape)}")


def parameters_of(layer, names):
    """Parameters and buffers, None for those that the layer does without."""
    listed = dict(layer.named_parameters())  # faster than attributes; one that has two names is listed once
    return [listed[name] if name in listed else attrgetter(name)(layer) for name in names]


def is_plain(tensor):
    """Whether C++ may read the tensor's memory as float32 without gaps."""
    return tensor.dtype == paddle.float32 and tensor.place.is_cpu_place() and tensor.is_contiguous()


def addresses(*tensors):
    return [address(tensor) for tensor in tensors]


def address(tensor):
    return None if tensor is None else tensor.data_ptr()
