"""A device of another name: nothing in this project knows `npu`."""

import pytest
from tiny_run import json_lines, tiny_run


@pytest.fixture(scope="module")
def accelerator(build_device):
    return build_device("accelerator")


@pytest.mark.slow
def test_a_training_has_the_cpus_losses(accelerator, scenario, tmp_path):
    tiny_run(tmp_path / "cpu")
    expected = json_lines(tmp_path / "cpu" / "out")
    found = scenario(accelerator, "train", tmp_path / "device", "device=accelerator:1")
    losses = [[line["loss"] for line in lines if line["mode"] == "train"] for lines in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 12


@pytest.mark.slow
def test_bfloat16_is_refused_where_paddle_would_not_cast_to_it(accelerator, scenario, tmp_path):
    message = scenario(accelerator, "bfloat16_error", tmp_path, "accelerator:0")
    assert "AMP.dtype: accelerator:0 has no bfloat16 training; try the other dtype, or use_amp: false" in message
