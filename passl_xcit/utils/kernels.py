"""Kernels: which ones Paddle has for a device, and which ones it runs.

Paddle has no documented way to ask either. This module uses its registry of kernels, and the line that its operators
log when they have chosen a kernel (VLOG 6 of Paddle 3.3). Operators have the names of Paddle's kernels, such as
`matmul` and `matmul_grad`; types are Paddle's, such as `float32`.
"""

import contextlib
import os
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import paddle
from paddle.base import core

from passl_xcit.utils.errors import UserError

ASCEND_TABLE = Path(__file__).with_name("ascend_kernels.tsv")
GENERIC = "CUSTOM"  # Paddle's name for the kernels it brings for the devices of all plugins: views and copies
KEY = re.compile(r"\((\w+), (\S+), (\w+)\)")
LOG_LEVEL = {"*api*": 6}
CHOSEN = re.compile(r"API kernel key: \[(\w+), [^,]+, (\w+)\]\n.*\] (\w+) (?:API )?kernel: [^}]*?backend: (\w+)")
TYPES_IN_C = {
    "float": "float32",
    "double": "float64",
    "int": "int32",
    "complex<float>": "complex64",
    "complex<double>": "complex128",
}

CAN_RECORD = hasattr(core, "set_vlog_level")  # Paddle 3.0 has it not

if CAN_RECORD:  # where a line has been reached once, its level changes only with patterns that were known then
    core.set_vlog_level(dict.fromkeys(LOG_LEVEL, 0))


class Call(NamedTuple):
    """A kernel that has run: the device of its tensors, and where it ran, such as `npu` and `CPU`."""

    operator: str
    dtype: str
    device: str
    ran_on: str


def kernels_of(device_type):
    """{operator: set of types} that need no other device on a device of this type: 'cpu', 'gpu', 'npu', ..."""
    backends = {"cpu": ("CPU",), "gpu": ("GPU", "GPUDNN"), "xpu": ("XPU",)}.get(device_type, (device_type, GENERIC))
    found = defaultdict(set)
    for operator, keys in core._get_registered_phi_kernels("all").items():
        for backend, layout, dtype in KEY.findall(" ".join(keys)):
            if backend in backends and layout != "STRIDED":
                found[operator].add(dtype)
    return dict(found)


def kernels_of_ascend():
    """{operator: set of types} of the Ascend plugin in `ascend_kernels.tsv`, with Paddle's own views."""
    found = defaultdict(set, kernels_of(GENERIC))
    for line in ASCEND_TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            operator, types = line.split("\t")
            found[operator] |= {TYPES_IN_C.get(name, name.removesuffix("_t")) for name in types.split(",")}
    return dict(found)


def can_run(operator, dtype, kernels, cpu_kernels):
    """Whether a device with these `kernels` has one for the operator and type, or falls back to one of the CPU's."""
    return dtype in kernels.get(operator, cpu_kernels.get(operator, ()))


def only_in_float32(dtype, kernels, cpu_kernels):
    """Names, in Paddle's auto-cast, of operators that `can_run` in float32 but not, forward or backward, in `dtype`."""

    def runs(operator, dtype):
        return can_run(operator, dtype, kernels, cpu_kernels)

    def lacks(operator):
        gradient = f"{operator}_grad"
        return not runs(operator, dtype) or (runs(gradient, "float32") and not runs(gradient, dtype))

    found = {name for name in {*kernels, *cpu_kernels} if runs(name, "float32") and lacks(name)}
    # Auto-cast knows operators by older names, such as elementwise_sub for subtract and matmul_v2 for matmul.
    return {name for name in {*found, *core.get_all_op_names()} if kernel_name(name) in found}


def kernel_name(name):
    """The name of a kernel, such as `subtract`, from the one that Paddle's auto-cast has, such as `elementwise_sub`."""
    return core._get_phi_kernel_name(name)


@contextlib.contextmanager
def recorded_calls():
    """Inside the context, Paddle's kernels are noted: yields a list that is full of Calls when the context ends.

    It needs Paddle's log: with GLOG_minloglevel set the list stays empty. What else is written to standard error inside
    the context is lost.

    Raises:
        UserError: this Paddle does not tell; 3.0 does not.
    """
    if not CAN_RECORD:
        raise UserError(f"Paddle {paddle.__version__} does not tell which kernels it runs; 3.3.1 does")
    calls = []
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with _logging_to(log.fileno()):
                yield calls
        finally:
            log.seek(0)
            found = CHOSEN.findall(log.read())
            calls += [Call(operator, dtype, device, ran_on) for device, dtype, operator, ran_on in found]


@contextlib.contextmanager
def _logging_to(file):
    before = os.dup(2)
    os.dup2(file, 2)
    core.set_vlog_level(LOG_LEVEL)
    try:
        yield
    finally:
        core.set_vlog_level(dict.fromkeys(LOG_LEVEL, 0))
        os.dup2(before, 2)
        os.close(before)
