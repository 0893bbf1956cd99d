"""Choosing a device, and saying why one cannot be had."""

import re
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_xcit.utils import device
from passl_xcit.utils.device import available_kinds, current_place, has_sync_batch_norm, peak_memory, select_device
from passl_xcit.utils.errors import ConfigError

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
    assert "install paddle-custom-npu" in message


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


@pytest.mark.parametrize(("current", "has"), [("gpu:0", True), ("cpu", False), ("npu:0", False)])
def test_only_gpus_have_sync_batch_norm(monkeypatch, current, has):
    monkeypatch.setattr(paddle, "get_device", lambda: current)
    assert has_sync_batch_norm() is has


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
