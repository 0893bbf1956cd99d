"""Paddle's weight files and checkpoints: pickles of protocol 2 to 5, in the forms of `paddle/framework/io.py`."""

import struct

import numpy as np

from passl_xcit.modeling.formats.pickle_writer import PickleWriter
from passl_xcit.utils import numpy_pickle
from passl_xcit.utils.arrays import DTYPES, code_of
from passl_xcit.utils.pickle_machine import Function, Machine

_NOT_IN_PADDLE = ("u4", "u8")
_CALL_EVAL = (
    "asks to call builtins.eval, as a saved DenseTensor (or an attack) does; if you trust the file, save its values "
    "as Tensors: paddle.save({k: paddle.to_tensor(numpy.array(v)) for k, v in state.items()}, path)"
)


def read(data, name):
    """The plain object that a pickle of protocol 2 to 5 holds.

    Args:
        data: the bytes of the whole file.
        name: what error messages call it.

    Returns:
        dict (keys str or int; an OrderedDict too), list, tuple, str, bytes, int, float, bool, None, and numpy
        arrays and scalars. An array is writable and owns its memory.

    Raises:
        CheckpointError: the bytes are damaged, or ask for anything but such data.
    """
    return _PaddleMachine(data, name).load()


def dump(tree, write):
    """Pass `tree` to `write`, piece by piece, as a pickle of protocol 4 that `paddle.load` and `read` read.

    The bytes depend on the values only, not on which objects are shared. The names of numpy 1.x are used, which
    numpy 2.x knows as well.

    Args:
        tree: dict (keys str or int), list, tuple, str, int, float, bool, None and numpy arrays of these.
        write: called with bytes-like objects.

    Raises: as `PickleWriter.whole`.
    """
    _PaddleWriter(write).whole(tree)


def _make_tuple(machine, arguments):
    """`tuple((name, array))`, the form that Paddle gives a Tensor."""
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise machine.unwanted("makes a tuple of something that is not a tuple")
    return arguments[0]


class _PaddleMachine(Machine):
    names = {
        **numpy_pickle.NAMES,
        ("builtins", "tuple"): Function(_make_tuple),
        ("__builtin__", "tuple"): Function(_make_tuple),
    }
    refusals = {("builtins", "eval"): _CALL_EVAL, ("__builtin__", "eval"): _CALL_EVAL}


class _PaddleWriter(PickleWriter):
    protocol = b"\x04"

    def utf8(self, raw):
        self.put(b"\x8d", struct.pack("<Q", len(raw)) + raw)

    def array(self, value, path):
        code = code_of(value.dtype)
        if code is None or code in _NOT_IN_PADDLE:
            raise TypeError(f"{path}: an array of type {value.dtype} cannot be stored; paddle.load would not read it")
        fortran = value.flags.fnc
        self.empty_array()
        self.put(b"(")
        self.integer(1, path)
        self.tuple_of(value.shape)
        self.dtype(code)
        self.put(b"\x88" if fortran else b"\x89")
        raw = np.ascontiguousarray(value.T if fortran else value).reshape(-1).view(np.uint8)
        self.put(b"\x8e", struct.pack("<Q", raw.size))
        self.write(raw.data)
        self.put(b"t")
        self.put(b"b")

    def empty_array(self):
        """`_reconstruct(ndarray, (0,), b"b")`"""
        self.global_("numpy.core.multiarray", "_reconstruct")
        self.global_("numpy", "ndarray")
        self.put(b"K", b"\0")
        self.put(b"\x85")
        self.put(b"C", b"\x01b")
        self.put(b"\x87")
        self.put(b"R")

    def dtype(self, code):
        """`dtype(code, False, True)` with its state `(3, byte order, None, None, None, -1, -1, 0)`"""
        self.global_("numpy", "dtype")
        self.tuple_of((code, False, True))
        self.put(b"R")
        self.tuple_of((3, DTYPES[code].str[0], None, None, None, -1, -1, 0))
        self.put(b"b")
