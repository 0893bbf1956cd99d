"""Devices: choosing one, saying clearly why one cannot be had, asking what it can do."""

import contextlib
import os
import re
import sys

import paddle

from passl_xcit.utils.errors import ConfigError, DeviceError
from passl_xcit.utils.kernels import kernels_of, only_in_float32
from passl_xcit.utils.logger import get_logger

logger = get_logger(__name__)

# Variables that hide some of a machine's devices from a process.
VISIBLE = {"gpu": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}

# What Paddle says then: of a GPU, of a plugin's device that answers C_FAILED (device_ext.h: "resource exhausted"), and
# of a CPU.
NO_MEMORY = re.compile(r"Out of memory|CustomDevice error, the error code is : 2\b|ResourceExhausted")


def select_device(name):
    """Make `name` ('cpu', 'gpu', 'gpu:1', 'npu', 'xpu', any custom device) the current device.

    A PASSL file says `device: gpu`; where this Paddle has no GPU the CPU is taken, with a warning.

    Raises:
        ConfigError: for a device that this Paddle or machine does not have.
    """
    if _kind_of(name) == "gpu" and not _gpu_count():
        logger.warning("device: gpu was asked for, but this Paddle sees no GPU: running on the CPU")
        name = "cpu"
    check_device(name)
    try:
        paddle.set_device(name)
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"'{name}' cannot be used: {str(error).strip().splitlines()[-1]}", "device") from error
    if is_custom(name):
        _avoid_strided_views(_kind_of(name))


def default_device():
    """Where a run goes whose config names no device."""
    return "gpu" if paddle.device.is_compiled_with_cuda() else "cpu"


def check_device(name):
    """Raise ConfigError unless `name` is a device, such as 'cpu' or 'gpu:1', that this Paddle can run on."""
    kind = _kind_of(name)
    if kind not in available_kinds():
        raise ConfigError(_missing(kind), "device")
    there = devices_of(kind)
    if ":" in str(name) and kind != "cpu" and name not in there:
        visible = f"; {VISIBLE[kind]}={os.environ[VISIBLE[kind]]}" if os.environ.get(VISIBLE.get(kind, "")) else ""
        raise ConfigError(f"there is no '{name}', only {', '.join(there) or 'none of them'}{visible}", "device")


def devices_of(kind):
    """The devices of a kind that this process sees, such as ["npu:0", "npu:1"]."""
    if kind == "cpu":
        return ["cpu"]
    if kind == "gpu":
        return [f"gpu:{index}" for index in range(_gpu_count())]
    if kind == "xpu":
        return [f"xpu:{index}" for index in range(paddle.device.xpu.device_count())]
    # Paddle calls a single device `npu`, several ones `npu:0`, `npu:1`
    found = [name for name in paddle.device.get_available_custom_device() if name.partition(":")[0] == kind]
    return [f"{kind}:0"] if found == [kind] else found


def _avoid_strided_views(kind):
    """Let transposed and sliced tensors be copies. Paddle's guide for NPUs advises it, for their speed.

    Views need a kernel for `contiguous`, without which the first one ends in an error.
    """
    if "contiguous" not in kernels_of(kind) or "FLAGS_use_stride_kernel" not in os.environ:
        paddle.set_flags({"FLAGS_use_stride_kernel": False})


def _kind_of(name):
    kind, colon, index = str(name).partition(":")
    if colon and not index.isdigit():
        raise ConfigError(f"'{name}': expected a device such as cpu, gpu, gpu:1 or npu:0", "device")
    return kind


def available_kinds():
    """Kinds of device that this Paddle can run on."""
    kinds = ["cpu"]
    if _gpu_count():
        kinds.append("gpu")
    if paddle.device.is_compiled_with_xpu():
        kinds.append("xpu")
    return kinds + list(paddle.device.get_all_custom_device_type())


def is_custom(name):
    """Whether `name`, such as `npu:0`, is a device of a plugin."""
    return _kind_of(name) in paddle.device.get_all_custom_device_type()


def current_place():
    """The current device as PASSL's log line prints it, such as `Place(cpu)`."""
    return paddle.zeros([1]).place


def has_sync_batch_norm():
    """True where SyncBatchNorm has a kernel. Neither CPUs nor Ascend's plugin have one; BatchNorm stays plain there."""
    return "sync_batch_norm" in kernels_of(_kind_of(paddle.get_device()))


def operators_without(dtype):
    """Names of the operators that the current device can run in float32, but not in `dtype`.

    A device of a plugin falls back to the CPU for an operator that it has no kernel for at all.
    """
    kind = _kind_of(paddle.get_device())
    return only_in_float32(dtype, kernels_of(kind), kernels_of("cpu")) if is_custom(kind) else set()


@contextlib.contextmanager
def lack_of_memory_told():
    """Around what may need more memory than the device has; also a decorator.

    Ascend's plugin ends the process itself, with its own message (RUNTIME_CHECK in its runtime.h).

    Raises:
        DeviceError: in place of Paddle's several exceptions, whose texts tell users of plugins nothing.
    """
    try:
        yield
    except (MemoryError, OSError) as error:
        if not NO_MEMORY.search(str(error)):
            raise
        raise DeviceError(
            f"not enough memory on {paddle.get_device()}: use a smaller batch_size, accum_steps, which computes a "
            "batch in parts, or use_recompute"
        ) from error


def peak_memory():
    """Bytes: the most that tensors took on the current device at a time so far; on a CPU, the most the process took.

    None where that cannot be asked: Paddle 3.0 tells it of GPUs only, and Windows has no `resource`.
    """
    device = paddle.get_device()
    if device == "cpu":
        return _peak_memory_of_process()
    try:
        return getattr(paddle.device, "max_memory_allocated", paddle.device.cuda.max_memory_allocated)(device)
    except ValueError:
        return None


def _peak_memory_of_process():
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, KiB elsewhere


def _gpu_count():
    return paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0


def _missing(kind):
    known = ", ".join(available_kinds())
    if kind == "npu":
        return (
            f"'npu' needs Paddle's Ascend plugin, which is not installed (this Paddle has: {known}); "
            "install paddle-custom-npu as docs/ascend.md says, or run elsewhere: -o device=cpu"
        )
    return f"no device '{kind}'; this Paddle has: {known}"
