"""What stands for numpy's names in a pickle: the `__reduce__` of its arrays, dtypes and scalars, numpy 1.x and 2.x.

And what Python's own bytes and OrderedDicts name, which are in the files of every framework.
"""

from passl_xcit.utils.arrays import DTYPES, array_of_bytes
from passl_xcit.utils.pickle_machine import Function, StandIn
from passl_xcit.utils.refusals import short


class DType(StandIn):
    """A numpy dtype; its state says again what its code said."""

    def __init__(self, code):
        self.code = code

    def set_state(self, machine, state):
        if type(state) is not tuple:
            raise machine.unwanted("sets the state of an object to something that is not a tuple")
        if state[1:2] == (">",):
            raise machine.unwanted("holds big-endian arrays")
        if state != (3, DTYPES[self.code].str[0], None, None, None, -1, -1, 0):
            raise machine.unwanted("has a dtype with fields, metadata or another byte order")


class Array(StandIn):
    """An array or numpy scalar: most pickles create an array empty and fill it by its state."""

    def __init__(self, array=None):
        self.array = array

    def set_state(self, machine, state):
        if self.array is not None:
            raise machine.unwanted("sets the state of something that is not a new object")
        if type(state) is not tuple or len(state) != 5 or state[0] != 1 or type(state[3]) is not bool:
            raise machine.unwanted("has an array in an unusual form")
        _, shape, dtype, fortran, raw = state
        self.array = _array(machine, raw, dtype, shape, "F" if fortran else "C")

    def plain(self, machine, depth):
        if self.array is None:
            return super().plain(machine, depth)
        machine.spend(self.array.nbytes)
        return self.array


def _array(machine, raw, dtype, shape, order):
    if type(dtype) is not DType or type(raw) not in (memoryview, bytes):
        raise machine.unwanted("has an array whose dtype or bytes are something else")
    machine.spend(len(raw))
    return array_of_bytes(raw, dtype.code, shape, machine.name, order)


def _make_dtype(machine, arguments):
    """`dtype("f4", False, True)`"""
    if len(arguments) != 3 or arguments[1:] != (False, True) or type(arguments[0]) is not str:
        raise machine.unwanted("makes a dtype with unusual arguments")
    if arguments[0] not in DTYPES:
        raise machine.unwanted(f"holds an array of type {short(arguments[0])}")
    return DType(arguments[0])


def _make_empty_array(machine, arguments):
    """`_reconstruct(ndarray, (0,), b"b")`"""
    if len(arguments) != 3 or arguments[0] is not _NDARRAY or arguments[1:] != ((0,), b"b"):
        raise machine.unwanted("makes an array with unusual arguments")
    return Array()


def _make_array(machine, arguments):
    """`_frombuffer(raw, dtype, shape, order[, axis_order])`, which protocol 5 uses."""
    if len(arguments) not in (4, 5) or arguments[3] not in ("C", "F", "K"):
        raise machine.unwanted("makes an array with unusual arguments")
    raw, dtype, shape, order, *axes = arguments
    if order != "K":
        return Array(_array(machine, raw, dtype, shape, order))
    array = _array(machine, raw, dtype, shape, "C")
    if not axes or type(axes[0]) is not tuple or not all(type(axis) is int for axis in axes[0]):
        raise machine.unwanted("makes an array with unusual arguments")
    if sorted(axes[0]) != list(range(array.ndim)):
        raise machine.damaged("has an array whose axes are not a permutation")
    return Array(array.transpose(axes[0]))


def _make_scalar(machine, arguments):
    if len(arguments) != 2:
        raise machine.unwanted("makes a number with unusual arguments")
    return Array(_array(machine, arguments[1], arguments[0], (), "C")[()])


def _make_bytes(machine, arguments):
    """`_codecs.encode(text, "latin1")`, the form that bytes take in protocol 2."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise machine.unwanted("encodes text by another codec than latin1")
    machine.spend(len(arguments[0]))
    try:
        return arguments[0].encode("latin1")
    except UnicodeEncodeError:
        raise machine.damaged("has bytes that are not latin1 text") from None


def _make_empty(make):
    """The stand-in of a class that may be called without arguments only."""

    def checked(machine, arguments):
        if arguments != ():
            raise machine.unwanted("makes an OrderedDict or bytes with arguments")
        return make()

    return Function(checked)


_NDARRAY = StandIn()
_RECONSTRUCT, _SCALAR, _FROMBUFFER = Function(_make_empty_array), Function(_make_scalar), Function(_make_array)

NAMES = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Function(_make_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("_codecs", "encode"): Function(_make_bytes),
    ("builtins", "bytes"): _make_empty(bytes),
    ("__builtin__", "bytes"): _make_empty(bytes),
    ("collections", "OrderedDict"): _make_empty(dict),
}
