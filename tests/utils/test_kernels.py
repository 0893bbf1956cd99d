"""Which kernels there are, and which ones run."""

import runpy
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from paddle.base import core

from passl_xcit.utils import kernels
from passl_xcit.utils.errors import UserError
from passl_xcit.utils.kernels import (
    Call,
    can_run,
    kernels_of,
    kernels_of_ascend,
    only_in_float32,
    recorded_calls,
)

ROOT = Path(__file__).resolve().parents[2]


def test_the_cpu_has_the_kernels_that_it_runs():
    kernels = kernels_of("cpu")
    assert "float32" in kernels["matmul_grad"] and "int64" in kernels["argmax"]
    assert "float16" not in kernels["matmul"] and "sync_batch_norm" not in kernels


@pytest.mark.parametrize(
    "operator, types",
    [  # from the C++ names of the table
        ("abs", {"float32", "bfloat16", "float16", "float64", "int64"}),
        ("bitwise_and", {"bool", "uint8", "int8", "int16", "int32", "int64"}),
        ("one_hot", {"int32", "int64"}),
        ("less_than", {"bool", "int16", "int32", "int64", "float32", "float16", "float64"}),
        ("batch_norm", {"float32", "float64", "float16"}),
    ],
)
def test_the_table_of_ascend_is_in_paddles_words(operator, types):
    assert kernels_of_ascend()[operator] == types


def test_a_device_of_a_plugin_has_paddles_views_besides_its_own_kernels():
    ascend = kernels_of_ascend()
    assert "float16" in ascend["reshape"] and len(ascend) > 351
    assert "sync_batch_norm" not in ascend and "bicubic_interp" not in ascend


def test_all_types_of_the_table_are_paddles():
    types = set().union(*kernels_of_ascend().values())
    assert all(hasattr(paddle, name) for name in types - {"float8_e4m3fn", "float8_e5m2"})


def test_calls_are_recorded_with_their_gradients_and_types(capfd):
    layer = paddle.nn.Linear(2, 3)
    with recorded_calls() as calls:
        loss = paddle.nn.functional.gelu(layer(paddle.ones([4, 2]))).sum()
        loss.backward()
        paddle.to_tensor([1, 2]).argmax()
    noted = len(calls)
    layer(paddle.ones([4, 2]))
    assert len(calls) == noted
    assert {call.operator for call in calls} >= {"matmul", "matmul_grad", "gelu", "gelu_grad", "sum_grad", "argmax"}
    assert Call("argmax", "int64", "CPU", "CPU") in calls and Call("gelu", "float32", "CPU", "CPU") in calls
    assert "kernel" not in capfd.readouterr().err


@pytest.mark.slow
def test_an_operator_that_has_run_before_the_first_recording_is_recorded():
    program = """
import paddle
from passl_xcit.utils.kernels import recorded_calls
paddle.ones([2]).exp()
with recorded_calls() as calls:
    paddle.ones([2]).exp()
print([call.operator for call in calls])
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["['full', 'exp']"], result.stderr


def test_what_ends_in_an_error_is_recorded_until_then():
    with pytest.raises(ValueError), recorded_calls() as calls:
        paddle.ones([2, 2]).exp().matmul(paddle.ones([3, 3]))
    assert calls[-1].operator == "matmul"


def test_an_operator_that_a_device_lacks_runs_on_the_cpu():
    kernels, cpu = {"add": {"float32"}}, {"add": {"float32", "float16"}, "exp": {"float32"}}
    assert can_run("add", "float32", kernels, cpu) and can_run("exp", "float32", kernels, cpu)
    assert not can_run("add", "float16", kernels, cpu)  # the device has one, for other types
    assert not can_run("exp", "float16", kernels, cpu) and not can_run("log", "float32", kernels, cpu)


def test_operators_without_a_kernel_of_the_type_or_its_gradient_stay_in_float32():
    half, single = {"float16", "float32"}, {"float32"}
    kernels = {"subtract": single, "matmul": half, "matmul_grad": half, "tanh": half, "tanh_grad": single}
    found = only_in_float32("float16", kernels, {"relu": single, "relu_grad": single})
    assert found == {"subtract", "elementwise_sub", "tanh", "tanh_grad", "relu", "relu_grad"}


def test_on_ascend_batch_norm_is_not_for_bfloat16_and_matrix_products_are():
    found = only_in_float32("bfloat16", kernels_of_ascend(), kernels_of("cpu"))
    assert {"batch_norm", "depthwise_conv2d", "p_norm", "dropout", "elementwise_sub", "relu"} <= found
    assert not found & {"matmul_v2", "conv2d", "layer_norm", "gelu", "softmax", "elementwise_add", "elementwise_mul"}


def test_a_paddle_that_does_not_tell_what_it_runs_is_refused_when_it_is_asked(monkeypatch):
    """Paddle 3.0.0: the import works."""
    monkeypatch.delattr(core, "set_vlog_level")
    recorded = runpy.run_path(kernels.__file__)["recorded_calls"]()
    with pytest.raises(UserError, match=r"Paddle \S+ does not tell which kernels it runs; 3.3.1 does"):
        recorded.__enter__()
