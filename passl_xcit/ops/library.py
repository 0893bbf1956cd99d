"""The native operators' library: whether it is there and can be used here, and its functions.

PASSL_XCIT_NATIVE: "auto" (the default) uses it where it can be used, "off" never, and "on" ends with an error where it
cannot be used. PASSL_XCIT_NATIVE_ISA names the instruction set, avx512 or avx2, in place of the best one.
In bfloat16 the operands of matrix products are rounded, where the processor multiplies these (AVX512-BF16); sums,
residuals, norms and softmax stay in float32. `native_precision` asks for it, or PASSL_XCIT_NATIVE_PRECISION=bfloat16
where nothing else is said. The default is float32.
"""

import contextlib
import ctypes
import os
import threading
from functools import cache
from pathlib import Path

import paddle

from passl_xcit.ops import build
from passl_xcit.utils.errors import ConfigError

MODE, ISA, PRECISION = "PASSL_XCIT_NATIVE", "PASSL_XCIT_NATIVE_ISA", "PASSL_XCIT_NATIVE_PRECISION"
INSTRUCTION_SETS = ("avx512", "avx2")
BFLOAT16_SETS = {"avx512": "avx512_bf16"}  # what the operators in bfloat16 need besides
BUILD_COMMAND = "python -m passl_xcit.ops.build"


class Unusable(Exception):
    """One line on why the library is not used."""


class Library:
    """The loaded library.

    Attributes:
        isa: the instruction set in use.
        bfloat16: whether there are operators in bfloat16, too.

    Raises:
        Unusable: it cannot be used here.
    """

    def __init__(self, path=build.LIBRARY, isa=""):
        if not build.supported():
            raise Unusable("there are native operators for Linux on x86-64 only")
        if not path.exists():
            raise Unusable(f"not built: `{BUILD_COMMAND}` does it where there is a C++ compiler")
        try:
            if not build.is_whole(path):
                raise Unusable(f"{path} cannot be loaded: it is damaged or not ours; `{BUILD_COMMAND}` builds it")
            self._functions = ctypes.CDLL(str(path))
            self._check_digest(path)
        except (OSError, AttributeError) as error:
            raise Unusable(f"{path} cannot be loaded: {error}") from error
        self._openmp = _openmp()
        functions = (self._openmp.GOMP_parallel, self._openmp.omp_get_thread_num)
        self._function("start", None, 2)(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))
        self._set = self._find_set(isa)
        if self._set is None:
            raise Unusable(f"this processor has no {isa or 'AVX2'}")
        self.isa = self._function("set_name", ctypes.c_char_p, 1)(self._set).decode()
        self._half = self._find_set(BFLOAT16_SETS[self.isa]) if self.isa in BFLOAT16_SETS else None
        self.bfloat16 = self._half is not None
        self._operators, self._run = {}, self._function("run", ctypes.c_size_t, 3, ctypes.c_int)

    def _find_set(self, name):
        return self._function("find_set", ctypes.c_void_p, 1)(name.encode())

    def _function(self, name, result, pointers, *more):
        """The C function of that name, which takes some pointers and then `more`."""
        function = self._functions[f"passl_xcit_{name}"]
        function.restype, function.argtypes = result, [*[ctypes.c_void_p] * pointers, *more]
        return function

    def _check_digest(self, path):
        if self._function("digest", ctypes.c_char_p, 0)().decode() != build.digest():
            raise Unusable(f"{path} was built from other sources: `{BUILD_COMMAND}` builds it again")

    def threads(self):
        """As many as Paddle uses: OMP_NUM_THREADS."""
        return self._openmp.omp_get_max_threads()

    def in_bfloat16(self):
        """Whether operators that can are to compute in bfloat16 now, in this thread."""
        return self.bfloat16 and _precision() == "bfloat16"

    def run(self, name, operator, half=False, workspace=None):
        """Compute the operator `name` on what the ctypes.Structure `operator` says, with all its pointers set.

        Args:
            half: in bfloat16, which the processor has to have.
            workspace: address of memory that is large enough; without it, that of this thread.
        """
        found, where, threads = self._found(name, half), ctypes.addressof(operator), self.threads()
        workspace = workspace or _workspace(self._run(found, where, None, threads))
        self._run(found, where, workspace, threads)

    def size_of(self, name, operator, half=False):
        """Bytes of what the function `name` is asked for."""
        return self._run(self._found(name, half), ctypes.addressof(operator), None, 1)

    def _found(self, name, half):
        if (name, half) not in self._operators:
            find = self._function("find_operator", ctypes.c_void_p, 2)
            self._operators[name, half] = find(self._half if half else self._set, name.encode())
        return self._operators[name, half]


# Of each Python thread: what `native_precision` and `portable` say, and a workspace, which is kept: fresh memory costs
# more, page by page, than what is computed in it.
_kept = threading.local()


def _workspace(size):
    """Address of at least `size` bytes."""
    if getattr(_kept, "size", -1) < size:
        _kept.memory, _kept.size = ctypes.create_string_buffer(size), size
    return ctypes.addressof(_kept.memory)


def _openmp():
    """The OpenMP runtime in Paddle's own wheel, which is in this process already."""
    path = Path(paddle.sysconfig.get_lib()) / "libiomp5.so"
    if not path.exists():
        raise Unusable(f"this Paddle has no {path.name}")
    return ctypes.CDLL(str(path))


@contextlib.contextmanager
def portable():
    """Inside, this thread computes by Paddle's operators only."""
    with _said("portable", True):
        yield


@contextlib.contextmanager
def native_precision(name):
    """Inside, this thread's native operators compute in `name`, "float32" or "bfloat16", as far as they can.

    Backward passes compute in what their forward passes did.
    """
    with _said("precision", name):
        yield


@contextlib.contextmanager
def _said(name, value):
    before = getattr(_kept, name, None)
    setattr(_kept, name, value)
    try:
        yield
    finally:
        setattr(_kept, name, before)


def _precision():
    said = getattr(_kept, "precision", None)
    value = said or os.environ.get(PRECISION, "float32")
    if value not in ("float32", "bfloat16"):
        raise ConfigError(f"{'precision' if said else PRECISION} must be float32 or bfloat16, not '{value}'")
    return value


def why_no_bfloat16():
    """One line on why native operators cannot compute in bfloat16 here; None where they can."""
    found, reason = _in_use()
    if not found:
        return f"native operators are not in use: {reason}"
    return None if found.bfloat16 else f"native operators in {found.isa} have none (it needs AVX512-BF16)"


def library():
    """The Library in use, or None.

    Raises:
        ConfigError: PASSL_XCIT_NATIVE=on, and it cannot be used; or a value that means nothing.
    """
    return None if getattr(_kept, "portable", False) else _in_use()[0]


def why():
    """One line on what is in use, and why."""
    found, reason = _in_use()
    if not found:
        return f"not in use: {reason}"
    if _precision() == "float32":
        return f"in use, {found.isa}"
    return f"in use, {found.isa}, {'bfloat16' if found.bfloat16 else 'float32: there is no bfloat16'}"


def _in_use():
    _precision()
    return _loaded(os.environ.get(MODE, "auto"), os.environ.get(ISA, ""))


@cache
def _loaded(mode, isa):
    """(Library or None, why it is not used)"""
    if mode not in ("auto", "on", "off"):
        raise ConfigError(f"{MODE} must be auto, on or off, not '{mode}'")
    if isa and isa not in INSTRUCTION_SETS:
        raise ConfigError(f"{ISA} must be {' or '.join(INSTRUCTION_SETS)}, not '{isa}'")
    if mode == "off":
        return None, f"{MODE}=off"
    try:
        return Library(isa=isa), ""
    except Unusable as error:
        if mode == "on":
            raise ConfigError(f"{MODE}=on, but the native operators cannot be used: {error}") from error
        return None, str(error)
