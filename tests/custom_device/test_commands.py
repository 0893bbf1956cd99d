"""The commands of docs/ascend.md, with models and images so small that a run on the test device takes seconds."""

import os
import re
import signal
import socket
import subprocess

import numpy as np
import plugin
import pytest
from plugin import DEVICE, ROOT
from tiny_ascend import tiny_overrides, write_data
from tiny_run import json_lines

from passl_xcit.modeling.checkpoint_formats import read_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE != "npu", reason="the configs of these commands say npu"),
]

LAUNCH = "-m paddle.distributed.launch"
XCIT, CROSSVIT = "configs/xcit/xcit_tiny_12_p16_ascend.yaml", "configs/crossvit/crossvit_15_ascend.yaml"


def tiny(config):
    """The options that make `config` small."""
    return [word for override in tiny_overrides(config) for word in ("-o", override)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def start(device):
    """Start `python COMMAND MORE...` in the project's folder; what is left at the end is killed."""
    started = []

    def start(command, *more, **variables):
        options = {"cwd": ROOT, "stderr": subprocess.STDOUT, "start_new_session": True, "variables": variables}
        started.append(plugin.start(device, *command.split(), *more, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def run(start):
    """Run such a command to its end: (exit code, output)."""

    def run(command, *more, **variables):
        process = start(command, *more, **variables)
        output, _ = process.communicate(timeout=150)
        return process.returncode, output

    return run


@pytest.fixture(scope="module", params=[DEVICE, "cpu"])
def two_processes(request, data, run, tmp_path_factory):
    """What two processes of one node print and write: (device, output, folder)."""
    folder = tmp_path_factory.mktemp("one_node")
    command = f"{LAUNCH} --devices 0,1 --log_dir {folder}/log tools/train.py -c {XCIT} --data_dir {data}"
    code, output = run(command, *tiny(XCIT), "-o", f"device={request.param}", "--output_dir", folder)
    assert code == 0, output
    return request.param, output, folder


def accuracy(output):
    return float(re.search(r"Validate Epoch \[1\] acc1 \( *([\d.]+)\)", output).group(1))


@pytest.mark.parametrize("config, options", [(XCIT, ()), (CROSSVIT, ()), (XCIT, ("-o", "AMP.dtype=bfloat16"))])
def test_one_card_trains_and_evaluates(config, options, data, run, tmp_path):
    more = [*tiny(config), *options]
    command = f"tools/train.py --config {config} --data_dir {data} --distribute False"
    code, output = run(command, *more, "--output_dir", tmp_path)
    assert code == 0, output
    assert f"on Place({DEVICE}:0) device" in output
    assert re.search(r"learning rate \S+ x global batch 4 \(4 x 1 process\) / 8 = ", output)
    checkpoint = tmp_path / "latest.pdparams"
    code, evaluated = run(f"tools/validate.py -c {config} --data_dir {data} --ckpt_path {checkpoint}", *more)
    assert code == 0, evaluated
    assert f"on Place({DEVICE}:0) device" in evaluated and "Evaluate total samples 15" in evaluated
    assert accuracy(evaluated) == pytest.approx(accuracy(output), abs=100 / 15 + 1e-3)  # float32 and O2: an image


def test_several_cards_have_a_process_each(two_processes):
    device, output, folder = two_processes
    assert "learning rate 5.000e-04 x global batch 8 (4 x 2 processes) / 8 = 5.000e-04" in output
    for rank, name in enumerate(("log.txt", "log.txt.rank1")):
        log = (folder / name).read_text()
        own, there = (f"{DEVICE}:{rank}", f"{DEVICE}:0, {DEVICE}:1") if device == DEVICE else ("cpu", "cpu")
        assert f"2 processes; process {rank} on {own}, of {there}\n" in log
        assert f"on Place({own}) device" in log


def test_two_nodes_train_as_two_processes_of_one(two_processes, data, start, tmp_path):
    """Both nodes are this machine."""
    device, _, one_node = two_processes
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        launch = f"{LAUNCH} --master 127.0.0.1:{probe.getsockname()[1]} --nnodes 2"
    train = f"tools/train.py -c {XCIT} --data_dir {data} --output_dir {tmp_path}/out -o device={device}"
    nodes = [start(f"{launch} --devices {n} --log_dir {tmp_path}/log{n} {train}", *tiny(XCIT)) for n in (0, 1)]
    for node in nodes:
        output, _ = node.communicate(timeout=150)
        assert node.returncode == 0, output
    assert json_lines(tmp_path / "out") == json_lines(one_node)
    found, expected = (read_file(folder / "latest.pdparams")["state_dict"] for folder in (tmp_path / "out", one_node))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_devices_are_counted_among_those_that_are_visible(data, run, tmp_path):
    command = f"tools/train.py -c {XCIT} --data_dir {data} -o device={DEVICE}:1 --output_dir {tmp_path}/out"
    code, output = run(command, *tiny(XCIT), ASCEND_RT_VISIBLE_DEVICES="1")
    assert code == 2 and not (tmp_path / "out").exists()
    assert output.splitlines()[-1] == (
        f"error: -o device={DEVICE}:1: device: there is no '{DEVICE}:1', only {DEVICE}:0; ASCEND_RT_VISIBLE_DEVICES=1"
    )


def test_processes_that_the_launcher_gave_no_device_are_refused(data, run, tmp_path):
    """As Paddle 3.0's does where PADDLE_XCCL_BACKEND is not set: all of them would train on the first device."""
    command = f"tools/train.py -c {XCIT} --data_dir {data} --output_dir {tmp_path}/out"
    code, output = run(command, *tiny(XCIT), PADDLE_TRAINERS_NUM=2, PADDLE_TRAINER_ID=1, PADDLE_LOCAL_SIZE=2)
    assert code == 2 and not (tmp_path / "out").exists()
    assert f"the launcher gave this process no {DEVICE}: set PADDLE_XCCL_BACKEND={DEVICE} and say --devices" in output
