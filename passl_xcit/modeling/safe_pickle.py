"""Plain data in and out of pickle files, without the pickle module.

`pickle.load` calls whatever a file names. Here a file's opcodes move plain values about on a stack and nothing
else: the few globals that weight files need are inert tokens, and "calling" one runs a function of this module
that checks every argument. Nothing is imported, looked up or called by a name from the file.

The opcodes are those of Python's `pickletools`; what numpy puts into a file is the `__reduce__` of its arrays,
dtypes and scalars (numpy 1.x and 2.x); what Paddle adds is in `paddle/framework/io.py`.
"""

import struct
from math import prod

import numpy as np

from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.registry import join

MAX_OPCODES = 1_000_000
MAX_DEPTH = 16
MAX_DIMS = 8
# Among wider integers a file could choose keys that all collide in the dictionary.
MAX_KEY = 2**24
MAX_INT_BYTES = 255

DTYPES = {code: np.dtype(code) for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}

_SCALARS = (int, float, bool, type(None))
_CALL_EVAL = (
    "asks to call builtins.eval, as a saved DenseTensor (or an attack) does; if you trust the file, save its values "
    "as Tensors: paddle.save({k: paddle.to_tensor(numpy.array(v)) for k, v in state.items()}, path)"
)


def loads(data, name):
    """The plain object that a pickle of protocol 2 to 5 holds.

    Args:
        data: the bytes of the whole file.
        name: what error messages call it.

    Returns:
        dict (keys str or int; an OrderedDict too), list, tuple, str, bytes, int, float, bool, None, and numpy
        arrays and scalars of the types in `DTYPES`. An array is writable and owns its memory.

    Raises:
        CheckpointError: the bytes are damaged, or ask for anything but such data.
    """
    return _Machine(data, name).run()


def dump(tree, write):
    """Pass `tree` to `write`, piece by piece, as a pickle of protocol 4 that `paddle.load` and `loads` read.

    The bytes depend on the values only, not on which objects are shared. The names of numpy 1.x are used, which
    numpy 2.x knows as well.

    Args:
        tree: dict (keys str or int), list, tuple, str, int, float, bool, None and numpy arrays of these.
        write: called with bytes-like objects.

    Raises:
        TypeError: a value of another type; the text names its place in the tree.
        ValueError: more values, deeper nesting or a larger integer than `loads` would accept.
    """
    writer = _Writer(write)
    writer.put(b"\x80", b"\x04")
    writer.value(tree, "", 0)
    writer.put(b".")


class _Global:
    """The inert stand-in for an importable name; `make(machine, arguments)` is what calling it does."""

    def __init__(self, make=None):
        self.make = make


class _DType:
    """A dtype on the stack. Not np.dtype itself, which takes part in comparisons with anything."""

    def __init__(self, dtype):
        self.dtype = dtype


class _Array:
    """An array or numpy scalar on the stack: most pickles create an array empty and fill it with BUILD."""

    def __init__(self, array=None):
        self.array = array


class _Machine:
    """The stack, marks and memo of one pickle; each opcode is a method in the table `_OPERATIONS`."""

    def __init__(self, data, name):
        self.data, self.name = memoryview(data), name
        self.position = self.frame_end = 0
        self.stack, self.marks, self.memo = [], [], {}
        self.items = 0
        # Memoised bytes can be copied out again and again, so that a small file could fill the memory.
        self.budget = 8 * len(data) + 2**24

    def run(self):
        if self.take(1) != b"\x80" or self.take(1)[0] not in (2, 3, 4, 5):
            raise self.error("is not a pickle of protocol 2 to 5", "save it again with paddle.save")
        for _ in range(MAX_OPCODES):
            code = self.take(1)[0]
            if code == ord("."):
                return self.result()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self.unwanted(f"uses the pickle opcode {bytes([code])!r}")
            operation(self)
        raise self.unwanted(f"has more than {MAX_OPCODES:,} pickle opcodes")

    def result(self):
        if len(self.stack) != 1 or self.marks:
            raise self.damaged("does not leave exactly one object")
        if self.position != len(self.data):
            raise self.damaged(f"has {len(self.data) - self.position} bytes after its end")
        return self.plain(self.stack[0], 0)

    def plain(self, value, depth):
        """A copy of `value` without stand-ins; what the file shared or nested in itself is bounded here."""
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_OPCODES:
            raise self.unwanted(f"nests deeper than {MAX_DEPTH} or has over {MAX_OPCODES:,} values")
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind is dict:
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if kind is list or kind is tuple:
            return kind([self.plain(item, depth + 1) for item in value])
        if kind is _Array and value.array is not None:
            self.spend(value.array.nbytes)
            return value.array
        if kind is memoryview or kind is bytes or kind is str:
            self.spend(len(value))
            return bytes(value) if kind is memoryview else value
        raise self.unwanted("holds a class, a function or an array without data")

    def error(self, reason, hint):
        return CheckpointError(f"{self.name}: {reason}; {hint}")

    def damaged(self, reason):
        return self.error(reason, "the file is damaged: copy or download it again")

    def unwanted(self, reason):
        return self.error(reason, "only plain arrays, numbers and text are read; if you trust it, save those alone")

    def spend(self, count):
        self.budget -= count
        if self.budget < 0:
            raise self.unwanted("unpacks to many times its own size")

    def take(self, count):
        """The next `count` bytes, not copied."""
        start, end = self.position, self.position + count
        if end > len(self.data):
            raise self.damaged(f"is cut short: {count} bytes wanted at byte {start}, {len(self.data) - start} left")
        if start < self.frame_end < end:
            raise self.damaged(f"has an item at byte {start} that crosses the end of its frame")
        self.position = end
        return self.data[start:end]

    def unsigned(self, width):
        return int.from_bytes(self.take(width), "little")

    def frame(self):
        length = self.unsigned(8)
        if self.position < self.frame_end or length > len(self.data) - self.position:
            raise self.damaged("has a frame that is longer than what is left of the file or the outer frame")
        self.frame_end = self.position + length

    def push(self, value):
        self.stack.append(value)

    def top(self):
        self.need(1)
        return self.stack[-1]

    def need(self, count):
        if len(self.stack) < count:
            raise self.damaged("takes more off the stack than was put there")

    def mark(self):
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self):
        if not self.marks:
            raise self.damaged("closes a list, tuple or dict that was not opened")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, count):
        self.need(count)
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def int_(self, width, signed):
        self.push(int.from_bytes(self.take(width), "little", signed=signed))

    def float_(self):
        self.push(struct.unpack(">d", self.take(8))[0])

    def text(self, width):
        self.push(self.decode(self.take(self.unsigned(width))))

    def decode(self, raw):
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self.damaged("has a text that is not UTF-8") from None

    def raw(self, width):
        self.push(self.take(self.unsigned(width)))

    def append(self, items):
        target = self.top()
        if type(target) is not list:
            raise self.damaged("appends to something that is not a list")
        target.extend(items)

    def set_items(self, items):
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            raise self.damaged("sets items of something that is not a dict, or a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is not str and not (type(key) is int and abs(key) < MAX_KEY):
                raise self.unwanted("has a dict key that is neither text nor a small integer")
            if key in target:
                raise self.damaged(f"has the key {_short(key)} twice in one dict")
            target[key] = value

    def put(self, index):
        if index >= MAX_OPCODES:
            raise self.damaged(f"numbers an object {index}")
        self.memo[index] = self.top()

    def get(self, index):
        if index not in self.memo:
            raise self.damaged(f"refers to object {index}, which is not in it")
        self.push(self.memo[index])

    def global_line(self):
        """Two lines of text: a module and a name in it."""
        names = []
        for _ in range(2):
            line, found, _ = bytes(self.data[self.position : self.position + 256]).partition(b"\n")
            if not found:
                raise self.damaged("names a global without an end of line")
            names.append(self.decode(self.take(len(line) + 1)[:-1]))
        self.global_(*names)

    def global_(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise self.damaged("names a global by something that is not text")
        if name == "eval" and module in ("builtins", "__builtin__"):
            raise CheckpointError(f"{self.name}: {_CALL_EVAL}")
        if (module, name) not in _GLOBALS:
            raise self.unwanted(f"asks for {_short(f'{module}.{name}')}, which is not plain data")
        self.push(_GLOBALS[module, name])

    def reduce(self):
        function, arguments = self.pop(2)
        if type(function) is not _Global or function.make is None or type(arguments) is not tuple:
            raise self.unwanted("calls something that is not a constructor of plain data")
        self.push(function.make(self, arguments))

    def build(self):
        target, state = self.pop(2)
        self.push(target)
        if type(state) is not tuple:
            raise self.unwanted("sets the state of an object to something that is not a tuple")
        if type(target) is _DType:
            self.check_byte_order(target.dtype, state)
        elif type(target) is _Array and target.array is None:
            self.fill(target, state)
        else:
            raise self.unwanted("sets the state of something that is not a new array")

    def fill(self, target, state):
        if len(state) != 5 or state[0] != 1 or type(state[3]) is not bool:
            raise self.unwanted("has an array in an unusual form")
        _, shape, dtype, fortran, raw = state
        target.array = self.array(raw, dtype, shape, "F" if fortran else "C")

    def check_byte_order(self, dtype, state):
        if state[1:2] == (">",):
            raise self.unwanted("holds big-endian arrays")
        if state != (3, dtype.str[0], None, None, None, -1, -1, 0):
            raise self.unwanted("has a dtype with fields, metadata or another byte order")

    def array(self, raw, dtype, shape, order):
        """A writable array of its own; `raw` must hold exactly as many bytes as `shape` and `dtype` say."""
        if type(dtype) is not _DType or type(raw) not in (memoryview, bytes):
            raise self.unwanted("has an array whose dtype or bytes are something else")
        if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
            raise self.unwanted("has an array whose shape is not made of sizes")
        # Sizes beside a zero count as well: numpy cannot make an array of shape (0, 2**62).
        if len(shape) > MAX_DIMS or prod(size or 1 for size in shape) > 2**40:
            raise self.unwanted(f"has an array of more than {MAX_DIMS} axes or 2**40 numbers")
        if prod(shape) * dtype.dtype.itemsize != len(raw):
            raise self.damaged(f"has an array of shape {shape} and type {dtype.dtype} in {len(raw)} bytes")
        self.spend(len(raw))
        array = np.ndarray(shape, dtype.dtype, buffer=raw, order=order).copy(order="K")
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise self.damaged("has a bool array with values that are neither 0 nor 1")
        return array

    def make_dtype(self, arguments):
        if len(arguments) != 3 or arguments[1:] != (False, True) or type(arguments[0]) is not str:
            raise self.unwanted("makes a dtype with unusual arguments")
        if arguments[0] not in DTYPES:
            raise self.unwanted(f"holds an array of type {_short(arguments[0])}")
        return _DType(DTYPES[arguments[0]])

    def make_empty_array(self, arguments):
        if len(arguments) != 3 or arguments[0] is not _NDARRAY or arguments[1:] != ((0,), b"b"):
            raise self.unwanted("makes an array with unusual arguments")
        return _Array()

    def make_array(self, arguments):
        """`numpy._frombuffer(raw, dtype, shape, order[, axis_order])`, which protocol 5 uses."""
        if len(arguments) not in (4, 5) or type(arguments[3]) is not str or arguments[3] not in ("C", "F", "K"):
            raise self.unwanted("makes an array with unusual arguments")
        raw, dtype, shape, order, *axes = arguments
        if order != "K":
            return _Array(self.array(raw, dtype, shape, order))
        array = self.array(raw, dtype, shape, "C")
        if not axes or type(axes[0]) is not tuple or not all(type(axis) is int for axis in axes[0]):
            raise self.unwanted("makes an array with unusual arguments")
        if sorted(axes[0]) != list(range(array.ndim)):
            raise self.damaged("has an array whose axes are not a permutation")
        return _Array(array.transpose(axes[0]))

    def make_scalar(self, arguments):
        if len(arguments) != 2:
            raise self.unwanted("makes a number with unusual arguments")
        return _Array(self.array(arguments[1], arguments[0], (), "C")[()])

    def make_bytes(self, arguments):
        """`_codecs.encode(text, 'latin1')`, the form that bytes take in protocol 2."""
        if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
            raise self.unwanted("encodes text by another codec than latin1")
        self.spend(len(arguments[0]))
        try:
            return arguments[0].encode("latin1")
        except UnicodeEncodeError:
            raise self.damaged("has bytes that are not latin1 text") from None

    def make_empty(self, arguments, empty):
        if arguments != ():
            raise self.unwanted("makes an OrderedDict or bytes with arguments")
        return empty

    def make_tuple(self, arguments):
        """`tuple((name, array))`, the form that Paddle gives a Tensor."""
        if len(arguments) != 1 or type(arguments[0]) is not tuple:
            raise self.unwanted("makes a tuple of something that is not a tuple")
        return arguments[0]


def _short(name):
    """`name` from a file, fit for one line of an error message."""
    text = ascii(name)
    return text if len(text) <= 80 else text[:80] + "..."


_NDARRAY = _Global()
_RECONSTRUCT, _SCALAR = _Global(_Machine.make_empty_array), _Global(_Machine.make_scalar)
_FROMBUFFER, _TUPLE = _Global(_Machine.make_array), _Global(_Machine.make_tuple)
_BYTES = _Global(lambda machine, arguments: machine.make_empty(arguments, b""))

_GLOBALS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global(_Machine.make_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("_codecs", "encode"): _Global(_Machine.make_bytes),
    ("builtins", "bytes"): _BYTES,
    ("__builtin__", "bytes"): _BYTES,
    ("builtins", "tuple"): _TUPLE,
    ("__builtin__", "tuple"): _TUPLE,
    ("collections", "OrderedDict"): _Global(lambda machine, arguments: machine.make_empty(arguments, {})),
}

_OPERATIONS = {
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.int_(4, signed=True),
    ord("K"): lambda m: m.int_(1, signed=False),
    ord("M"): lambda m: m.int_(2, signed=False),
    0x8A: lambda m: m.int_(m.unsigned(1), signed=True),
    ord("G"): _Machine.float_,
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("C"): lambda m: m.raw(1),
    ord("B"): lambda m: m.raw(4),
    0x8E: lambda m: m.raw(8),
    0x96: lambda m: m.raw(8),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.append(m.pop(1)),
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.push(tuple(m.pop(1))),
    0x86: lambda m: m.push(tuple(m.pop(2))),
    0x87: lambda m: m.push(tuple(m.pop(3))),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.set_items(m.pop(2)),
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    ord("q"): lambda m: m.put(m.unsigned(1)),
    ord("r"): lambda m: m.put(m.unsigned(4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.unsigned(1)),
    ord("j"): lambda m: m.get(m.unsigned(4)),
    ord("c"): _Machine.global_line,
    0x93: lambda m: m.global_(*m.pop(2)),
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}


class _Writer:
    """The opposite of `_Machine`, for the values of our own files; it never uses the memo."""

    def __init__(self, write):
        self.write, self.opcodes = write, 0

    def put(self, code, argument=b""):
        self.opcodes += 1
        if self.opcodes > MAX_OPCODES:
            raise ValueError(f"more values than {MAX_OPCODES:,} pickle opcodes can hold")
        self.write(code)
        self.write(argument)

    def value(self, value, path, depth):
        if depth > MAX_DEPTH:
            raise ValueError(f"{path}: nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            self.dict(value, path, depth)
        elif type(value) is list or type(value) is tuple:
            self.sequence(value, path, depth)
        elif type(value) is np.ndarray:
            self.array(value, path)
        elif type(value) in _SCALARS or type(value) is str:
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
            raw = value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{path}: {ascii(value)} is not text that UTF-8 can hold") from None
        self.put(b"\x8d", struct.pack("<Q", len(raw)) + raw)

    def global_(self, module, name):
        self.put(b"c", f"{module}\n{name}\n".encode())

    def array(self, value, path):
        code = value.dtype.str[1:]
        if DTYPES.get(code) != value.dtype or code in _NOT_IN_PADDLE:
            raise TypeError(f"{path}: an array of type {value.dtype} cannot be stored; paddle.load would not read it")
        if value.ndim > MAX_DIMS:
            raise ValueError(f"{path}: an array of more than {MAX_DIMS} axes cannot be stored")
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

    def tuple_of(self, items):
        self.put(b"(")
        for item in items:
            self.scalar(item, "")
        self.put(b"t")


_NOT_IN_PADDLE = ("u4", "u8")
