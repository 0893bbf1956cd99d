"""AMP O1 and O2, float16 and bfloat16, on a device that has the operators of Ascend's plugin for them."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from plugin import DEVICE
from test_one_device import DISTILLATION
from tiny_run import json_lines, tiny_run

from passl_xcit.utils.kernels import CAN_RECORD

EMA = "custom_config=[{name: EvaluateHook}, {name: EMAHook, decay: 0.9}]"
# Paddle casts to bfloat16 on custom devices of a few names only.
HAS_BFLOAT16 = pytest.mark.skipif(DEVICE != "npu", reason="Paddle: not on every device")
BFLOAT16 = pytest.param("bfloat16", marks=HAS_BFLOAT16)
ONE_IMAGE = 100 / 15 + 1e-6  # of the 15 that are evaluated, in percent


def amp(level, dtype, scale=None):
    return ("use_amp=true", f"AMP={{level: {level}, dtype: {dtype}, scale_loss: {'null' if scale is None else scale}}}")


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
    """The lines that a training in float32 on the CPU logs."""
    folder = tmp_path_factory.mktemp("float32")
    tiny_run(folder, EMA)
    return json_lines(folder / "out")


def of_mode(lines, mode, key):
    return [line[key] for line in lines if line["mode"] == mode]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_half_precision_trains_as_float32_and_resumes_exactly(level, dtype, float32, device, scenario, tmp_path):
    found = scenario(device, "whole_and_resumed", tmp_path, f"device={DEVICE}:0", EMA, *amp(level, dtype, 1024))
    whole, resumed = found["lines"]
    assert whole == resumed and found["differences"] == []
    assert found["types"] == ["float32"]
    losses, rtol = of_mode(whole, "train", "loss"), {"float16": 2e-3, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(losses, of_mode(float32, "train", "loss"), rtol=rtol)
    assert losses != of_mode(float32, "train", "loss")
    np.testing.assert_allclose(of_mode(whole, "train", "grad_norm"), of_mode(float32, "train", "grad_norm"), rtol=0.02)
    for mode in ("val", "val_ema"):
        np.testing.assert_allclose(of_mode(whole, mode, "acc1"), of_mode(float32, mode, "acc1"), atol=ONE_IMAGE)


@pytest.mark.slow
def test_a_distillation_in_half_precision_trains_as_one_in_float32_and_resumes_exactly(device, scenario, tmp_path):
    tiny_run(tmp_path / "float32", DISTILLATION)
    expected = of_mode(json_lines(tmp_path / "float32" / "out"), "train", "loss")
    more = (DISTILLATION, EMA, *amp("O2", "float16", 1024))
    found = scenario(device, "whole_and_resumed", tmp_path, f"device={DEVICE}:0", *more)
    whole, resumed = found["lines"]
    assert whole == resumed and found["differences"] == []
    np.testing.assert_allclose(of_mode(whole, "train", "loss"), expected, rtol=2e-3)
    assert of_mode(whole, "train", "loss") != expected


@pytest.mark.slow
@pytest.mark.parametrize("level, masters", [("O1", 0), ("O2", 33)])
def test_a_scale_that_is_too_high_falls_and_the_weights_that_are_saved_are_the_optimizers(
    level, masters, device, scenario, tmp_path
):
    found = scenario(device, "whole_and_resumed", tmp_path, f"device={DEVICE}:0", EMA, *amp(level, "float16", 2**24))
    whole, resumed = found["lines"]
    assert whole == resumed and found["differences"] == []
    norms = of_mode(whole, "train", "grad_norm")
    overflows, good_steps = norms.count(None), norms[::-1].index(None)
    assert norms[:2] == [None, None] and overflows < 12 and good_steps
    assert found["scalers"] == [{"scale": 2.0 ** (24 - overflows), "good_steps": good_steps}] * 2
    assert found["masters"] == masters and found["masters_saved"]


@pytest.mark.slow
@pytest.mark.skipif(not CAN_RECORD, reason="this Paddle does not log its kernels")
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_products_are_in_half_precision_and_softmax_and_losses_are_not(level, dtype, device, scenario, tmp_path):
    calls = scenario(device, "calls_of_step", tmp_path, f"{DEVICE}:0", *amp(level, dtype), GLOG_minloglevel=0)
    types = defaultdict(Counter)
    for operator, found, *_ in calls:
        types[operator][found] += 1
    assert types["matmul"][dtype] >= 10 and types["matmul_grad"][dtype] >= 10
    assert set(types["conv2d"]) == set(types["conv2d_grad"]) == {dtype}
    for name in ("softmax", "softmax_grad", "log_softmax", "log_softmax_grad", "uniform"):
        assert set(types[name]) == {"float32"}, name
    if dtype == "bfloat16":
        for name in ("batch_norm", "batch_norm_grad", "depthwise_conv2d", "depthwise_conv2d_grad"):
            assert set(types[name]) == {"float32"}, name
