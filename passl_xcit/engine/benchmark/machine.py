"""On what a benchmark was measured: processor, memory, versions."""

import platform
from importlib import metadata

import psutil

from passl_xcit.engine.system_check import of_processor
from passl_xcit.ops.library import library, why
from passl_xcit.utils.startup import usable_cores

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
PACKAGES = ("paddlepaddle", "numpy", "onnxruntime", "openvino")


def describe_machine():
    """{"processor", "instruction_sets", "native_operators", ..., package: version}, without names of hosts or paths."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    flags = (of_processor("flags") or of_processor("Features")).split()  # the latter on Arm
    return {
        "processor": of_processor("model name") or platform.processor(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "native_operators": why() if library() else "not in use",
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }
