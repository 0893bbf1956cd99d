"""What a run says last: its best and last accuracy, how long it took, where its files are."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import Stop, tiny_run, tiny_trainer

from passl_xcit.engine.run_summary import summary
from passl_xcit.engine.trainer import TrainState
from passl_xcit.utils.logger import JsonLog


def entry(mode, iteration, elapsed=0.0, **values):
    """A line of a log whose epochs have 10 iterations of 4 images."""
    counters = {"epoch": iteration // 10, "iter": iteration, "samples": 4 * iteration, "elapsed": elapsed}
    return {"mode": mode, **counters, **values}


def val(iteration, acc1, elapsed=0.0, mode="val"):
    return entry(mode, iteration, elapsed, acc1=acc1, acc5=acc1 + 10)


def lines_of(entries, iteration=None, best=()):
    """What is said of a log when `iteration` is finished, by default that of its last line."""
    state = TrainState(iter=entries[-1]["iter"] if iteration is None else iteration, best=dict(best))
    log = SimpleNamespace(read=lambda: entries)
    return list(summary(SimpleNamespace(log=log, state=state, output_dir=Path("run"), checkpoint_dir=Path("run"))))


def printed(capsys):
    """The messages behind the last evaluation and checkpoint."""
    messages = [line.partition("INFO: ")[2] for line in capsys.readouterr().out.splitlines()]
    return messages[max(n for n, text in enumerate(messages) if re.match("Saving|.* nothing to train", text)) + 1 :]


class TestOfARun:
    def test_it_names_the_best_and_the_last_epoch_and_their_files(self, tmp_path, capsys):
        trainer = tiny_trainer(tmp_path, "epochs=3")
        answers = iter([40.0, 60.0, 50.0])
        trainer.evaluator.evaluate = lambda *arguments: {"acc1": next(answers), "acc5": 90.0}
        trainer.train()
        assert list(summary(trainer))[:2] == [
            f"best acc1 60.000, acc5 90.000 after epoch 2: {tmp_path}/out/best.pdparams",
            f"last acc1 50.000, acc5 90.000 after epoch 3: {tmp_path}/out/latest.pdparams",
        ]

    def test_a_finished_run_says_it_again(self, tmp_path, capsys):
        tiny_run(tmp_path)
        first = printed(capsys)
        assert [line.split()[0] for line in first] == ["best", "last", "trained", "log:"]
        assert (tmp_path / "out" / "log.txt").read_text().splitlines()[-1].endswith(first[-1])
        tiny_run(tmp_path, resume_from="auto")
        assert printed(capsys) == first

    def test_the_time_is_that_of_the_run(self, tmp_path, capsys):
        tiny_run(tmp_path)
        seconds = JsonLog(tmp_path / "out" / "log.jsonl").read()[-1]["elapsed"]
        line = printed(capsys)[2]
        images, speed = re.fullmatch(
            r"trained on (\d+) images in 0:00:\d\d, ([\d.]+) images/s with evaluations and checkpoints", line
        ).groups()
        assert int(images) == 48 and float(speed) == pytest.approx(48 / seconds, abs=0.06)

    def test_it_names_the_curves_where_there_are_some(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=1", "custom_config=[{name: VisualHook}]")
        assert printed(capsys)[1:] == [
            f"log: {tmp_path}/out/log.txt, log.jsonl; curves: visualdl --logdir {tmp_path}/out/visual_dl"
        ]

    def test_the_moving_average_has_its_own_lines(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=1", "custom_config=[{name: EvaluateHook}, {name: EMAHook}]")
        assert re.fullmatch(
            rf"best EMA acc1 [\d.]+, acc5 [\d.]+ after epoch 1: {tmp_path}/out/best_ema.pdparams", printed(capsys)[2]
        )

    def test_checkpoints_elsewhere_are_named_there(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=1", f"checkpoint.out_dir={tmp_path}/far", "checkpoint.create_symlink=false")
        lines = printed(capsys)
        assert lines[0].endswith(f": {tmp_path}/far/best.pdparams") and lines[1].endswith("after epoch 1")

    def test_a_run_that_is_stopped_says_nothing_of_it(self, tmp_path, capsys):
        with pytest.raises(KeyboardInterrupt):
            tiny_trainer(tmp_path, hooks=[Stop(3)]).train()
        assert "trained on" not in capsys.readouterr().out


class TestOfALog:
    def test_of_lines_that_were_lost_nothing_is_said(self):
        """The disk was full from the second epoch on: the best evaluation is known from the checkpoint."""
        log = [entry("begin", 0), val(10, 50.0, 10.0), entry("train", 15, 15.0)]
        best = {"acc1": 80.0, "acc5": 90.0, "epoch": 7, "iter": 70}
        assert lines_of(log, iteration=100, best=best) == [
            "best acc1 80.000, acc5 90.000 after epoch 7",
            "log: run/log.txt, log.jsonl",
        ]

    def test_times_and_images_of_several_starts_add_up(self):
        log = [
            entry("begin", 0),
            entry("end", 15, 60.0),
            entry("begin", 15),
            entry("train", 18, 5.0),
            entry("end", 20, 20.0),
        ]
        assert lines_of(log)[0] == "trained on 80 images in 0:01:20, 1.0 images/s with evaluations and checkpoints"

    def test_what_a_later_start_has_taken_back_does_not_count(self):
        """Killed in iteration 18, with a checkpoint of iteration 10; resumed, it does better than before."""
        killed = [entry("begin", 0), val(10, 50.0, 40.0), entry("train", 15, 60.0), entry("train", 18, 70.0)]
        log = [*killed, entry("begin", 10), val(20, 60.0, 40.0), entry("end", 20, 40.0)]
        assert lines_of(log)[:2] == [
            "last acc1 60.000, acc5 70.000 after epoch 2",
            "trained on 80 images in 0:01:20, 1.0 images/s with evaluations and checkpoints",
        ]

    def test_an_earlier_run_in_the_folder_does_not_count(self):
        log = [entry("begin", 0), val(10, 99.0, 40.0), entry("end", 10, 40.0), entry("begin", 0), val(10, 50.0, 20.0)]
        assert lines_of(log)[:2] == [
            "last acc1 50.000, acc5 60.000 after epoch 1",
            "trained on 40 images in 0:00:20, 2.0 images/s with evaluations and checkpoints",
        ]

    def test_a_run_resumed_from_elsewhere_counts_what_it_trained_itself(self):
        log = [entry("begin", 100), entry("end", 110, 10.0)]
        assert lines_of(log)[0] == "trained on 40 images in 0:00:10, 4.0 images/s with evaluations and checkpoints"

    @pytest.mark.parametrize(
        "foreign",
        [
            {},
            {"mode": "val", "epoch": 9, "iter": 90, "acc1": 99.0, "acc5": 99.0},  # version 0.1's
            {**val(90, 99.0), "acc1": None},
            {**entry("begin", 0), "iter": "many"},
            {"epoch": 1, "iter": 10, "samples": 4, "elapsed": 3.0},
        ],
    )
    def test_what_is_no_line_of_a_run_is_left_out(self, foreign):
        log = [entry("begin", 0), val(10, 50.0, 10.0)]
        assert lines_of([foreign, *log, foreign], iteration=10) == lines_of(log)

    def test_an_empty_one_tells_where_it_is(self):
        assert lines_of([], iteration=0) == ["log: run/log.txt, log.jsonl"]
