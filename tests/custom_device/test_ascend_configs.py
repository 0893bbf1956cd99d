"""What the recipes for Ascend run. Ascend computes no float64 worth having."""

import pytest
from plugin import DEVICE
from tiny_ascend import CONFIGS


@pytest.mark.slow
@pytest.mark.skipif(DEVICE != "npu", reason="the configs say npu")
@pytest.mark.parametrize("config", CONFIGS)
def test_no_operator_of_a_training_and_its_evaluations_is_in_float64(config, device, scenario, tmp_path):
    """With mixing, label smoothing, O2, and a moving average where the recipe has one."""
    types = scenario(device, "calls_of_config", config, tmp_path, GLOG_minloglevel=0)
    assert {"float16", "float32"} <= {*types["matmul"], *types["softmax"]} and "adamw" in types
    assert {operator: found for operator, found in types.items() if "float64" in found} == {}
