"""What the device refuses, in which order it works, and what a training does when its memory is full."""

import signal
import subprocess
from pathlib import Path

import plugin
import pytest
from plugin import DEVICE, ROOT
from tiny_run import json_lines, tiny_file, tiny_run

SCENARIOS = Path(__file__).parent / "scenarios.py"
NO_MEMORY = (
    f"error: not enough memory on {DEVICE}:0: use a smaller batch_size, accum_steps, which computes a batch in parts, "
    "or use_recompute"
)


@pytest.mark.slow
def test_a_device_pointer_faults_on_the_host(device):
    process = plugin.start(device, SCENARIOS, "touch_device_memory", f"{DEVICE}:0")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGSEGV


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_copy_from_or_to_where_the_memory_is_not_is_refused(number, device, scenario):
    found = scenario(device, "copies_by_pointer", f"{DEVICE}:{number}")
    (name, good), *others = found["copies"].items()
    assert (name, good) == ("device to host", [True, 0]) and found["brought"] == [7.0] * 4
    assert dict(others) == {name: [False, index + 1] for index, (name, _) in enumerate(others)} and len(others) == 6


@pytest.mark.slow
def test_a_stream_that_waits_for_an_event_goes_on_after_it_and_others_before(device, scenario):
    """0.2 s each: the three events of the first stream take 0.6 s."""
    states = scenario(device, "waiting_for_an_event", f"{DEVICE}:0", TEST_DEVICE_DELAY_US=200_000)
    assert all(first or not second for first, second, _ in states)
    assert any(third and not first for first, _, third in states) and states[-1] == [True, True, True]


@pytest.mark.slow
def test_memory_is_counted(device, scenario):
    held, after, peak, reserved = scenario(device, "memory", f"{DEVICE}:0")
    assert held == peak and held - after == 4 << 20 and reserved == 0


def train(device, folder, *overrides, memory):
    """`tools/train.py` on a device with so many bytes: (exit code, lines of the output)."""
    options = [word for override in (f"device={DEVICE}:0", *overrides) for word in ("-o", override)]
    command = (ROOT / "tools" / "train.py", "-c", tiny_file(folder), "--resume", "auto", *options)
    process = plugin.start(device, *command, variables={"TEST_DEVICE_MEMORY": memory}, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=150)
    return process.returncode, output.splitlines()


@pytest.mark.slow
def test_a_training_that_lacks_memory_says_so_in_one_line(device, tmp_path):
    code, lines = train(device, tmp_path, memory=60_000)
    assert code == 1 and lines[-1] == NO_MEMORY
    assert not any("Traceback" in line or "CustomDevice" in line for line in lines)
    assert not list((tmp_path / "out").glob("*.pdparams"))


@pytest.mark.slow
def test_an_epoch_whose_evaluation_lacks_memory_is_saved_and_goes_on_with_more(device, tmp_path):
    """Images of 64 pixels for the evaluation, 15 at once, are more than twice what the training takes."""
    as_array = "{name: Transpose}, {name: Normalize, mean: [110.0, 110.0, 110.0], std: [50.0, 50.0, 50.0]}"
    large = f"dataloader.val.dataset.transforms=[{{name: Resize, size: 64}}, {as_array}]"
    overrides = (large, "dataloader.val.sampler.batch_size=15")
    code, lines = train(device, tmp_path, *overrides, memory=500_000)
    assert code == 1 and lines[-1] == NO_MEMORY
    assert {path.name for path in (tmp_path / "out").glob("*.pdparams")} == {"interrupted.pdparams", "latest.pdparams"}
    code, lines = train(device, tmp_path, *overrides, memory=10**9)
    assert code == 0 and not any("Traceback" in line for line in lines)
    tiny_run(tmp_path / "whole", *overrides)
    found, expected = json_lines(tmp_path / "out"), json_lines(tmp_path / "whole" / "out")
    assert [(line["mode"], line["iter"]) for line in found] == [(line["mode"], line["iter"]) for line in expected]
    losses = [[line["loss"] for line in lines if line["mode"] == "train"] for lines in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
