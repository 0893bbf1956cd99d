"""Two processes, each on a device of its own, talk through the device's own collective communication."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import plugin
import pytest
from plugin import DEVICE
from tiny_run import json_lines, tiny_file

from passl_xcit.modeling.checkpoint_formats import read_file

HERE = Path(__file__).resolve().parent
DUMP = HERE.parent / "engine" / "train_and_dump.py"
BATCHES = "dataloader.train.sampler={batch_size: 2, shuffle: true, drop_last: true}"


def launch(device_folder, folder, *command, **variables):
    """Run `command` in two processes that see the device: (exit code, output of the first)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    launcher = ("-m", "paddle.distributed.launch", "--devices", "0,1", "--master", master, "--log_dir", folder / "log")
    process = plugin.start(
        device_folder, *launcher, *command, variables=variables, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=150)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def train(device_folder, folder, device, **variables):
    """Train the tiny config in two processes: (output, the model of each)."""
    folder.mkdir()
    overrides = ("-o", BATCHES, "-o", f"device={device}")
    code, output = launch(device_folder, folder, DUMP, folder, "-c", tiny_file(folder), *overrides, **variables)
    assert code == 0, output
    models = [read_file(folder / f"rank{rank}.pdparams") for rank in (0, 1)]
    return output, [{name: array for name, array in model.items() if name != "pid"} for model in models]


@pytest.fixture(scope="module")
def on_cpu(device, tmp_path_factory):
    """What two processes on the CPU train to: (folder, output, models)."""
    folder = tmp_path_factory.mktemp("two") / "cpu"
    counted = folder.parent / "counters"
    return folder, *train(device, folder, "cpu", TEST_DEVICE_COUNTERS=counted), plugin.written_counters(counted)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 200])
def test_they_train_to_the_cpus_weights(delay, on_cpu, device, tmp_path):
    output, models = train(
        device, tmp_path / "device", DEVICE, TEST_DEVICE_COUNTERS=tmp_path / "counters", TEST_DEVICE_DELAY_US=delay
    )
    assert f"Place({DEVICE}:0)" in output
    for model, expected in zip(models, on_cpu[2]):
        for name, array in expected.items():
            np.testing.assert_allclose(model[name], array, atol=1e-6, err_msg=name)
    lines = [json_lines(folder / "out") for folder in (tmp_path / "device", on_cpu[0])]
    assert [line["acc1"] for line in lines[0]] == [line["acc1"] for line in lines[1]]
    counted = [counters for counters in plugin.written_counters(tmp_path / "counters") if counters["collectives"]]
    assert len(counted) == 2 and counted[0]["collectives"] == counted[1]["collectives"] >= 12
    assert not any(counters["refused"] for counters in counted)


@pytest.mark.slow
def test_device_cpu_stays_on_the_cpu_where_the_launcher_finds_a_device(on_cpu):
    _, output, _, counted = on_cpu
    assert "Place(cpu)" in output and f"Place({DEVICE}" not in output
    assert not any(counters["host_to_device"] or counters["collectives"] for counters in counted)


@pytest.fixture(scope="module")
def collectives(device, tmp_path_factory):
    """{operation: array} of each of two processes."""
    folder = tmp_path_factory.mktemp("collectives")
    code, output = launch(device, folder, HERE / "scenarios.py", "collectives", folder, TEST_DEVICE_DELAY_US=300)
    assert code == 0, output
    return [np.load(folder / f"rank{rank}.npz") for rank in (0, 1)]


@pytest.mark.slow
def test_collective_operations_do_what_they_are_called(collectives):
    first, second = (np.arange(300_000) % 7 + 10.0 * rank + 1 for rank in (0, 1))
    expected = {
        "all_reduce SUM": [first + second] * 2,
        "all_reduce MAX": [second] * 2,
        "all_reduce MIN": [first] * 2,
        "all_reduce PROD": [first * second] * 2,
        "broadcast": [second] * 2,
        "all_gather": [np.concatenate([first, second])] * 2,
        "reduce_scatter": np.split(first + second, 2),
    }
    for rank, found in enumerate(collectives):
        names = [name for name in found if name != "refused"]
        assert {name.partition(" ")[2] for name in names} == set(expected) and len(names) == 34
        for name in names:
            np.testing.assert_array_equal(found[name], expected[name.partition(" ")[2]][rank], err_msg=name)


@pytest.mark.slow
def test_reductions_that_hccl_does_not_have_are_refused(collectives):
    """CANN's page of HcclAllReduce, for Atlas A2: int8 to int64, float16, float32, bfloat16; no product of the last."""
    refused = [f"{dtype} {name}" for dtype in ("float64", "uint8") for name in ("SUM", "MAX", "MIN", "PROD")]
    for found in collectives:
        assert sorted(found["refused"]) == sorted([*refused, "bfloat16 PROD"])
