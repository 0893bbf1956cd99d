"""One process on a device without hardware: the same numbers as on the CPU."""

import signal
import time

import numpy as np
import plugin
import pytest
from plugin import DEVICE, ROOT
from tiny_run import json_lines, tiny_file, tiny_run


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 200])
def test_the_demo_weights_have_the_cpus_logits(delay, device, scenario):
    """Also where every copy starts 0.2 ms late, which shows a result that is read before it is there."""
    found = scenario(device, "demo_logits", "cpu", f"{DEVICE}:0", f"{DEVICE}:1", TEST_DEVICE_DELAY_US=delay)
    cpu = found["cpu"]
    assert cpu["right"] > 150 and cpu["place"] == "Place(cpu)"
    for name in (f"{DEVICE}:0", f"{DEVICE}:1"):
        assert found[name]["place"] == f"Place({name})"
        assert found[name]["right"] == cpu["right"]
        np.testing.assert_allclose(found[name]["logits"], cpu["logits"], atol=1e-5)
    assert found["counters"]["host_to_device"] > 100 and found["counters"]["refused"] == 0


def tiny_model(option):
    backbone = f"{{name: XCiT, patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2, cls_attn_layers: 1, {option}}}"
    head = "{name: SwinTransformerClsHead, in_channels: 8, num_classes: 3}"
    return f"{{name: Classification, backbone: {backbone}, head: {head}}}"


MODELS = f"[{{Teacher: {tiny_model('eta: 1.0')}}}, {{Student: {tiny_model('use_recompute: true')}}}]"
DISTILLATION = f"model={{name: DistillationWrapper, distillation_type: soft, models: {MODELS}}}"
EMA = "custom_config=[{name: EvaluateHook}, {name: EMAHook, decay: 0.9}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [(), (EMA, "accum_steps=2"), (DISTILLATION,)],
    ids=["plain", "averaged and accumulated", "distilled"],
)
def test_a_training_has_the_cpus_losses_and_evaluations(overrides, device, scenario, tmp_path):
    tiny_run(tmp_path / "cpu", *overrides)
    expected = json_lines(tmp_path / "cpu" / "out")
    found = scenario(device, "train", tmp_path / "device", f"device={DEVICE}:0", *overrides)
    assert len(found) == len(expected) >= 14
    for line, other in zip(found, expected):
        numbers = {key: pytest.approx(value, rel=1e-4) for key, value in other.items() if key != "mode"}
        assert line == {**numbers, "mode": other["mode"]}


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [(f"{DEVICE}:0", "cpu"), ("cpu", f"{DEVICE}:1")])
def test_a_checkpoint_of_one_device_goes_on_on_the_other(first, second, device, scenario, tmp_path):
    tiny_run(tmp_path / "whole")
    scenario(device, "train", tmp_path / "parts", f"device={first}", "epochs=1")
    found = scenario(device, "resume", tmp_path / "parts", f"device={second}")
    expected = json_lines(tmp_path / "whole" / "out")
    assert [line["iter"] for line in found] == [line["iter"] for line in expected]
    losses = [[line["loss"] for line in lines if line["mode"] == "train"] for lines in (found, expected)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.fixture(scope="module")
def three_epochs(device, scenario, tmp_path_factory):
    """The log of a training at one go."""
    return scenario(device, "train", tmp_path_factory.mktemp("whole"), f"device={DEVICE}:1", "epochs=3")


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(number, code, three_epochs, device, tmp_path):
    command = (ROOT / "tools" / "train.py", "-c", tiny_file(tmp_path), "--resume", "auto")
    command += ("-o", f"device={DEVICE}:1", "-o", "epochs=3")
    process = plugin.start(device, *command, variables={"TEST_DEVICE_DELAY_US": 200})
    while not (tmp_path / "out" / "epoch_1.pdparams").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=100)
    assert process.returncode == code
    assert (tmp_path / "out" / "interrupted.pdparams").exists() == (number == signal.SIGTERM)
    process = plugin.start(device, *command)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    lines = json_lines(tmp_path / "out")
    # what was trained after the checkpoint of a run that was killed is trained, and logged, once more
    assert {line["mode"] + str(line["iter"]): line for line in lines} == {
        line["mode"] + str(line["iter"]): line for line in three_epochs
    }
    assert number == signal.SIGKILL or len(lines) == len(three_epochs)
