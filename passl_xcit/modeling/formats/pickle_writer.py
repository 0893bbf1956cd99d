"""Plain data into a pickle, without the pickle module."""

import struct

import numpy as np

from passl_xcit.utils.arrays import MAX_DIMS
from passl_xcit.utils.pickle_machine import MAX_DEPTH, MAX_KEY, MAX_OPCODES, MAX_VALUES, SCALARS
from passl_xcit.utils.registry import join

MAX_INT_BYTES = 255


class PickleWriter:
    """The opposite of `Machine`; it never uses the memo.

    A subclass has `protocol`, one byte, and the methods `utf8(raw)` and `array(value, path)`, which put a text and an
    array.

    Args:
        write: called with bytes-like objects, piece by piece.
    """

    def __init__(self, write):
        self.write, self.opcodes, self.values = write, 0, 0

    def whole(self, tree):
        """Write dict (keys str or int), list, tuple, str, int, float, bool, None and numpy arrays of these.

        Raises:
            TypeError: a value of another type; the text names its place in the tree.
            ValueError: more values, deeper nesting or a larger integer than would be read.
        """
        self.put(b"\x80", self.protocol)
        self.value(tree, "", 0)
        self.put(b".")

    def put(self, code, argument=b""):
        self.opcodes += 1
        if self.opcodes > MAX_OPCODES:
            raise ValueError(f"more values than {MAX_OPCODES:,} pickle opcodes can hold")
        self.write(code)
        self.write(argument)

    def value(self, value, path, depth):
        self.values += 1
        if self.values > MAX_VALUES:
            raise ValueError(f"more values than the {MAX_VALUES:,} that are read")
        if depth > MAX_DEPTH:
            raise ValueError(f"{path}: nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            self.dict(value, path, depth)
        elif type(value) is list or type(value) is tuple:
            self.sequence(value, path, depth)
        elif type(value) is np.ndarray:
            if value.ndim > MAX_DIMS:
                raise ValueError(f"{path}: an array of more than {MAX_DIMS} axes cannot be stored")
            self.array(value, path)
        elif type(value) in SCALARS or type(value) is str:
            self.scalar(value, path)
        else:
            raise TypeError(f"{path}: a {type(value).__name__} cannot be stored; give an array, a number or text")

    def dict(self, items, path, depth):
        self.put(b"}")
        self.put(b"(")
        for key, value in items.items():
            if type(key) is not str and not (type(key) is int and abs(key) < MAX_KEY):
                raise TypeError(f"{join(path, key)}: a dict key must be text or an integer below {MAX_KEY:,}")
            self.scalar(key, path)
            self.value(value, join(path, key), depth + 1)
        self.put(b"u")

    def sequence(self, items, path, depth):
        if type(items) is list:
            self.put(b"]")
        self.put(b"(")
        for index, item in enumerate(items):
            self.value(item, join(path, index), depth + 1)
        self.put(b"e" if type(items) is list else b"t")

    def scalar(self, value, path):
        if value is None or type(value) is bool:
            self.put({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif type(value) is float:
            self.put(b"G", struct.pack(">d", value))
        elif type(value) is int:
            self.integer(value, path)
        else:
            self.text(value, path)

    def integer(self, value, path):
        if -(2**31) <= value < 2**31:
            return self.put(b"J", struct.pack("<i", value))
        width = value.bit_length() // 8 + 1
        if width > MAX_INT_BYTES:
            raise ValueError(f"{path}: an integer of more than {MAX_INT_BYTES} bytes cannot be stored")
        self.put(b"\x8a", bytes([width]) + value.to_bytes(width, "little", signed=True))

    def text(self, value, path):
        try:
            self.utf8(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise ValueError(f"{path}: {ascii(value)} is not text that UTF-8 can hold") from None

    def global_(self, module, name):
        self.put(b"c", f"{module}\n{name}\n".encode())

    def tuple_of(self, items):
        self.put(b"(")
        for item in items:
            self.scalar(item, "")
        self.put(b"t")
