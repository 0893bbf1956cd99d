"""Arrays out of raw little-endian bytes, for every format: the sizes a file claims are checked first."""

from math import prod

import numpy as np

from passl_xcit.utils.refusals import damaged, unwanted

MAX_DIMS = 8
MAX_SIZE = 2**40
BFLOAT16 = "bfloat16"
DTYPES = {code: np.dtype(code) for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}


def code_of(dtype):
    """The key of a numpy dtype in `DTYPES`; None for any other dtype, a big-endian one too."""
    code = dtype.str[1:]
    return code if DTYPES.get(code) == dtype else None


def check_shape(shape, name):
    """CheckpointError unless `shape` is a tuple of sizes that an array can have."""
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise unwanted(name, "has an array whose shape is not made of sizes")
    # Sizes beside a zero count as well: numpy cannot make an array of shape (0, 2**62).
    if len(shape) > MAX_DIMS or prod(size or 1 for size in shape) > MAX_SIZE:
        raise unwanted(name, f"has an array of more than {MAX_DIMS} axes or 2**40 numbers")


def stored_dtype(code):
    """The numpy dtype of the bytes of a type: a key of `DTYPES`, or BFLOAT16, whose bits are read as uint16."""
    return DTYPES["u2" if code == BFLOAT16 else code]


def array_of_bytes(raw, code, shape, name, order="C"):
    """A writable array from exactly as many bytes as `shape` and the type `code` say.

    A bytearray is taken over; other bytes are copied.
    """
    check_shape(shape, name)
    dtype = stored_dtype(code)
    if prod(shape) * dtype.itemsize != len(raw):
        raise damaged(name, f"has an array of shape {shape} and type {dtype} in {len(raw)} bytes")
    view = np.ndarray(shape, dtype, buffer=raw, order=order)
    return own_array(view, code, name, order, copy=type(raw) is not bytearray)


def own_array(view, code, name, order="C", copy=True):
    """`view`, or a copy in memory order `order`; bfloat16, which numpy has not, becomes the equal float32."""
    if code == BFLOAT16:
        bits = np.empty(view.shape, "u4", order)
        return np.left_shift(view, 16, dtype="u4", out=bits).view("f4")
    if view.dtype == bool and view.view(np.uint8).max(initial=0) > 1:
        raise damaged(name, "has a bool array with values that are neither 0 nor 1")
    return view.copy(order) if copy else view
