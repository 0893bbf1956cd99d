"""Which operators a config runs, and what a device has for them."""

import contextlib
from pathlib import Path

import paddle
import pytest

from passl_xcit.engine import preflight as module
from passl_xcit.engine.preflight import FALLS_BACK, MISSING, NATIVE, Kernels, preflight
from passl_xcit.utils.config import load_config, parse_override
from passl_xcit.utils.device import available_kinds
from passl_xcit.utils.errors import ConfigError, UserError
from passl_xcit.utils.kernels import kernels_of, kernels_of_ascend

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS / "demo" / "xcit_demo_p4_fashion_mnist.yaml"
ONE_BLOCK = ("model.architecture.depth=1", "model.architecture.cls_attn_layers=1")
without_npu = pytest.mark.skipif("npu" in available_kinds(), reason="this Paddle has an NPU")


def rows_of(config, *overrides, device="npu"):
    return preflight(load_config(config, [parse_override(text) for text in overrides]), device)


def amp(level, dtype, more=""):
    return ("use_amp=true", f"AMP={{level: {level}, dtype: {dtype}{more}}}")


@pytest.fixture
def kernels(monkeypatch):
    """Change what Ascend's plugin and the CPU have: kernels(device={operator: types}, cpu=...)."""

    def change(device=(), cpu=()):
        found = Kernels({**kernels_of_ascend(), **dict(device)}, {**kernels_of("cpu"), **dict(cpu)})
        monkeypatch.setattr(module, "kernels_for", lambda name: found)

    return change


@without_npu
@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*_ascend.yaml")), ids=lambda path: path.stem)
def test_ascend_has_every_kernel_that_a_shipped_config_for_it_needs(config):
    rows = rows_of(config)
    assert [row for row in rows if row.verdict != NATIVE] == []
    needed = {(row.operator, row.dtype) for row in rows}
    assert {("matmul", "float16"), ("matmul_grad", "float16"), ("softmax", "float32"), ("adamw", "float16")} <= needed


@without_npu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("folder", ["demo", "cifar10"])
def test_ascend_has_every_kernel_that_a_small_config_needs_in_half_precision(folder, level, dtype):
    for config in sorted((CONFIGS / folder).glob("*.yaml")):
        assert [row for row in rows_of(config, *amp(level, dtype)) if row.verdict != NATIVE] == [], config


def test_the_parts_of_a_run_are_told_apart():
    parts = {(row.operator, row.dtype): row.parts for row in rows_of(DEMO, *ONE_BLOCK)}
    assert parts["gelu", "float32"] == ("training", "evaluation", "export")
    assert parts["gelu_grad", "float32"] == parts["adamw", "float32"] == ("training",)
    assert parts["topk", "float32"] == ("training", "evaluation")
    assert not any(dtype in ("float16", "float64") for _, dtype in parts)


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_what_the_lists_leave_open_is_looked_up_in_both_types(level):
    types = {}
    for row in rows_of(DEMO, *ONE_BLOCK, *amp(level, "float16")):
        types.setdefault(row.operator, set()).add(row.dtype)
    assert types["matmul"] == types["matmul_grad"] | {
        "float32"
    }  # a product in float32 is XCA's, an export or O1's test
    assert types["softmax"] == {"float32"} and types["gelu"] == types["gelu_grad"] == {"float16", "float32"}
    assert ("float16" in types["adamw"]) == (level == "O2")


def test_what_has_no_kernel_in_half_precision_stays_in_float32():
    types = {row.dtype for row in rows_of(DEMO, *ONE_BLOCK, *amp("O2", "bfloat16")) if row.operator == "batch_norm"}
    assert types == {"float32"}


def test_a_missing_kernel_comes_first(kernels):
    kernels(device={"gelu": set(), "topk": set()}, cpu={"gelu": {"float64"}})
    first, second, third = rows_of(DEMO, *ONE_BLOCK)[:3]
    assert first == ("gelu", "float32", ("training", "evaluation", "export"), MISSING)
    assert second == ("topk", "float32", ("training", "evaluation"), FALLS_BACK)
    assert third.verdict == NATIVE


def test_what_the_user_wants_in_a_type_without_kernel_is_missing():
    wanted = ", auto_cast: {custom_white_list: [batch_norm]}"
    bad = [row for row in rows_of(DEMO, *ONE_BLOCK, *amp("O1", "bfloat16", wanted)) if row.verdict == MISSING]
    assert {(row.operator, row.dtype) for row in bad} == {("batch_norm", "bfloat16"), ("batch_norm_grad", "bfloat16")}


def test_neither_device_nor_log_are_changed(capfd):
    before = paddle.get_device()
    rows_of(DEMO, *ONE_BLOCK)
    output = capfd.readouterr()
    assert paddle.get_device() == before and output.out == ""


def test_on_the_cpu_all_is_native_and_in_float32_whatever_amp_says():
    rows = rows_of(DEMO, *ONE_BLOCK, *amp("O2", "float16"), device="cpu")
    assert {row.verdict for row in rows} == {NATIVE} and not {row.dtype for row in rows} & {"float16", "bfloat16"}


def test_a_device_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        rows_of(DEMO, device="tpu")


@pytest.mark.parametrize("overrides", [(), amp("O2", "float16")])
def test_a_paddle_that_logs_no_kernels_is_named(overrides, monkeypatch):
    monkeypatch.setattr(module, "recorded_calls", lambda: contextlib.nullcontext([]))
    with pytest.raises(UserError, match="this Paddle logs no kernels; if GLOG_minloglevel is set, unset it"):
        rows_of(DEMO, *ONE_BLOCK, *overrides)
