"""The test device: how it is built, what a process needs that is to see it, and what it has counted."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import paddle

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ("device.cc", "kernels.cc")
DEVICE = os.environ.get("TEST_DEVICE_TYPE", "npu")  # the name that tests give the device

# In the order of `enum Counter` in device.cc.
COUNTERS = (
    "host_to_device",
    "device_to_host",
    "device_to_device",
    "allocations",
    "collectives",
    "synchronisations",
    "refused",
)


def compiler():
    """Path of a C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build(folder, device_type=DEVICE):
    """Compile the plugin for a device of this name into `folder`, which CUSTOM_DEVICE_ROOT may then name."""
    folder.mkdir(parents=True)
    package = Path(paddle.__file__).parent
    headers, libraries = package / "include", package / "libs"
    command = [compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-deprecated-declarations"]
    command += [f'-DDEVICE_TYPE="{device_type}"', "-DPADDLE_WITH_CUSTOM_DEVICE"]
    command += ["-I", headers, "-I", headers / "third_party", *(HERE / name for name in SOURCES)]
    command += [libraries / "libphi_core.so", libraries / "libcommon.so", f"-Wl,-rpath,{libraries}", "-lrt"]
    result = subprocess.run([*map(str, command), "-o", str(folder / "libdevice.so")], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return folder


def environment(folder, **more):
    """The environment of a process that sees the device built in `folder`."""
    paths = os.pathsep.join(map(str, (ROOT, HERE, HERE.parent)))
    own = {"CUSTOM_DEVICE_ROOT": folder, "GLOG_minloglevel": 1, "PYTHONPATH": paths}
    return {**os.environ, **{name: str(value) for name, value in {**own, **more}.items()}}


def start(folder, *command, **options):
    """Start `python <command>` in a process that sees the device; its output as text in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, env=environment(folder, **options.pop("variables", {})), **{**pipes, **options})


def written_counters(path):
    """[{name: number}] of the processes that have written to `path`, which TEST_DEVICE_COUNTERS named."""
    return [dict(zip(COUNTERS, map(int, line.split()))) for line in Path(path).read_text().splitlines()]


def _library():
    return ctypes.CDLL(str(Path(os.environ["CUSTOM_DEVICE_ROOT"]) / "libdevice.so"))


def counters():
    """{name: number} of what the device has counted in this process so far."""
    values = (ctypes.c_uint64 * len(COUNTERS))()
    _library().test_device_counters(values)
    return dict(zip(COUNTERS, values))


def copy(to, target, source_device, source, size):
    """Ask the device for a copy of so many bytes between devices, or the host (-1), by addresses: 0 if it was made."""
    arguments = ctypes.c_int(to), ctypes.c_void_p(target), ctypes.c_int(source_device), ctypes.c_void_p(source)
    return _library().test_device_copy(*arguments, ctypes.c_size_t(size))
