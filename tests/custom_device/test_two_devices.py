"""Two processes, each on a device of its own, talk through the device's own collective communication."""

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plugin
import pytest
from plugin import DEVICE
from test_half_precision import EMA, HAS_BFLOAT16, amp, of_mode
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


class Run(NamedTuple):
    folder: Path
    output: str  # of the first process
    models: list  # of each process
    counted: list  # of each process


def train(device_folder, folder, device, *options, **variables):
    """Train the tiny config in two processes, on a CPU by Paddle's operators, too: it is the talk that is compared."""
    folder.mkdir(exist_ok=True)
    options = ("-c", tiny_file(folder), "-o", BATCHES, "-o", f"device={device}", *options)
    variables.update(TEST_DEVICE_COUNTERS=folder / "counters", PASSL_XCIT_NATIVE="off")
    code, output = launch(device_folder, folder, DUMP, folder, *options, **variables)
    assert code == 0, output
    models = [read_file(folder / f"rank{rank}.pdparams") for rank in (0, 1)]
    models = [{name: array for name, array in model.items() if name != "pid"} for model in models]
    return Run(folder, output, models, plugin.written_counters(folder / "counters"))


@pytest.fixture(scope="module")
def on_cpu(device, tmp_path_factory):
    return train(device, tmp_path_factory.mktemp("cpu"), "cpu")


@pytest.fixture(scope="module")
def on_devices(device, tmp_path_factory):
    return train(device, tmp_path_factory.mktemp("devices"), DEVICE)


def assert_same_weights(models, expected_models):
    for model, expected in zip(models, expected_models):
        for name, array in expected.items():
            np.testing.assert_allclose(model[name], array, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 200])
def test_they_train_to_the_cpus_weights(delay, on_cpu, on_devices, device, tmp_path):
    run = train(device, tmp_path, DEVICE, TEST_DEVICE_DELAY_US=delay) if delay else on_devices
    assert f"Place({DEVICE}:0)" in run.output
    assert_same_weights(run.models, on_cpu.models)
    lines = [json_lines(each.folder / "out") for each in (run, on_cpu)]
    assert [line["acc1"] for line in lines[0]] == [line["acc1"] for line in lines[1]]
    counted = [counters for counters in run.counted if counters["collectives"]]
    assert len(counted) == 2 and counted[0]["collectives"] == counted[1]["collectives"] >= 12
    assert not any(counters["refused"] for counters in counted)


@pytest.mark.slow
def test_device_cpu_stays_on_the_cpu_where_the_launcher_finds_a_device(on_cpu):
    assert "Place(cpu)" in on_cpu.output and f"Place({DEVICE}" not in on_cpu.output
    assert not any(counters["host_to_device"] or counters["collectives"] for counters in on_cpu.counted)


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [(DEVICE, DEVICE), (DEVICE, "cpu"), ("cpu", DEVICE)])
def test_two_processes_go_on_with_a_checkpoint_of_two(first, second, on_cpu, on_devices, device, tmp_path):
    (tmp_path / "out").mkdir()
    before = on_cpu if first == "cpu" else on_devices
    shutil.copy(before.folder / "out" / "epoch_1.pdparams", tmp_path / "out")
    run = train(device, tmp_path, second, "--resume", "auto")
    assert f"Place({second}" in run.output
    assert_same_weights(run.models, on_cpu.models)
    lines = [line for line in json_lines(before.folder / "out") if line["iter"] > 6]
    if first == second:
        assert json_lines(tmp_path / "out") == lines
    assert len(lines) == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "level, dtype, rtol",
    [("O1", "float16", 2e-3), ("O2", "float16", 2e-3), pytest.param("O2", "bfloat16", 1e-2, marks=HAS_BFLOAT16)],
)
def test_they_train_in_half_precision_as_in_float32_and_resume_exactly(level, dtype, rtol, on_cpu, device, tmp_path):
    tiny_file(tmp_path)
    scenario = (HERE / "scenarios.py", "whole_and_resumed", tmp_path, f"device={DEVICE}", BATCHES, EMA)
    code, output = launch(device, tmp_path, *scenario, *amp(level, dtype, 1024))
    assert code == 0, output
    found = json.loads(next(line for line in output.splitlines() if line.startswith('{"lines"')))
    whole, resumed = found["lines"]
    assert whole == resumed and found["differences"] == []
    losses = [of_mode(lines, "train", "loss") for lines in (whole, json_lines(on_cpu.folder / "out"))]
    np.testing.assert_allclose(*losses, rtol=rtol)
    assert losses[0] != losses[1] and len(losses[0]) == 12


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
