"""On what a benchmark was measured: processor, memory, versions."""

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

from passl_xcit.utils.startup import usable_cores

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
PACKAGES = ("paddlepaddle", "numpy", "onnxruntime", "openvino")


def describe_machine():
    """{"processor", "cores", "memory_gb", "system", "python", package: version}, without names of hosts or paths."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    model, flags = _processor()
    return {
        "processor": model,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _processor(cpuinfo="/proc/cpuinfo"):
    """(name, flags) of the first processor."""
    lines = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines() if os.path.exists(cpuinfo) else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines[::-1])}
    return found.get("model name") or platform.processor(), found.get("flags", found.get("Features", "")).split()
