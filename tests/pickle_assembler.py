"""Pickles written opcode by opcode: each function returns the opcodes that leave one value on the stack."""

import struct

import numpy as np


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value):
    return b"B" + struct.pack("<I", len(value)) + value


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def group(*items):
    return b"(" + b"".join(items) + b"t"


def mapping(**items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def call(function, *arguments):
    return function + group(*arguments) + b"R"


def shape(*sizes):
    return group(*[number(size) for size in sizes])


def program(body, protocol=4):
    """The whole pickle."""
    return b"\x80" + bytes([protocol]) + body + b"."


# numpy's names and objects.

CORE = "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
RECONSTRUCT = named(f"{CORE}.multiarray", "_reconstruct")
SCALAR = named(f"{CORE}.multiarray", "scalar")
FROMBUFFER = named(f"{CORE}.numeric", "_frombuffer")
NDARRAY = named("numpy", "ndarray")
ENCODE = named("_codecs", "encode")


DTYPE_STATE = (number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0))
DTYPE_OF_BOOL = (number(3), text("|"), *DTYPE_STATE[2:])
NO_SIZE, TWO, B, EIGHT_BYTES, VERSION = shape(0), shape(2), raw(b"b"), raw(bytes(8)), number(1)


def dtype(code="f4", flags=b"\x89\x88", state=DTYPE_STATE):
    return call(named("numpy", "dtype"), text(code), flags) + group(*state) + b"b"


def empty_array(kind=NDARRAY, size=NO_SIZE, code=B):
    return call(RECONSTRUCT, kind, size, code)


def array(sizes=TWO, kind=None, order=b"\x89", content=EIGHT_BYTES, version=VERSION):
    return empty_array() + group(version, sizes, kind or dtype(), order, content) + b"b"


# (module, name, argument): what a hostile file asks to be called; `{}` is the path of a file that it would make.
DANGEROUS_CALLS = [
    ("posix", "system", "touch {}"),
    ("os", "system", "touch {}"),
    ("os", "popen", "touch {}"),
    ("subprocess", "getoutput", "touch {}"),
    ("builtins", "exec", "open({!r}, 'w')"),
    ("__builtin__", "execfile", "{}"),
    ("builtins", "compile", "open({!r}, 'w')"),
    ("timeit", "timeit", "open({!r}, 'w')"),
    ("cProfile", "run", "open({!r}, 'w')"),
    ("numpy.testing._private.utils", "runstring", "open({!r}, 'w')"),
    ("code", "interact", "open({!r}, 'w')"),
    ("runpy", "run_path", "{}"),
    ("os", "mkdir", "{}"),
    ("posix", "remove", "{}"),
    ("shutil", "rmtree", "{}"),
    ("pty", "spawn", "touch {}"),
    ("subprocess", "Popen", "touch {}"),
    ("webbrowser", "open", "{}"),
    ("ctypes", "CDLL", "{}"),
    ("importlib", "import_module", "{}"),
    ("builtins", "__import__", "{}"),
    ("builtins", "open", "{}"),
    ("builtins", "bytearray", "{}"),
    ("io", "FileIO", "{}"),
    ("pickle", "loads", "{}"),
    ("_pickle", "Unpickler", "{}"),
    ("marshal", "loads", "{}"),
    ("types", "CodeType", "{}"),
    ("functools", "partial", "{}"),
    ("operator", "methodcaller", "{}"),
    ("copyreg", "_reconstructor", "{}"),
    ("numpy", "load", "{}"),
    ("numpy", "fromfile", "{}"),
    ("numpy", "memmap", "{}"),
    ("numpy", "matrix", "{}"),
    ("paddle", "load", "{}"),
    ("paddle.base.libpaddle", "GeneratorState", "{}"),
    ("torch", "load", "{}"),
    ("collections", "defaultdict", "{}"),
    ("", "", "{}"),
    # A name with dots reaches through attributes, which got past the filters of others.
    ("numpy._core.numeric", "builtins.eval", "open({!r}, 'w')"),
    ("numpy", "ndarray.tofile", "{}"),
    ("builtins", "tuple.__class__", "{}"),
    ("collections", "OrderedDict.__init__", "{}"),
    ("numpy.core", "multiarray._reconstruct", "{}"),
]
