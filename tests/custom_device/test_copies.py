"""Every copy between host and device of a training: which are Paddle's way out, and which the project's own."""

import json
from collections import Counter

import paddle
import pytest
from plugin import DEVICE
from test_one_device import DISTILLATION
from test_two_devices import BATCHES, HERE, launch
from tiny_run import tiny_file

from passl_xcit.utils.kernels import CAN_RECORD

pytestmark = pytest.mark.skipif(not CAN_RECORD, reason="this Paddle does not log its kernels")
LOGGED = {"TEST_DEVICE_LOG": 1, "GLOG_minloglevel": 0}
NO_LINE = ("epochs=1", "log_config.interval=50")  # the first iteration alone writes a line
EMA = "custom_config=[{name: EvaluateHook}, {name: EMAHook, decay: 0.9}]"
IMAGES, TARGETS, NUMBER = 4 * 3 * 8 * 8 * 4, 4 * 3 * 4, 4  # bytes: of a batch and of its soft labels, and of a number
# In a step of the tiny training, with Paddle 3.3.1. 31 more are views, which each plugin's device has from Paddle.
ON_DEVICE = {"add": 38, "full": 5, "multiply_grad": 14}  # 4 of the sums are the log's
FELL_BACK = {
    **{"adamw": 51, "square": 51, "stack": 1, "assign": 6},  # updates, norm of the gradient, statistics of BatchNorm
    **{"argmax": 1, "topk": 1, "equal": 1, "log_softmax": 1, "log_softmax_grad": 1, "sum": 58, "sum_grad": 4},
    **{"matmul": 15, "matmul_grad": 15, "conv2d": 2, "conv2d_grad": 2, "softmax": 2, "softmax_grad": 2},
    **{"depthwise_conv2d": 2, "depthwise_conv2d_grad": 2, "gelu": 4, "gelu_grad": 4, "mean": 1, "mean_grad": 1},
    **{"batch_norm": 3, "batch_norm_grad": 3, "layer_norm": 6, "layer_norm_grad": 6, "sqrt": 3, "sqrt_grad": 2},
    **{"uniform": 3, "less_than": 3, "dropout": 7, "dropout_grad": 7, "divide": 4, "divide_grad": 1, "cast": 6},
    **{"concat": 6, "concat_grad": 3, "slice": 8, "slice_grad": 7, "split": 1, "split_with_num": 2, "scale": 16},
    **{"transpose": 7, "transpose_grad": 7, "unsqueeze": 3, "unsqueeze_grad": 2, "expand": 1, "expand_grad": 1},
    **{"clip": 2, "clip_grad": 2, "multiply": 14, "add_grad": 20},
}


@pytest.mark.slow
def test_an_operator_copies_each_input_from_the_device_and_each_output_to_it_where_it_has_no_kernel_there(
    device, scenario
):
    found = scenario(device, "copies_of_operators", f"{DEVICE}:0", **LOGGED)
    copies = {
        name: (log["of_operators"].get("from", 0), log["of_operators"].get("to", 0)) for name, log in found.items()
    }
    assert copies == {
        **{"matmul": (2, 1), "conv2d": (2, 1), "layer_norm": (3, 3), "concat": (3, 1), "split": (1, 2)},
        **{"uniform": (0, 1), "item": (1, 1), "add": (0, 0), "full": (0, 0), "reshape": (0, 0), "to_tensor": (0, 0)},
    }
    others = {name: log["others"] for name, log in found.items() if any(log["others"].values())}
    assert others == {"item": {"to": [], "from": [NUMBER]}, "to_tensor": {"to": [20], "from": []}}


@pytest.fixture(scope="module")
def steady(device, scenario, tmp_path_factory):
    """What each iteration of a training and an evaluation after it copied: with a line of the log each time."""
    return scenario(device, "iterations", tmp_path_factory.mktemp("steady"), f"{DEVICE}:0", "epochs=1", **LOGGED)


@pytest.mark.slow
@pytest.mark.skipif(paddle.__version__ != "3.3.1", reason="counted with Paddle 3.3.1")
def test_a_training_step_has_so_many_kernels_and_so_many_of_them_fall_back(steady, device, scenario, tmp_path):
    *iterations, _ = steady
    views = {"flatten": 5, "flatten_grad": 5, "reshape": 11, "reshape_grad": 10}
    for found in iterations[1:]:
        assert found["on_cpu"] == FELL_BACK and sum(found["on_cpu"].values()) == 384
        assert found["on_device"] == {**ON_DEVICE, **views}
        assert found["of_operators"] == {"to": 683, "from": 913}
    recorded = scenario(device, "calls_of_step", tmp_path, f"{DEVICE}:0", **LOGGED)
    assert Counter(operator for operator, _, _, ran_on in recorded if ran_on == "CPU") == FELL_BACK


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [(), (EMA, "accum_steps=2"), (DISTILLATION,), ("use_amp=true", "AMP={level: O2, dtype: float16}", EMA)],
    ids=["plain", "averaged and accumulated", "distilled", "half precision"],
)
def test_else_an_iteration_uploads_its_batch_and_reads_the_loss_and_the_norm(overrides, device, scenario, tmp_path):
    *iterations, evaluation = scenario(device, "iterations", tmp_path, f"{DEVICE}:0", *NO_LINE, *overrides, **LOGGED)
    assert len(iterations) == 6
    for found in iterations[1:]:
        assert found["others"] == {"to": [IMAGES, TARGETS], "from": [NUMBER, NUMBER]}
    evaluations = 2 if EMA in overrides else 1  # of four batches each
    assert len(evaluation["others"]["to"]) == 4 * 2 * evaluations and len(evaluation["others"]["from"]) == evaluations


@pytest.mark.slow
def test_a_line_of_the_log_reads_the_last_and_the_mean_of_its_four_values(steady):
    for found in steady[1:-1]:
        assert found["others"] == {"to": [IMAGES, TARGETS], "from": [NUMBER] * (2 + 2 * 4)}


@pytest.mark.slow
def test_two_processes_ask_one_another_besides_whether_to_stop(device, tmp_path):
    tiny_file(tmp_path)
    scenario = (HERE / "scenarios.py", "iterations", tmp_path, DEVICE, BATCHES, *NO_LINE)
    code, output = launch(device, tmp_path, *scenario, **LOGGED)
    assert code == 0, output
    *iterations, _ = json.loads(next(line for line in output.splitlines() if line.startswith("[{")))
    for found in iterations[1:]:
        assert found["others"]["to"] == [NUMBER, IMAGES // 2, TARGETS // 2] and len(found["others"]["from"]) == 3
