"""The curves as VisualDL reads them back, and the page that shows them."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import paddle
import pytest
from PIL import Image
from tiny_run import Stop, json_lines, tiny_run, tiny_trainer
from visualdl import LogReader

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.errors import TrainingStopped

EVERY = "custom_config=[{name: EvaluateHook}, {name: VisualHook, interval: 1}]"
SCALARS = ("train/lr", "train/loss", "train/acc1", "train/acc5", "train/grad_norm", "val/acc1", "val/acc5")


def newest(folder):
    """The file that VisualDL shows of a run."""
    return max((folder / "visual_dl").iterdir())


def curves(folder):
    """{tag: [(step, value)]} of the scalars that the run in `folder` has drawn."""
    reader = LogReader(file_path=str(newest(folder)))
    return {
        tag: [(point.id, point.value) for point in reader.get_data("scalar", tag)] for tag in tags(reader, "scalar")
    }


def histograms(folder):
    """{parameter: [(epoch, number of values)]}"""
    reader = LogReader(file_path=str(newest(folder)))
    points = {tag: reader.get_data("histogram", tag) for tag in tags(reader, "histogram")}
    return {tag: [(p.id, sum(p.histogram.hist)) for p in found] for tag, found in points.items()}


def tags(reader, kind):
    return [tag.replace("%", "/") for tag in reader.get_tags().get(kind, [])]


def logged(folder, mode, name):
    return [
        (line["iter" if mode == "train" else "epoch"], line[name])
        for line in json_lines(folder)
        if line["mode"] == mode
    ]


class TestCurves:
    def test_they_are_the_numbers_of_the_log(self, tmp_path):
        tiny_run(tmp_path, "log_config.interval=4", EVERY.replace("interval: 1", "interval: 4"))
        drawn = curves(tmp_path / "out")
        assert set(drawn) == set(SCALARS)
        for tag in SCALARS:
            assert drawn[tag] == [(s, pytest.approx(v, rel=1e-6)) for s, v in logged(tmp_path / "out", *tag.split("/"))]
        assert [step for step, _ in drawn["train/loss"]] == [1, 5, 7, 11]

    @pytest.mark.parametrize("priority", [1, 72, 90, 99])
    def test_an_evaluation_is_one_point_at_its_epoch_wherever_the_hook_stands(self, priority, tmp_path):
        visual = f"{{name: VisualHook, priority: {priority}}}"
        tiny_run(
            tmp_path, "epochs=3", f"custom_config=[{visual}, {{name: EvaluateHook, interval: 2, init_eval: true}}]"
        )
        drawn = curves(tmp_path / "out")["val/acc1"]
        assert drawn == [(step, pytest.approx(value)) for step, value in logged(tmp_path / "out", "val", "acc1")]
        assert [step for step, _ in drawn] == [0, 2, 3]

    def test_the_moving_average_has_a_curve_of_its_own(self, tmp_path):
        tiny_run(tmp_path, EVERY.replace("]", ", {name: EMAHook, decay: 0.5}]"))
        drawn = curves(tmp_path / "out")
        assert drawn["val_ema/acc1"] == [(s, pytest.approx(v)) for s, v in logged(tmp_path / "out", "val_ema", "acc1")]
        assert len(drawn["val_ema/acc1"]) == len(drawn["val/acc1"]) == 2

    @pytest.mark.parametrize("wanted", [True, False])
    def test_each_parameter_has_a_histogram_an_epoch_or_none(self, wanted, tmp_path):
        tiny_run(tmp_path, EVERY.replace("interval: 1", f"histograms: {wanted}"))
        drawn = histograms(tmp_path / "out")
        assert drawn.get("head.fc_cls.bias") == ([(1, 3), (2, 3)] if wanted else None)

    def test_a_weight_that_is_not_finite_is_left_out_of_its_histogram(self, tmp_path):
        trainer = tiny_trainer(tmp_path, "epochs=1", "custom_config=[{name: VisualHook}]", hooks=[Spoil()])
        trainer.train()
        assert histograms(tmp_path / "out")["head.fc_cls.bias"] == [(1, 1)]


class Spoil(Hook):
    """Makes two of three weights no finite numbers."""

    priority = 89

    def train_epoch_end(self, trainer):
        trainer.model.head.fc_cls.bias.set_value(paddle.to_tensor([np.nan, np.inf, 1.0]))


class Fail(Hook):
    """A bug, after so many iterations."""

    priority = 99

    def train_iter_end(self, trainer):
        if trainer.state.iter == 4:
            raise RuntimeError("a bug")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_run(folder, EVERY)
    return folder / "out"


class TestAResumedRun:
    BY_ITER = ("checkpoint.by_epoch=false", "checkpoint.interval=4")

    @pytest.mark.parametrize("stopped_at", [3, 4, 6, 11])
    def test_goes_on_with_its_curves_and_draws_nothing_twice(self, stopped_at, whole, tmp_path, capsys):
        trainer = tiny_trainer(tmp_path, EVERY, *self.BY_ITER, hooks=[Stop(stopped_at)])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        tiny_run(tmp_path, EVERY, *self.BY_ITER, resume_from="auto")
        assert curves(tmp_path / "out") == curves(whole)
        assert histograms(tmp_path / "out") == histograms(whole)
        assert "VisualDL" not in capsys.readouterr().out  # says that it will add to the file

    @pytest.mark.parametrize("end", [b"\x20\0\0", b"\x20\0\0\0\0\0\0\0half", b"\x04\0\0\0\0\0\0\0\xff\xff\xff\xff"])
    def test_leaves_out_a_record_that_a_kill_cut_off(self, end, tmp_path):
        tiny_run(tmp_path, EVERY, "epochs=1")
        before = curves(tmp_path / "out")
        with open(newest(tmp_path / "out"), "ab") as file:
            file.write(end)
        tiny_run(tmp_path, EVERY, "epochs=2", resume_from="auto")
        after = curves(tmp_path / "out")
        assert after["train/loss"][:6] == before["train/loss"] and len(after["train/loss"]) == 12

    def test_begins_a_file_where_there_was_none(self, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        tiny_run(tmp_path, EVERY, resume_from="auto")
        assert [step for step, _ in curves(tmp_path / "out")["train/loss"]] == [7, 8, 9, 10, 11, 12]

    def test_another_run_in_the_folder_has_its_own_file(self, tmp_path):
        """Even when it is started in the same second, of which VisualDL makes the name."""
        for _ in range(2):
            tiny_trainer(tmp_path, EVERY, "epochs=1").train()
            assert [step for step, _ in curves(tmp_path / "out")["train/loss"]] == [1, 2, 3, 4, 5, 6]
        assert len(list((tmp_path / "out" / "visual_dl").iterdir())) == 2


class TestTheWriterIsClosed:
    def test_by_a_bug(self, tmp_path):
        with pytest.raises(RuntimeError, match="a bug"):
            (trainer := tiny_trainer(tmp_path, EVERY, hooks=[Fail()])).train()
        self.assert_closed(trainer, steps=4)

    def test_by_a_signal(self, tmp_path):
        class Signal(Fail):
            def train_iter_end(self, trainer):
                if trainer.state.iter == 4:
                    os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(TrainingStopped):
            (trainer := tiny_trainer(tmp_path, EVERY, hooks=[Signal()])).train()
        self.assert_closed(trainer, steps=4)

    def test_by_the_end(self, tmp_path):
        (trainer := tiny_trainer(tmp_path, EVERY)).train()
        self.assert_closed(trainer, steps=12)

    def assert_closed(self, trainer, steps):
        assert not [thread for thread in threading.enumerate() if type(thread).__module__.startswith("visualdl")]
        assert len(curves(trainer.output_dir)["train/loss"]) == steps


# The page.


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """Address of VisualDL's server on a real run; it and whatever it started end with the fixture."""
    folder = tmp_path_factory.mktemp("page")
    tiny_run(folder, EVERY, "epochs=5")
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "visualdl.server.app", "--logdir", folder / "out" / "visual_dl"]
    options = ["--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--language", "en", "--disable-telemetry"]
    with open(folder / "server.txt", "w") as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(f"{address}/alive", process)
        yield address
    finally:
        end_group(process)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(address, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


def browse(browser, address, folder):
    """(texts of the page when its scripts have run, its picture [height, width, RGB])"""
    picture = folder / "page.png"
    options = ["--no-sandbox", "--disable-gpu", "--window-size=1400,1600", "--virtual-time-budget=15000"]
    command = [browser, "--headless", *options, f"--screenshot={picture}", "--dump-dom", address]
    page = output_of_browser(command, folder)
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page.partition("<body")[2], flags=re.DOTALL)
    texts = [text.strip() for text in re.sub(r"<[^>]*>", "\n", body).splitlines() if text.strip()]
    return texts, np.asarray(Image.open(picture).convert("RGB")).astype(int)


def output_of_browser(command, folder, tries=4):
    """What the browser writes. One of about five hangs for ever in its virtual time: it is started anew."""
    for number in range(tries):
        profile = f"--user-data-dir={folder / str(number)}"
        process = subprocess.Popen(
            [*command, profile], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            return process.communicate(timeout=40)[0].decode()
        except subprocess.TimeoutExpired:
            continue
        finally:
            end_group(process)
    raise AssertionError(f"{command[0]} hung {tries} times")


def end_group(process):
    """End a process that was started in a session of its own, with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_the_page_shows_a_group_of_curves_for_training_and_one_for_evaluation(browser, server, tmp_path):
    texts, picture = browse(browser, f"{server}/app/scalar", tmp_path)
    shown = {name: int(number) for name, number in zip(texts, texts[1:]) if name in ("train", "val")}
    assert shown == {mode: sum(tag.startswith(f"{mode}/") for tag in SCALARS) for mode in ("train", "val")}
    assert any(text.endswith("out/visual_dl") for text in texts)
    charts = picture[150:1250, :900]  # the titles and curves of the group that is open are drawn, not text
    is_blue = (charts[..., 2] - charts[..., :2].max(axis=2)) > 60
    assert 2000 < is_blue.sum() < 50_000


@pytest.mark.slow
def test_the_page_shows_every_parameters_histogram(browser, server, tmp_path):
    texts, _ = browse(browser, f"{server}/app/histogram", tmp_path)
    assert {"head.fc_cls.weight", "head.fc_cls.bias", "backbone.blocks.0.attn.temperature"} <= set(texts)
