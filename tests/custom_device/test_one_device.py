"""One process on a device without hardware: the same numbers as on the CPU."""

import signal
from pathlib import Path

import numpy as np
import plugin
import pytest
from tiny_run import json_lines, tiny_run

SCENARIOS = Path(__file__).parent / "scenarios.py"


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 200])
def test_the_demo_weights_have_the_cpus_logits(delay, npu, scenario):
    """Also where every copy starts 0.2 ms late, which shows a result that is read before it is there."""
    found = scenario(npu, "demo_logits", "cpu", "npu:0", "npu:1", TEST_DEVICE_DELAY_US=delay)
    cpu = found["cpu"]
    assert cpu["right"] > 150 and cpu["place"] == "Place(cpu)"
    for device in ("npu:0", "npu:1"):
        assert found[device]["place"] == f"Place({device})"
        assert found[device]["right"] == cpu["right"]
        np.testing.assert_allclose(found[device]["logits"], cpu["logits"], atol=1e-5)
    assert found["counters"]["host_to_device"] > 100 and found["counters"]["refused"] == 0


@pytest.mark.slow
def test_a_training_has_the_cpus_losses_and_evaluations(npu, scenario, tmp_path):
    tiny_run(tmp_path / "cpu")
    expected = json_lines(tmp_path / "cpu" / "out")
    found = scenario(npu, "train", tmp_path / "npu", "device=npu:0")
    assert len(found) == len(expected) == 14
    for line, other in zip(found, expected):
        assert line == {
            **other,
            **{key: pytest.approx(value, rel=1e-4) for key, value in other.items() if key != "mode"},
        }


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [("npu:0", "cpu"), ("cpu", "npu:1")])
def test_a_checkpoint_of_one_device_goes_on_on_the_other(first, second, npu, scenario, tmp_path):
    tiny_run(tmp_path / "whole")
    scenario(npu, "train", tmp_path / "parts", f"device={first}", "epochs=1")
    found = scenario(npu, "resume", tmp_path / "parts", f"device={second}")
    expected = json_lines(tmp_path / "whole" / "out")
    assert [line["iter"] for line in found] == [line["iter"] for line in expected]
    losses = [[line["loss"] for line in lines if line["mode"] == "train"] for lines in (found, expected)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_a_device_pointer_faults_on_the_host(npu):
    process = plugin.start(npu, SCENARIOS, "touch_device_memory", "npu:0")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGSEGV


@pytest.mark.slow
def test_memory_is_counted(npu, scenario):
    held, after, peak = scenario(npu, "memory", "npu:0")
    assert held == peak and held - after == 4 << 20
