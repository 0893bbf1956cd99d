"""Whole runs whose disk, folder or images fail them, and two runs that want one folder."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from faults import WAITING
from tiny_run import tiny_file

from passl_xcit.modeling.checkpoint_formats import read_file

pytestmark = pytest.mark.slow

BY_ITER = "checkpoint={name: CheckpointHook, by_epoch: false, interval: 4, max_keep_ckpts: 0}"
NAN = [11, 12, 13]  # iterations
GO_BACK = "non_finite={max_skips: 1, then: go_back}"
RUNS = {"plain": {}, "go back": {"nan_images": NAN}}


def command(config, folder, *options):
    """Four epochs of six iterations, a checkpoint every fourth iteration."""
    overrides = [word for text in ("epochs=4", BY_ITER, GO_BACK) for word in ("-o", text)]
    return ["-c", config, *overrides, "--output_dir", folder, *options]


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """(config file, {name: folder of a run that was not disturbed})"""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_file(folder)
    runs = {name: server.start(folder, *command(config, folder / name), **faults) for name, faults in RUNS.items()}
    assert [run.wait() for run in runs.values()] == [0, 0]
    return config, {name: folder / name for name in RUNS}


def last_line(run):
    """What the run ended with; it printed no traceback."""
    assert "Traceback" not in run.output, run.output
    return run.output.splitlines()[-1]


def assert_same_end(folder, whole):
    for name in ("iter_24.pdparams", "latest.pdparams", "best.pdparams"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def numbers(folder):
    return sorted(int(path.stem.partition("_")[2]) for path in folder.glob("iter_*.pdparams"))


def assert_whole(folder):
    """There are checkpoints, all of them can be read, and nothing else is left of writing them."""
    assert [read_file(path) for path in folder.glob("*.pdparams")]
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def small_disk(tmp_path):
    """Make a file system of few bytes or files, whose options are those of mount's tmpfs."""
    mounted = []

    def make(options):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


class TestFullDisk:
    @pytest.mark.parametrize("options", ["size=300k", "nr_inodes=12"])
    def test_the_training_goes_on_but_ends_with_an_error_if_it_stays_full(self, options, small_disk, server, whole):
        folder = small_disk(options) / "out"
        run = server.start(folder.parent.parent, *command(whole[0], folder))
        assert run.wait() == 1
        reason = "cannot be written: No space left on device"
        assert last_line(run) == f"error: {folder}/iter_24.pdparams: {reason}"
        went_on = re.findall(rf"ERROR: .*pdparams: {reason}; the training goes on, and the checkpoints bef", run.output)
        assert len(went_on) >= 2
        assert_whole(folder)
        subprocess.run(["mount", "-o", "remount,size=10m,nr_inodes=1000", folder.parent], check=True)
        run = server.start(folder.parent.parent, *command(whole[0], folder, "--resume", "auto"))
        assert run.wait() == 0 and "Resume training from" in run.output
        assert_same_end(folder, whole[1]["plain"])

    def test_the_training_goes_on_and_ends_well_if_it_is_mended(self, server, whole, tmp_path):
        run = server.start(tmp_path, *command(whole[0], tmp_path / "out"), no_room_for_checkpoints=[2, 3])
        assert run.wait() == 0
        assert run.output.count("cannot be written: File too large; the training goes on") == 2
        assert_whole(tmp_path / "out")
        assert_same_end(tmp_path / "out", whole[1]["plain"])


class TestFolder:
    def test_that_is_removed_is_made_again(self, server, whole, tmp_path):
        out = tmp_path / "out"
        run = server.start(tmp_path, *command(whole[0], out), folder_is_gone=[10, str(out), False])
        assert run.wait() == 0, run.output
        assert numbers(out) == [number for number in numbers(whole[1]["plain"]) if number > 9]
        assert {"config.yaml", "run.json", "log.txt", "log.jsonl"} <= {path.name for path in out.iterdir()}
        assert_same_end(out, whole[1]["plain"])

    def test_whose_place_a_file_takes_is_missed_with_an_error(self, server, whole, tmp_path):
        out = tmp_path / "out"
        run = server.start(tmp_path, *command(whole[0], out), folder_is_gone=[10, str(out), True])
        assert run.wait() == 1
        assert last_line(run) == f"error: {out}/iter_24.pdparams: cannot be written: File exists"
        assert out.read_text() == "a file"

    def test_that_takes_no_files_is_refused_before_training(self, small_disk, server, whole, tmp_path):
        disk = small_disk("size=10m")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        reasons = {disk: "this folder cannot be written to", disk / "out": "cannot be made: Read-only file system"}
        for folder, reason in reasons.items():
            run = server.start(tmp_path, *command(whole[0], folder))
            assert run.wait() == 2
            assert last_line(run).endswith(f"output_dir: {folder}: {reason}")
        assert not list(disk.iterdir())


class TestLock:
    def test_a_second_run_is_refused_and_changes_nothing_and_a_kill_frees_the_folder_at_once(
        self, server, whole, tmp_path
    ):
        """Data workers inherit what the first run holds, and live a moment longer."""
        words = command(whole[0], tmp_path / "out", "-o", "dataloader.train.num_workers=2")
        first = server.start(tmp_path, *words, waits_in_step=10)
        first.wait_until(lambda: WAITING in first.output)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        second = server.start(tmp_path, *words, "--resume", "auto")
        assert second.wait() == 2
        text = rf"error: .*output_dir: another run \(process {first.pid} on .*\) writes to {tmp_path}/out: wait for it"
        assert re.match(text, last_line(second))
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
        assert first.kill() == -signal.SIGKILL
        third = server.start(tmp_path, *words, "--resume", "auto")
        assert third.wait() == 0 and "Resume training from" in third.output
        assert_same_end(tmp_path / "out", whole[1]["plain"])

    def test_data_workers_of_a_killed_run_end_by_themselves(self, server, whole, tmp_path):
        words = command(whole[0], tmp_path / "out", "-o", "dataloader.train.num_workers=2")
        run = server.start(tmp_path, *words, waits_in_step=10)
        run.wait_until(lambda: WAITING in run.output)
        assert run.kill() == -signal.SIGKILL
        end = time.monotonic() + 20
        while is_group(run.pid):
            assert time.monotonic() < end
            time.sleep(0.05)


def is_group(number):
    """Whether a process of this group is left."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


class TestGoingBack:
    """Images that are not numbers in iterations 11 to 13: after the second, back to the weights of iteration 8."""

    def test_happens_once_and_the_run_goes_on(self, whole):
        tree = read_file(whole[1]["go back"] / "iter_24.pdparams")
        assert (tree["skipped"], tree["skipped_in_row"], tree["returns"]) == (3, 0, 1)
        plain = read_file(whole[1]["plain"] / "iter_24.pdparams")
        assert (plain["skipped"], plain["returns"], plain["iter"]) == (0, 0, tree["iter"])
        assert any((tree["state_dict"][name] != array).any() for name, array in plain["state_dict"].items())

    @pytest.mark.parametrize(
        "place",
        [
            {"waits_in_step": 9},  # where a signal makes a checkpoint that is newer than iteration 8's
            {"waits_in_step": 11},
            {"waits_in_step": 12},
            {"waits_in_step": 14},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_is_the_same_for_a_run_that_was_stopped_or_killed(self, number, place, server, whole, tmp_path):
        words = command(whole[0], tmp_path / "out")
        run = server.start(tmp_path, *words, nan_images=NAN, **place)
        run.wait_until(lambda: WAITING in run.output)
        run.send(number)
        assert run.wait() == (-number if number == signal.SIGKILL else 128 + number)
        run = server.start(tmp_path, *words, "--resume", "auto", nan_images=NAN)
        assert run.wait() == 0 and "Resume training from" in run.output
        assert_same_end(tmp_path / "out", whole[1]["go back"])
