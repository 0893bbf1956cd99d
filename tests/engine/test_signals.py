"""A run that a signal stops, seen from outside: its exit code, in time, and what it leaves to go on from."""

import re
import signal
import time

import pytest
from faults import WAITING
from tiny_run import tiny_file

from passl_xcit.modeling.checkpoint_formats import read_file

pytestmark = pytest.mark.slow

HOOKS = "custom_config=[{name: EvaluateHook}, {name: EMAHook, decay: 0.9}]"
FILES = ("epoch_2.pdparams", "latest.pdparams", "best.pdparams", "best_ema.pdparams")
# Flushes 1 to 4 are those of config.yaml and run.json, 5 to 8 those of the first checkpoint and its best average.
PLACES = {"step": {"waits_in_step": 4}, "evaluation": {"waits_in_evaluation": 1}, "save": {"waits_in_flush": 5}}


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """(config file, folder of a run that was not stopped)"""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_file(folder)
    run = server.start(folder, "-c", config, "-o", HOOKS)
    assert run.wait() == 0, run.output
    return config, folder / "out"


def stopped(server, folder, config, numbers, workers=0, group=False, **place):
    """A run that gets the signals `numbers`, 0.1 s apart, at a certain place."""
    words = ["-c", config, "-o", HOOKS, "-o", f"dataloader.train.num_workers={workers}", "--output_dir", folder / "out"]
    run = server.start(folder, *words, **place)
    run.wait_until(lambda: WAITING in run.output)
    for number in numbers:
        run.send(number, group)
        time.sleep(0.1)
    run.wait(timeout=20)
    assert "Traceback" not in run.output
    return run


def assert_goes_on(server, folder, whole, start="Resume training from"):
    """Resumed, it ends with the bytes of the run that was not stopped."""
    run = server.start(folder, "-c", whole[0], "-o", HOOKS, "--output_dir", folder / "out", "--resume", "auto")
    assert run.wait() == 0 and start in run.output, run.output
    for name in FILES:
        assert (folder / "out" / name).read_bytes() == (whole[1] / name).read_bytes(), name
    assert not list((folder / "out").glob(".*.tmp")) and not (folder / "out" / "interrupted.pdparams").exists()


@pytest.mark.parametrize(
    ("number", "place", "iterations"),
    [
        (signal.SIGTERM, {"waits_in_step": 4}, 4),
        (signal.SIGINT, {"waits_in_step": 6}, 6),
        (signal.SIGTERM, {"waits_in_evaluation": 1}, 6),
        (signal.SIGTERM, {"waits_in_evaluation": 4}, 12),  # of the moving average, after the last epoch
        (signal.SIGTERM, {"waits_in_flush": 5}, 7),  # of the first checkpoint
    ],
)
def test_the_step_is_finished_and_saved_and_the_run_goes_on_from_there(
    number, place, iterations, server, whole, tmp_path
):
    run = stopped(server, tmp_path, whole[0], [number], **place)
    assert run.code == 128 + number
    name = signal.Signals(number).name
    assert run.output.endswith(f"stopped by {name} after {iterations} iterations; go on with --resume auto\n")
    assert read_file(tmp_path / "out" / "interrupted.pdparams")["iter"] == iterations
    assert_goes_on(server, tmp_path, whole)


def test_a_schedulers_warning_to_all_processes_is_noted_once_and_kills_no_data_worker(server, whole, tmp_path):
    run = stopped(server, tmp_path, whole[0], [signal.SIGUSR1], workers=2, group=True, waits_in_step=4)
    assert run.code == 128 + signal.SIGUSR1
    assert len(re.findall("SIGUSR1: stopping after this step", run.output)) == 1
    assert_goes_on(server, tmp_path, whole)


@pytest.mark.parametrize("place", PLACES)
def test_a_second_ctrl_c_ends_at_once_and_leaves_what_was_there(place, server, whole, tmp_path):
    run = stopped(server, tmp_path, whole[0], [signal.SIGINT] * 2, **PLACES[place])
    assert run.code == 130 and run.output.endswith("interrupted\n")
    assert not list((tmp_path / "out").glob("*.pdparams")) and not list((tmp_path / "out").glob(".*.tmp"))
    assert_goes_on(server, tmp_path, whole, start="starting from the beginning")


def test_a_second_ctrl_c_within_a_save_leaves_the_checkpoint_before(server, whole, tmp_path):
    run = stopped(server, tmp_path, whole[0], [signal.SIGINT] * 2, waits_in_flush=9)
    assert run.code == 130
    assert sorted(path.name for path in (tmp_path / "out").glob("epoch_*")) == ["epoch_1.pdparams"]
    assert not list((tmp_path / "out").glob(".*.tmp"))
    assert_goes_on(server, tmp_path, whole)


def test_a_second_sigterm_is_that_of_the_system(server, whole, tmp_path):
    run = stopped(server, tmp_path, whole[0], [signal.SIGTERM] * 2, waits_in_step=8)
    assert run.code == -signal.SIGTERM
    assert_goes_on(server, tmp_path, whole)
