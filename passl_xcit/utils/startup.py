"""What is to be settled before Paddle is imported: how it uses the processor, and flags of plugins."""

import contextlib
import ctypes
import io
import os
import sys
from pathlib import Path

from passl_xcit.utils.errors import ConfigError

# Of glibc's <malloc.h>: parameter, value, environment variable.
ALLOCATION = (
    (-3, 2**26, "MALLOC_MMAP_THRESHOLD_"),  # bytes from which on memory is taken from the system and given back
    (-1, 2**28, "MALLOC_TRIM_THRESHOLD_"),  # bytes that may lie free at the end of the heap
)


def prepare_paddle(own_process=True):
    """Set threads and code path of the CPU libraries and flags of plugins, then import Paddle. What is set stays.

    Args:
        own_process: whether this process is this project's alone, so that its allocator may be set, too.

    - OMP_NUM_THREADS: one thread a core; unset, Paddle takes one. Under `paddle.distributed.launch` the cores are
      shared out, and a 1 does not count as the user's: the launcher sets it by importing Paddle itself.
    - MKL_DEBUG_CPU_TYPE=5 on AMD processors with AVX2: the MKL in Paddle's wheel otherwise takes its slowest path
      there (matrix products of this model: 2.3 to 3.7 times slower, measured with Paddle 3.3.1 on an EPYC).
    - FLAGS_npu_jit_compile=0: Ascend's plugin takes compiled kernels instead of compiling each operator for each new
      shape, as Paddle's own guide for NPUs has it; where compiling fails, the error is ACL 500001 or 500002.
    - glibc's allocator keeps arrays up to 64 MiB for the next ones, and up to 256 MiB at the end of its heap, unless
      the environment sets it: memory that is given back comes again page by page, each with a page fault
      (docs/benchmarks.md says what that takes).
    """
    processes = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))  # on this machine
    threads = str(max(1, usable_cores() // processes))
    if "PADDLE_LOCAL_SIZE" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        os.environ["OMP_NUM_THREADS"] = threads
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    if _is_amd_with_avx2():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    os.environ.setdefault("FLAGS_npu_jit_compile", "0")
    if own_process and sys.platform == "linux":
        _keep_memory()
    with contextlib.redirect_stderr(io.StringIO()), _refused_in_one_line():  # Paddle advises on each import
        import paddle
    paddle.disable_signal_handler()  # its handler prints a C++ traceback for an ordinary SIGTERM


@contextlib.contextmanager
def _refused_in_one_line():
    """A plugin that cannot be loaded, such as one whose libraries are not found, ends Paddle's import."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.startswith("(")), str(error))
        where = os.environ.get("CUSTOM_DEVICE_ROOT", "")
        plugins = f"; plugins are loaded from CUSTOM_DEVICE_ROOT={where}" if where else ""
        raise ConfigError(f"Paddle cannot be imported: {' '.join(reason.split())}{plugins}") from error


def _keep_memory():
    if "GLIBC_TUNABLES" in os.environ or any(name in os.environ for _, _, name in ALLOCATION):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        for parameter, value, _ in ALLOCATION:
            ctypes.CDLL(None).mallopt(parameter, value)


def usable_cores():
    """Cores that this process may run on, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_amd_with_avx2(cpuinfo="/proc/cpuinfo"):
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in text and " avx2 " in text
