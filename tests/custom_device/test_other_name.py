"""A device of another name: nothing in this project knows `npu`, but for what is Ascend's own."""

import os
import subprocess
import sys

import pytest
from plugin import DEVICE, HERE, ROOT

OTHER = "accelerator"
THE_SAME = (  # of all the tests here, which TEST_DEVICE_TYPE runs on a device of any name
    "test_one_device.py::test_the_demo_weights_have_the_cpus_logits[0]",
    "test_one_device.py::test_a_training_has_the_cpus_losses_and_evaluations[averaged and accumulated]",
    f"test_one_device.py::test_a_checkpoint_of_one_device_goes_on_on_the_other[cpu-{OTHER}:1]",
    "test_half_precision.py::test_half_precision_trains_as_float32_and_resumes_exactly[float16-O2]",
    "test_copies.py::test_else_an_iteration_uploads_its_batch_and_reads_the_loss_and_the_norm[plain]",
    "test_two_devices.py::test_they_train_to_the_cpus_weights[0]",
)


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == OTHER, reason="all tests run on that device")
def test_the_same_tests_pass_on_a_device_of_another_name(build_device, tmp_path):
    command = (sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--basetemp", tmp_path / "tests")
    result = subprocess.run(
        [*map(str, command), *(str(HERE / name) for name in THE_SAME)],
        cwd=ROOT,
        env={**os.environ, "TEST_DEVICE_TYPE": OTHER, "TEST_DEVICE_BUILT": str(build_device(OTHER))},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0 and "SKIPPED" not in result.stdout, result.stdout + result.stderr


@pytest.mark.slow
def test_bfloat16_is_refused_where_paddle_would_not_cast_to_it(build_device, scenario, tmp_path):
    message = scenario(build_device(OTHER), "bfloat16_error", tmp_path, f"{OTHER}:0")
    assert f"AMP.dtype: {OTHER}:0 has no bfloat16 training; try the other dtype, or use_amp: false" in message
