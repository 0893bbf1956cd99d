"""What a run finds on this machine: packages, processor, memory, disks, devices and plugins."""

import contextlib
import importlib
import io
import os
import platform
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import paddle
import psutil
from packaging.version import Version

from passl_xcit.engine.report import Finding, Section
from passl_xcit.ops import library
from passl_xcit.utils.device import VISIBLE, available_kinds, check_device, devices_of, is_custom
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.startup import usable_cores

# What setup.py asks for, besides Paddle, which has a package of another name for each kind of device.
REQUIREMENTS = {
    "numpy": "1.24",
    "pyyaml": "6.0",
    "safetensors": "0.4",
    "pillow": "9.5",
    "tqdm": "4.60",
    "visualdl": "2.5.3",
    "protobuf": "3.20.2",
    "matplotlib": "3.7",
    "psutil": "5.9",
    "packaging": "22.0",
    "jinja2": "3.0",
}
# What setup.py's extras for exports ask for: {package: (version, extra)}.
OPTIONAL = {
    "paddle2onnx": ("2.1.0", "export"),
    "onnxruntime": ("1.20", "export"),
    "openvino": ("2025.4", "openvino"),
}
PADDLE = "3.0"
GIB = 2**30
LITTLE_MEMORY = 2 * GIB
SHARED_MEMORY = "/dev/shm"
FULL = 2**20
SMALL_SHARED_MEMORY = GIB  # what NCCL's guide gives a container (--shm-size=1g); Docker's own are 64 MiB
LARGEST_CHECKPOINT = 12 * 189_096_136  # bytes of xcit_large_24_p16: float32 weights, and AdamW's two moments of each
# Flags that cost speed, and what they are for.
SLOW_FLAGS = {
    "FLAGS_check_nan_inf": "looks at the result of every operator",
    "FLAGS_npu_check_nan_inf": "looks at the result of every operator",
    "FLAGS_npu_blocking_run": "waits for the NPU after every operator",
    "FLAGS_npu_jit_compile": "compiles operators for each new shape",
}
PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
from passl_xcit.utils.startup import prepare_paddle
prepare_paddle()
import paddle
from passl_xcit.utils.device import select_device
select_device(sys.argv[2])
assert (paddle.ones([2]) + 1).tolist() == [2, 2], "1 + 1 is not 2 there"
"""
PROBE_SECONDS = 120
OFF = ("", "0", "false", "False")


def installation():
    """Section of the versions of Python, Paddle, this project, its requirements and what its exports can use."""
    packages = [*map(_requirement, REQUIREMENTS), *map(_option, OPTIONAL)]
    return Section("installation", [_python(), _paddle(), _ours(), *packages])


def _python():
    return _version("Python", platform.python_version(), "3.9")


def _paddle():
    if paddle.__version__ == "0.0.0":
        return Finding("Paddle", "a development version")
    return _version("Paddle", paddle.__version__, PADDLE)


def _ours():
    return Finding("passl_xcit", sys.modules["passl_xcit"].__version__)


def _requirement(name):
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", "error", f"pip install '{name}>={REQUIREMENTS[name]}'")
    return _version(name, found, REQUIREMENTS[name])


def _option(name):
    needed, extra = OPTIONAL[name]
    try:
        return _version(name, metadata.version(name), needed)
    except metadata.PackageNotFoundError:
        return Finding(name, f"not installed; optional: pip install 'passl_xcit[{extra}]'")


def _version(name, found, needed):
    if Version(found) >= Version(needed):
        return Finding(name, found)
    return Finding(name, found, "error", f"{found} is too old: {needed} or newer is needed")


def machine(output_dir, device):
    """Section of processor, memory and disks, for a run on `device` that writes to `output_dir`."""
    findings = [
        Finding("system", platform.platform()),
        Finding("processor", processor()),
        _threads(),
        _native_operators(),
        _memory(),
        shared_memory(device),
        disk(output_dir),
    ]
    return Section("machine", findings)


def of_processor(field, cpuinfo="/proc/cpuinfo"):
    """What Linux says of the first processor under a name such as "model name" or "flags"; "" where it does not."""
    with contextlib.suppress(OSError):
        lines = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
    return ""


def processor(cpuinfo="/proc/cpuinfo"):
    name = of_processor("model name", cpuinfo)
    return f"{name or platform.processor() or platform.machine()}, {usable_cores()} of {os.cpu_count()} cores usable"


def _threads():
    """OMP_NUM_THREADS as a run would have it: what the user has set, or what `prepare_paddle` chose."""
    text, cores = os.environ.get("OMP_NUM_THREADS", ""), usable_cores()
    value = f"OMP_NUM_THREADS={text}"
    if "MKL_DEBUG_CPU_TYPE" in os.environ:
        value += f" MKL_DEBUG_CPU_TYPE={os.environ['MKL_DEBUG_CPU_TYPE']}"
    if text == str(cores):
        return Finding("threads", value)
    return Finding(
        "threads", value, "warning", f"{value}, but {cores} cores are usable: unset it for one thread a core"
    )


def _native_operators():
    try:
        return Finding("native operators", library.why())
    except ConfigError as error:
        return Finding("native operators", "cannot be used", "error", str(error))


def _memory():
    memory = psutil.virtual_memory()
    value = f"{_size(memory.available)} of {_size(memory.total)} available"
    if memory.available >= LITTLE_MEMORY:
        return Finding("memory", value)
    return Finding("memory", value, "warning", f"{value}: take a smaller batch_size, fewer num_workers or accum_steps")


def shared_memory(device, path=SHARED_MEMORY):
    """Finding on the folder of shared memory, which several cards of one machine exchange gradients through.

    The data workers do not need it (`worker_pool`), nor do several processes on CPUs.
    """
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return Finding(path, "not there", "ok" if device == "cpu" else "warning", f"{path}: {error.strerror}")
    value = f"{_size(usage.free)} of {_size(usage.total)} free"
    need = "several cards of one machine exchange gradients through it"
    if usage.free < FULL:
        verdict = "warning" if device == "cpu" else "error"
        return Finding(path, value, verdict, f"full ({value}), but {need}: remove what ended programs left there")
    if usage.free < SMALL_SHARED_MEMORY and device != "cpu":
        return Finding(path, value, "warning", f"{value}, and {need}: start the container with --shm-size=1g or more")
    return Finding(path, value)


def disk(output_dir):
    """Finding on the disk of the output folder, which need not be there yet."""
    folder = next(path for path in (Path(output_dir).absolute(), *Path(output_dir).absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    value, name = f"{_size(free)} free", f"output {output_dir}"
    if not os.access(folder, os.W_OK):
        return Finding(name, value, "error", f"{folder} cannot be written to: give another --output_dir")
    if free < FULL:
        return Finding(name, value, "error", f"the disk is full ({value}): make room, or give another --output_dir")
    if free < LARGEST_CHECKPOINT:
        need = f"a checkpoint has 12 bytes for each parameter, {_size(LARGEST_CHECKPOINT)} for xcit_large_24_p16"
        return Finding(name, value, "warning", f"{value}; {need}")
    return Finding(name, value)


def trouble_with(device):
    """Why nothing can be computed on `device`; empty where it can.

    It is tried in a process of its own, which a fault of a driver may take with it.

    Raises:
        ConfigError: for what is no name of a device.
    """
    is_custom(device)
    try:
        check_device(device)
    except ConfigError as error:
        return error.message
    if device == "cpu":
        return ""
    command = [sys.executable, "-c", PROBE, str(Path(__file__).parents[2]), device]
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{device} has not added two numbers in {PROBE_SECONDS} seconds"
    if process.returncode == 0:
        return ""
    reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
    if process.returncode < 0:
        reason = f"killed by {signal.Signals(-process.returncode).name}"
    return f"{device} cannot add two numbers: {reason}"


def devices(name, trouble):
    """Section of the devices and plugins, and of the variables that are set for them, for a run on the device `name`.

    Args:
        trouble: what `trouble_with(name)` says.
    """
    kinds = available_kinds()
    seen = ", ".join(found for kind in kinds for found in devices_of(kind))
    findings = [Finding("seen", seen), _chosen(name, trouble), _plugins()]
    findings += [_plugin_version(kind) for kind in paddle.device.get_all_custom_device_type()]
    findings += [_visible(VISIBLE[kind]) for kind in VISIBLE if kind in kinds or VISIBLE[kind] in os.environ]
    findings += [_flag(flag) for flag in sorted(os.environ) if flag.startswith("FLAGS_")]
    return Section("device", [finding for finding in findings if finding])


def _chosen(name, trouble):
    if not trouble:
        return Finding("device", name)
    if name.startswith("gpu") and "gpu" not in available_kinds():
        return Finding("device", f"{name}: not there", "warning", f"{trouble}: the run takes the CPU")
    return Finding("device", f"{name}: cannot be used", "error", trouble)


def _plugins():
    root = os.environ.get("CUSTOM_DEVICE_ROOT", "")
    if not root:
        return Finding("plugins", "none")
    libraries = sorted(path.name for path in Path(root).glob("*.so"))
    value = f"{root}: {', '.join(libraries) or 'no library'}"
    if not libraries:
        advice = f"CUSTOM_DEVICE_ROOT={root} holds no plugin (*.so): unset it, or name the plugin's folder"
        return Finding("plugins", value, "warning", advice)
    if not paddle.device.get_all_custom_device_type():
        advice = "Paddle could not load it, or found no device: look at what `python -c 'import paddle'` prints"
        return Finding("plugins", value, "error", f"{value}: {advice}")
    return Finding("plugins", value)


def _plugin_version(kind):
    """What `paddle_custom_device.<kind>.version()` prints; None where the plugin is no installed package."""
    name = f"paddle_custom_device.{kind}"
    try:
        plugin = importlib.import_module(name)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            plugin.version()
    except (ImportError, AttributeError):
        return None
    value = ", ".join(printed.getvalue().split("\n")).strip(", ")
    version = getattr(plugin, "full_version", paddle.__version__)
    if version != paddle.__version__:
        advice = f"{name} is {version}, Paddle {paddle.__version__}: install the same version of both"
        return Finding(name, value, "warning", advice)
    return Finding(name, value)


def _visible(variable):
    value = os.environ.get(variable)
    if value is None:
        return Finding(variable, "not set: every device is visible")
    if not value.strip():
        return Finding(variable, "empty", "warning", "set, but empty: unset it, or list devices in it, such as 0,1")
    return Finding(variable, value)


def _flag(name):
    value = os.environ[name]
    if name in SLOW_FLAGS and value not in OFF:
        return Finding(name, value, "warning", f"{SLOW_FLAGS[name]}: unset it unless you look for an error")
    return Finding(name, value)


def _size(count):
    """1,610,612,736 -> '1.5 GiB'"""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
