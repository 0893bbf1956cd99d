"""What the pre-flight foresees on a CPU is what the device runs."""

import pytest
from plugin import DEVICE

BFLOAT16 = pytest.param("bfloat16", marks=pytest.mark.skipif(DEVICE != "npu", reason="Paddle: not on every device"))


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, "O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_every_operator_that_runs_was_foreseen_in_its_type(level, dtype, device, scenario, tmp_path):
    amp = ("use_amp=true", f"AMP={{level: {level}, dtype: {dtype}}}") if level else ()
    found = scenario(device, "foreseen_and_run", tmp_path, f"{DEVICE}:0", *amp, GLOG_minloglevel=0)
    foreseen, run = ({tuple(call) for call in found[name]} for name in ("foreseen", "run"))
    assert run <= foreseen and len(run) > 50
    assert not found["missing"]
    assert level or {operator for operator, _ in run} == {operator for operator, _ in foreseen}
    products = {("matmul", dtype), ("matmul_grad", dtype), ("conv2d", dtype)}
    assert not products & foreseen if level is None else products <= run
