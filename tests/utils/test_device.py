"""Choosing a device, and saying why one cannot be had."""

import re
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_xcit.utils import device
from passl_xcit.utils.device import (
    available_kinds,
    current_place,
    devices_of,
    has_sync_batch_norm,
    lack_of_memory_told,
    peak_memory,
    select_device,
)
from passl_xcit.utils.errors import ConfigError, DeviceError

without_gpu = pytest.mark.skipif("gpu" in available_kinds(), reason="needs a Paddle without GPU")


@pytest.fixture(autouse=True)
def device_put_back():
    before = paddle.get_device()
    yield
    paddle.set_device(before)


def refusal(name):
    with pytest.raises(ConfigError) as caught:
        select_device(name)
    return str(caught.value)


def test_the_cpu_is_always_there():
    select_device("cpu")
    assert paddle.get_device() == "cpu" and "cpu" in available_kinds()
    assert str(current_place()) == "Place(cpu)"
    assert not has_sync_batch_norm()


@without_gpu
@pytest.mark.parametrize("name", ["gpu", "gpu:3"])
def test_a_passl_file_runs_on_the_cpu_where_there_is_no_gpu_and_says_so(name, monkeypatch):
    warnings = []
    monkeypatch.setattr(device.logger, "warning", warnings.append)
    select_device(name)
    assert paddle.get_device() == "cpu"
    assert warnings == ["device: gpu was asked for, but this Paddle sees no GPU: running on the CPU"]


@pytest.mark.skipif("npu" in available_kinds(), reason="needs a Paddle without NPU")
@pytest.mark.parametrize("name", ["npu", "npu:0"])
def test_a_missing_npu_is_refused_with_what_to_install(name):
    message = refusal(name)
    assert message.startswith(
        "device: 'npu' needs Paddle's Ascend plugin, which is not installed (this Paddle has: cpu"
    )
    assert message.endswith("install paddle-custom-npu as docs/ascend.md says, or run elsewhere: -o device=cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "device: no device 'tpu'; this Paddle has: cpu"),
        ("", "device: no device ''; this Paddle has: cpu"),
        ("GPU", "device: no device 'GPU'; this Paddle has: cpu"),
        ("gpu:one", "device: 'gpu:one': expected a device such as cpu, gpu, gpu:1 or npu:0"),
        ("gpu:-1", "device: 'gpu:-1': expected a device such as cpu, gpu, gpu:1 or npu:0"),
    ],
)
def test_what_is_no_device_is_refused(name, message):
    assert refusal(name).startswith(message)


def test_an_index_that_paddle_refuses_is_refused_in_one_line():
    assert refusal("cpu:1").startswith("device: 'cpu:1' cannot be used: ")


@pytest.mark.parametrize(("operators", "has"), [({"sync_batch_norm": {"float32"}}, True), ({"batch_norm": {}}, False)])
def test_batch_norm_is_synchronised_where_there_is_a_kernel_for_it(monkeypatch, operators, has):
    monkeypatch.setattr(paddle, "get_device", lambda: "npu:1")
    monkeypatch.setattr(device, "kernels_of", {"npu": operators}.get)
    assert has_sync_batch_norm() is has


@pytest.fixture
def two_npus(monkeypatch):
    """Pretend that this Paddle has a plugin with two devices."""
    monkeypatch.setattr(paddle.device, "get_all_custom_device_type", lambda: ["npu"])
    monkeypatch.setattr(paddle.device, "get_available_custom_device", lambda: ["npu:0", "npu:1"])


def test_a_device_beyond_those_of_the_machine_is_refused_with_those_there_are(two_npus, monkeypatch):
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    assert refusal("npu:3") == "device: there is no 'npu:3', only npu:0, npu:1"
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4,5")
    assert refusal("npu:3") == "device: there is no 'npu:3', only npu:0, npu:1; ASCEND_RT_VISIBLE_DEVICES=4,5"


def test_a_single_device_of_a_plugin_has_number_0(two_npus, monkeypatch):
    assert devices_of("npu") == ["npu:0", "npu:1"] and devices_of("cpu") == ["cpu"] and devices_of("gpu") == []
    monkeypatch.setattr(paddle.device, "get_available_custom_device", lambda: ["npu"])
    assert devices_of("npu") == ["npu:0"]


@pytest.mark.parametrize(
    ("kernels", "environment", "views"),
    [
        ({}, None, False),
        ({}, "1", False),  # the user wants what the device cannot do
        ({"contiguous": {"float32"}}, None, False),
        ({"contiguous": {"float32"}}, "1", True),
    ],
)
def test_strided_views_are_left_out_on_devices_of_plugins(two_npus, monkeypatch, kernels, environment, views):
    monkeypatch.setattr(paddle, "set_device", lambda name: None)
    monkeypatch.setattr(device, "kernels_of", lambda kind: kernels)
    monkeypatch.delenv("FLAGS_use_stride_kernel", raising=False)
    if environment:
        monkeypatch.setenv("FLAGS_use_stride_kernel", environment)
    flag = "FLAGS_use_stride_kernel"
    before = paddle.get_flags(flag)[flag]
    paddle.set_flags({flag: True})
    try:
        select_device("npu:1")
        assert paddle.get_flags(flag)[flag] is views
    finally:
        paddle.set_flags({flag: before})


class TestPeakMemory:
    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
    def test_of_a_cpu_it_is_the_processes_in_bytes(self):
        block = np.ones(peak_memory() // 4, "uint8")
        kernel = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024
        del block
        assert peak_memory() == pytest.approx(kernel, rel=0.02)

    def test_of_another_device_it_is_its_tensors(self, monkeypatch):
        monkeypatch.setattr(paddle, "get_device", lambda: "npu:3")
        monkeypatch.setattr(paddle.device, "max_memory_allocated", {"npu:3": 7 * 2**30}.get, raising=False)
        assert peak_memory() == 7 * 2**30

    @without_gpu
    def test_where_paddle_cannot_tell_it_there_is_none(self, monkeypatch):
        monkeypatch.setattr(paddle, "get_device", lambda: "npu:0")
        assert peak_memory() is None


@pytest.mark.parametrize(
    "error",
    [
        OSError("(External)  CustomDevice error, the error code is : 2.  (at /paddle/.../custom_device.cc:387)"),
        MemoryError("\n\nC++ Traceback\n...\nOut of memory error on npu:0. Cannot allocate 3.8MB memory on npu:0, ..."),
        MemoryError(
            "ResourceExhaustedError: \n\nOut of memory error on GPU 0. Cannot allocate 8GB memory on GPU 0, ..."
        ),
        MemoryError("(ResourceExhausted) Fail to alloc memory of 400000000000000 size, error code is 12."),
    ],
)
def test_a_devices_lack_of_memory_is_one_line(error):
    one_line = "^not enough memory on cpu: use a smaller batch_size, accum_steps, .*$"
    with pytest.raises(DeviceError, match=one_line), lack_of_memory_told():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError("(External)  CustomDevice error, the error code is : 3.  (at /paddle/.../custom_device.cc:799)"),
        OSError(28, "No space left on device", "latest.pdparams"),
        MemoryError("Unable to allocate 3.00 GiB for an array with shape (805306368,)"),
    ],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, lack_of_memory_told():
        raise error
    assert caught.value is error
