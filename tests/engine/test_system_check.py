"""What the doctor says of packages, memory, disks, devices and plugins."""

import ast
import re
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import paddle
import pytest

from passl_xcit.engine import system_check
from passl_xcit.engine.system_check import (
    OPTIONAL,
    PADDLE,
    REQUIREMENTS,
    devices,
    disk,
    installation,
    machine,
    shared_memory,
    trouble_with,
)
from passl_xcit.utils.device import available_kinds
from passl_xcit.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
KIB, MIB, GIB = 2**10, 2**20, 2**30
without_npu = pytest.mark.skipif("npu" in available_kinds(), reason="needs a Paddle without NPU")


def found(section, name):
    """The one finding of this name."""
    (finding,) = [finding for finding in section.findings if finding.name == name]
    return finding


@pytest.fixture
def disk_of(monkeypatch):
    """Let every disk have so many bytes, and as many of them free."""

    def set_sizes(total, free):
        usage = SimpleNamespace(total=total, used=total - free, free=free)
        monkeypatch.setattr(system_check.shutil, "disk_usage", lambda path: usage)

    return set_sizes


def test_the_versions_that_are_asked_for_are_those_of_setup_py():
    tree = ast.parse((ROOT / "setup.py").read_text())
    (listed,) = [node.value for node in ast.walk(tree) if getattr(node, "arg", "") == "install_requires"]
    needed = dict(item.value.split(">=") for item in listed.elts)
    assert needed.pop("paddlepaddle") == PADDLE
    assert needed == REQUIREMENTS
    (extras,) = [node.value for node in ast.walk(tree) if getattr(node, "arg", "") == "extras_require"]
    extras = {key.value: value for key, value in zip(extras.keys, extras.values)}
    asked = {
        name: (version, extra)
        for extra in ("export", "openvino")
        for name, version in (requirement.split(">=") for requirement in ast.literal_eval(extras[extra]))
    }
    assert asked == OPTIONAL


def test_what_is_installed_here_is_well():
    assert {finding.verdict for finding in installation().findings} == {"ok"}
    assert found(installation(), "Paddle").value == paddle.__version__


def test_a_package_that_is_missing_or_too_old_is_an_error_that_says_what_to_install(monkeypatch):
    versions = {**dict.fromkeys([*REQUIREMENTS, "paddle2onnx"], "99.1"), "pillow": "9.4.9", "onnxruntime": "1.2"}
    del versions["visualdl"]

    def version(name):
        if name not in versions:
            raise system_check.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(system_check.metadata, "version", version)
    errors = {finding.name: finding for finding in installation().findings if finding.verdict == "error"}
    assert errors.keys() == {"visualdl", "pillow", "onnxruntime"}
    assert found(installation(), "openvino").value == "not installed; optional: pip install 'passl_xcit[openvino]'"
    assert errors["visualdl"].advice == "pip install 'visualdl>=2.5.3'"
    assert errors["pillow"].advice == "9.4.9 is too old: 9.5 or newer is needed"


@pytest.mark.parametrize(
    ("device", "total", "free", "verdict"),
    [
        ("npu:0", 64 * MIB, 0, "error"),
        ("npu:0", 8 * GIB, 12 * KIB, "error"),
        ("gpu", 64 * MIB, 64 * MIB, "warning"),
        ("npu", 2 * GIB, GIB, "ok"),
        ("cpu", 64 * MIB, 0, "warning"),
        ("cpu", 64 * MIB, 64 * MIB, "ok"),
    ],
)
def test_shared_memory_that_is_full_or_small_is_told_by_what_a_device_needs(device, total, free, verdict, disk_of):
    disk_of(total, free)
    finding = shared_memory(device, "/dev/shm")
    assert finding.verdict == verdict and bool(finding.advice) == (verdict != "ok")
    assert ("full (0 bytes of 64.0 MiB free)" in finding.advice) == (free == 0)


def test_a_full_dev_shm_stands_in_the_section_of_the_machine(disk_of, tmp_path):
    disk_of(GIB, 0)
    assert found(machine(tmp_path, "npu"), "/dev/shm").verdict == "error"


def test_a_system_without_dev_shm_is_fine_for_a_cpu(tmp_path):
    assert shared_memory("cpu", tmp_path / "no").verdict == "ok"
    assert shared_memory("npu", tmp_path / "no").verdict == "warning"


@pytest.mark.parametrize(("free", "verdict"), [(0, "error"), (GIB, "warning"), (3 * GIB, "ok")])
def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_parent(free, verdict, disk_of, tmp_path):
    disk_of(100 * GIB, free)
    assert disk(tmp_path / "not" / "yet").verdict == verdict
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_written_to_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(system_check.os, "access", lambda path, mode: False)
    assert disk(tmp_path / "out") == ("output " + str(tmp_path / "out"), *disk(tmp_path / "out")[1:])
    assert disk(tmp_path / "out").advice == f"{tmp_path} cannot be written to: give another --output_dir"


@pytest.mark.parametrize(("threads", "verdict"), [("2", "ok"), ("1", "warning"), ("64", "warning"), ("", "warning")])
def test_threads_should_be_as_many_as_cores(threads, verdict, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(system_check, "usable_cores", lambda: 2)
    assert found(machine(tmp_path, "cpu"), "threads").verdict == verdict


def test_little_memory_is_a_warning(monkeypatch, tmp_path):
    memory = namedtuple("memory", "total available")
    monkeypatch.setattr(system_check.psutil, "virtual_memory", lambda: memory(16 * GIB, GIB))
    finding = found(machine(tmp_path, "cpu"), "memory")
    assert finding.verdict == "warning" and finding.value == "1.0 GiB of 16.0 GiB available"


def test_the_cpu_is_there():
    assert trouble_with("cpu") == ""
    assert found(devices("cpu", ""), "device") == ("device", "cpu", "ok", "")


@without_npu
@pytest.mark.parametrize("name", ["npu", "npu:3"])
def test_a_missing_plugin_is_an_error_with_what_to_install(name):
    finding = found(devices(name, trouble_with(name)), "device")
    assert finding.verdict == "error" and finding.value == f"{name}: cannot be used"
    assert finding.advice.startswith("'npu' needs Paddle's Ascend plugin, which is not installed (this Paddle has: cpu")
    assert "install paddle-custom-npu" in finding.advice


@pytest.mark.skipif("gpu" in available_kinds(), reason="needs a Paddle without GPU")
def test_a_missing_gpu_is_a_warning_since_the_run_takes_the_cpu():
    finding = found(devices("gpu:1", trouble_with("gpu:1")), "device")
    assert finding.verdict == "warning" and finding.advice.endswith("the run takes the CPU")


def test_what_is_no_name_of_a_device_is_refused():
    with pytest.raises(ConfigError, match="'npu:one': expected a device such as cpu"):
        trouble_with("npu:one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "trouble"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("raise RuntimeError('ACL error 507033')", "RuntimeError: ACL error 507033"),
        ("import time; time.sleep(100)", "has not added two numbers in 1 seconds"),
        ("", ""),
    ],
)
def test_a_device_that_fails_takes_the_doctor_not_with_it(probe, trouble, monkeypatch):
    monkeypatch.setattr(system_check, "check_device", lambda name: None)
    monkeypatch.setattr(system_check, "PROBE", probe)
    monkeypatch.setattr(system_check, "PROBE_SECONDS", 1 if "sleep" in probe else 60)
    told = trouble_with("npu:0")
    assert told.endswith(trouble) and bool(told) == bool(trouble)


def test_a_plugins_folder_without_a_plugin_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", str(tmp_path))
    assert found(devices("cpu", ""), "plugins").verdict == "warning"


@without_npu
def test_a_plugin_that_gave_no_device_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "libpaddle-custom-npu.so").touch()
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", str(tmp_path))
    finding = found(devices("cpu", ""), "plugins")
    assert finding.verdict == "error" and "libpaddle-custom-npu.so" in finding.advice


@pytest.mark.parametrize(("version", "verdict"), [(paddle.__version__, "ok"), ("2.6.0", "warning")])
def test_a_plugin_tells_its_version_which_should_be_paddles(version, verdict, monkeypatch):
    package, plugin = ModuleType("paddle_custom_device"), ModuleType("paddle_custom_device.npu")
    plugin.full_version = version
    plugin.version = lambda: print(f"version: {version}\ncommit: 77090b64\ncann: 8.0.RC1")
    monkeypatch.setitem(sys.modules, "paddle_custom_device", package)
    monkeypatch.setitem(sys.modules, "paddle_custom_device.npu", plugin)
    monkeypatch.setattr(system_check.paddle.device, "get_all_custom_device_type", lambda: ["npu"])
    finding = found(devices("cpu", ""), "paddle_custom_device.npu")
    assert finding.value == f"version: {version}, commit: 77090b64, cann: 8.0.RC1"
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("variable", "value", "verdict"),
    [
        ("ASCEND_RT_VISIBLE_DEVICES", "0,1", "ok"),
        ("ASCEND_RT_VISIBLE_DEVICES", "", "warning"),
        ("CUDA_VISIBLE_DEVICES", " ", "warning"),
        ("FLAGS_npu_jit_compile", "0", "ok"),
        ("FLAGS_npu_jit_compile", "true", "warning"),
        ("FLAGS_npu_blocking_run", "1", "warning"),
        ("FLAGS_allocator_strategy", "auto_growth", "ok"),
    ],
)
def test_variables_that_are_set_are_listed_and_those_that_cost_speed_are_warnings(
    variable, value, verdict, monkeypatch
):
    monkeypatch.setenv(variable, value)
    finding = found(devices("cpu", ""), variable)
    assert finding.verdict == verdict and re.search(r"unset it|^$", finding.advice)
