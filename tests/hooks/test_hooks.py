"""The stages and their order; what the hooks print, write, keep and remove."""

import contextlib
import os
import re
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import json_lines, tiny_run, tiny_trainer

from passl_xcit.engine.checkpoint import link_checkpoint
from passl_xcit.engine.trainer import Trainer, TrainState
from passl_xcit.hooks import log_hook
from passl_xcit.hooks.checkpoint_hook import CheckpointHook
from passl_xcit.hooks.evaluate_hook import EvaluateHook
from passl_xcit.hooks.hook import Hook, stages_of
from passl_xcit.hooks.log_hook import LogHook
from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.logger import JsonLog, setup_logger
from passl_xcit.utils.new_file import replace_file
from passl_xcit.utils.registry import HOOKS


class Recorder(Hook):
    """Writes down each stage with the counters it saw."""

    def __init__(self, seen, priority=None):
        super().__init__(priority)
        for stage in Hook.STAGES:
            setattr(self, stage, lambda trainer, stage=stage: seen.append((stage, *counters(trainer), self)))


def counters(trainer):
    return trainer.state.epoch, trainer.state.iter


def names(seen):
    return [stage for stage, *_ in seen]


class TestStages:
    def test_every_hook_method_is_a_stage(self):
        methods = [name for name, value in vars(Hook).items() if callable(value) and not name.startswith("__")]
        assert tuple(methods) == tuple(sorted(Hook.STAGES, key=methods.index))
        assert set(methods) == set(Hook.STAGES)

    def test_stages_fire_in_the_order_of_the_docstring(self, tmp_path):
        seen = []
        tiny_trainer(tmp_path, "epochs=1", "dataloader.train.sampler.batch_size=12", hooks=[Recorder(seen)]).train()
        begin, end = ["run_begin", "train_epoch_begin"], ["train_epoch_end", "run_end"]
        assert names(seen) == begin + 2 * ["train_iter_begin", "train_iter_end"] + end
        in_docstring = [line.split()[0] for line in Hook.__doc__.splitlines() if line.split()[:1]]
        assert [word for word in in_docstring if word in Hook.STAGES] == list(Hook.STAGES)

    def test_epochs_and_iterations_are_counted_before_their_end_stage(self, tmp_path):
        seen = []
        tiny_trainer(tmp_path, "epochs=2", "dataloader.train.sampler.batch_size=24", hooks=[Recorder(seen)]).train()
        assert [entry[:3] for entry in seen] == [
            ("run_begin", 0, 0),
            ("train_epoch_begin", 0, 0),
            ("train_iter_begin", 0, 0),
            ("train_iter_end", 0, 1),
            ("train_epoch_end", 1, 1),
            ("train_epoch_begin", 1, 1),
            ("train_iter_begin", 1, 1),
            ("train_iter_end", 1, 2),
            ("train_epoch_end", 2, 2),
            ("run_end", 2, 2),
        ]

    def test_hooks_run_by_priority_and_equal_ones_in_the_given_order(self, tmp_path):
        seen = []
        hooks = [Recorder(seen, priority) for priority in (80, 20, 20, 50)]
        tiny_trainer(tmp_path, "epochs=1", hooks=hooks).train()
        order = [hook for stage, _, _, hook in seen if stage == "run_begin"]
        assert order == [hooks[1], hooks[2], hooks[3], hooks[0]]

    def test_by_default_values_are_printed_then_evaluated_then_saved(self):
        assert LogHook.priority < EvaluateHook.priority < CheckpointHook.priority

    def test_a_priority_of_the_config_counts(self, tmp_path):
        """Saved before its evaluation, a checkpoint cannot know it."""
        tiny_run(tmp_path, "epochs=1", "custom_config.0.priority=85")
        assert read_file(tmp_path / "out" / "epoch_1.pdparams")["best"] == {}

    def test_the_table_of_hooks_is_printed_once(self, tmp_path, capsys):
        tiny_run(tmp_path)
        lines = [line.partition("INFO: ")[2] for line in capsys.readouterr().out.splitlines() if "hooks at" in line]
        assert lines == [
            "hooks at run_begin: LogHook, EvaluateHook, CheckpointHook",
            "hooks at train_epoch_begin: LogHook",
            "hooks at train_iter_begin: LogHook",
            "hooks at train_iter_end: LogHook, CheckpointHook",
            "hooks at train_epoch_end: EvaluateHook, CheckpointHook",
            "hooks at run_end: -",
            "hooks at run_stopped: CheckpointHook",
        ]

    @pytest.mark.parametrize("name", sorted(set(HOOKS) - {"TeacherCacheHook"}))  # which needs a teacher
    def test_every_registered_hook_lives_through_a_run(self, name, tmp_path):
        names = dict.fromkeys(["EvaluateHook", name])
        tiny_run(tmp_path, f"custom_config=[{', '.join(f'{{name: {name}}}' for name in names)}]")
        assert stages_of(HOOKS.build({"name": name}))


class TestHooksOfAConfig:
    @pytest.mark.parametrize(
        "hooks, text",
        [
            ("[{name: EMAHook}, {name: EvaluateHook}, {name: EMAHook}]", "custom_config: EMAHook is there twice"),
            ("[{name: EarlyStopHook}]", "custom_config: EarlyStopHook needs EvaluateHook, whose accuracies it watches"),
        ],
    )
    def test_that_cannot_work_are_refused(self, hooks, text, tmp_path):
        with pytest.raises(ConfigError, match=text):
            tiny_run(tmp_path, f"custom_config={hooks}")

    def test_that_nobody_evaluates_are_warned_of(self, tmp_path, capsys):
        tiny_run(tmp_path, "custom_config=[{name: EMAHook}]", "epochs=1")
        assert "EMAHook without EvaluateHook: the average is kept, but not evaluated" in capsys.readouterr().out


def clock(*times):
    """A stand-in for the module `time` whose clock shows these, one after the other."""
    times = iter(times)
    return SimpleNamespace(perf_counter=lambda: next(times))


def run_of(iters_per_epoch, epochs, records=None):
    """What LogHook asks of a trainer."""
    trainer = SimpleNamespace(state=TrainState(), epochs=epochs, iters_per_epoch=iters_per_epoch, seconds_aside=0.0)
    trainer.require_finite = lambda loss: None
    trainer.total_iters = epochs * iters_per_epoch
    trainer.record = lambda mode, **values: records.append((mode, values)) if records is not None else None
    return trainer


def finish_iteration(trainer, hook, samples=64, **outputs):
    trainer.state.outputs = outputs
    hook.train_iter_begin(trainer)
    trainer.state.iter += 1
    trainer.state.samples += samples
    trainer.inner_iter = (trainer.state.iter - 1) % trainer.iters_per_epoch
    hook.train_iter_end(trainer)


def messages(capsys):
    return [line.partition("INFO: ")[2] for line in capsys.readouterr().out.splitlines()]


class TestLogHook:
    def test_its_line_is_passls_to_the_letter_and_then_says_more(self, monkeypatch, capsys):
        setup_logger()
        monkeypatch.setattr(log_hook, "peak_memory", iter([2.14 * 2**30, None]).__next__)
        monkeypatch.setattr(log_hook, "time", clock(10.0, 10.045, 10.123, 10.125, 10.223))
        trainer, hook = run_of(1251, 400), LogHook(interval=1)
        hook.run_begin(trainer)
        hook.train_epoch_begin(trainer)
        trainer.state.lr = 1e-6
        finish_iteration(trainer, hook, loss=6.9078, acc1=0.0, acc5=0.78125)
        trainer.state.lr = 1.0798e-6
        finish_iteration(trainer, hook, loss=6.5, acc1=100.0, acc5=100.0)
        assert messages(capsys) == [
            "Epoch [1/400][0/1251]\tlr: 1.000e-06, eta: 17:05:49, time: 0.123, data_time: 0.045, "
            "loss 6.9078e+00 (6.9078e+00), acc1  0.000 ( 0.000), acc5  0.781 ( 0.781), "
            "images/s: 520.3, data_wait: 37%, memory: 2.1G",
            "Epoch [1/400][1/1251]\tlr: 1.080e-06, eta: 15:29:54, time: 0.112, data_time: 0.024, "
            "loss 6.5000e+00 (6.7039e+00), acc1 100.000 (50.000), acc5 100.000 (50.391), "
            "images/s: 574.0, data_wait: 21%",
        ]

    def test_what_else_a_step_reports_stands_behind_the_accuracies_in_the_same_form(self, capsys):
        setup_logger()
        trainer, hook = run_of(2, 1), LogHook(interval=1)
        hook.run_begin(trainer)
        hook.train_epoch_begin(trainer)
        finish_iteration(trainer, hook, loss=2.0, acc1=0.0, acc5=0.0, grad_norm=1.5)
        finish_iteration(trainer, hook, loss=2.0, acc1=0.0, acc5=0.0, grad_norm=12.25)
        assert ", acc5  0.000 ( 0.000), grad_norm 12.250 ( 6.875), images/s: " in messages(capsys)[-1]

    @pytest.mark.parametrize(("by_epoch", "place"), [(True, "Epoch [2/3][0/2]\tlr: "), (False, "Iter [3/6]\tlr: ")])
    def test_it_counts_by_epoch_or_by_iteration(self, by_epoch, place, capsys):
        setup_logger()
        trainer, hook = run_of(2, 3), LogHook(interval=2, by_epoch=by_epoch)
        trainer.state.epoch, trainer.state.iter = 1, 2
        hook.run_begin(trainer)
        hook.train_epoch_begin(trainer)
        finish_iteration(trainer, hook, loss=1.0)
        assert messages(capsys)[0].startswith(place)

    def test_the_lines_of_an_epoch_carry_its_number_from_the_first_on(self, tmp_path, capsys):
        """PASSL's first line of each epoch carries the number of the epoch before."""
        tiny_run(tmp_path, "log_config.interval=4")
        places = re.findall(r"Epoch \[(\d+/\d+)\]\[(\d+/\d+)\]\t", capsys.readouterr().out)
        assert places == [("1/2", "0/6"), ("1/2", "4/6"), ("2/2", "0/6"), ("2/2", "4/6")]

    @pytest.mark.parametrize(("reset", "average"), [(True, 8.0), (False, 5.0)])
    def test_averages_start_anew_in_every_epoch_unless_told_not_to(self, reset, average, capsys):
        setup_logger()
        trainer, hook = run_of(2, 2), LogHook(interval=1, reset_flag=reset)
        hook.run_begin(trainer)
        for losses in ((1.0, 3.0), (8.0, 8.0)):
            hook.train_epoch_begin(trainer)
            for loss in losses:
                finish_iteration(trainer, hook, loss=loss)
            trainer.state.epoch += 1
        assert f"loss 8.0000e+00 ({average:.4e})" in messages(capsys)[-1]

    def test_the_eta_is_for_the_iterations_that_are_left(self, monkeypatch, capsys):
        setup_logger()
        monkeypatch.setattr(log_hook, "time", clock(0, 1, 60, 61, 120, 121, 180))
        trainer, hook = run_of(3, 1), LogHook(interval=1)
        hook.run_begin(trainer)
        hook.train_epoch_begin(trainer)
        for _ in range(3):
            finish_iteration(trainer, hook, loss=1.0)
        assert [re.search("eta: ([^,]+),", line).group(1) for line in messages(capsys)] == [
            "0:02:00",
            "0:01:00",
            "0:00:00",
        ]

    def test_the_time_of_an_evaluation_does_not_count(self, monkeypatch, capsys):
        setup_logger()
        monkeypatch.setattr(log_hook, "time", clock(0, 1, 2, 1000, 1001, 1002))
        trainer, hook = run_of(1, 2), LogHook(interval=1)
        hook.run_begin(trainer)
        for _ in range(2):
            hook.train_epoch_begin(trainer)
            finish_iteration(trainer, hook, loss=1.0)
        assert [re.findall(r"time: ([\d.]+)", line) for line in messages(capsys)] == [["2.000", "1.000"]] * 2

    def test_the_time_of_a_checkpoint_within_an_epoch_does_not_count(self, monkeypatch, capsys):
        """Nor does anything else around which the trainer stands `aside`."""
        setup_logger()
        monkeypatch.setattr(log_hook, "time", clock(0, 1, 2, 1003, 1004))
        records = []
        trainer, hook = run_of(2, 1, records), LogHook(interval=1)
        hook.run_begin(trainer)
        hook.train_epoch_begin(trainer)
        finish_iteration(trainer, hook, loss=1.0)
        trainer.seconds_aside += 1000
        finish_iteration(trainer, hook, loss=1.0)
        assert [re.findall(r"time: ([\d.]+)", line) for line in messages(capsys)] == [["2.000", "1.000"]] * 2
        assert [(line["images_per_sec"], line["data_wait"]) for _, line in records] == [(32.0, 0.5)] * 2

    def test_a_checkpoint_by_iteration_slows_no_line(self, tmp_path, monkeypatch):
        save = Trainer.save_checkpoint
        monkeypatch.setattr(Trainer, "save_checkpoint", lambda *arguments: time.sleep(0.3) or save(*arguments))
        trainer = tiny_trainer(tmp_path, "epochs=1", "checkpoint={name: CheckpointHook, by_epoch: false, interval: 2}")
        trainer.train()
        lines = [line for line in trainer.log.read() if line["mode"] == "train"]
        assert trainer.seconds_aside > 0.9
        assert 6 * lines[-1]["time"] < lines[-1]["elapsed"] - 0.6  # two of the three lie before the last line

    def test_a_smaller_last_batch_counts_as_what_it_is(self, monkeypatch):
        monkeypatch.setattr(log_hook, "time", clock(0, 0, 1, 1, 2, 10, 10, 11))
        records = []
        trainer, hook = run_of(2, 2, records), LogHook(interval=1)
        hook.run_begin(trainer)
        for samples in ((64, 10), (64,)):
            hook.train_epoch_begin(trainer)
            for number in samples:
                finish_iteration(trainer, hook, samples=number, loss=1.0)
        assert [line["images_per_sec"] for _, line in records] == [64.0, 37.0, 64.0]

    def test_a_run_that_is_resumed_within_an_epoch_counts_what_it_does_itself(self, monkeypatch, capsys):
        setup_logger()
        monkeypatch.setattr(log_hook, "time", clock(5, 5, 7))
        trainer, hook = run_of(10, 3), LogHook(interval=1)
        trainer.state.epoch, trainer.state.iter, trainer.state.samples = 1, 14, 14 * 64
        hook.run_begin(trainer)
        hook.train_epoch_begin(trainer)
        finish_iteration(trainer, hook, loss=1.0)
        line = messages(capsys)[0]
        assert line.startswith("Epoch [2/3][4/10]\t") and "eta: 0:00:30, time: 2.000" in line  # 15 of 30 are left
        assert "images/s: 32.0, data_wait: 0%" in line

    def test_its_json_lines_hold_the_same_numbers(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=1", "log_config.interval=5")
        lines = [line for line in json_lines(tmp_path / "out") if line["mode"] == "train"]
        assert [(line["epoch"], line["iter"]) for line in lines] == [(0, 1), (0, 6)]
        assert [line["lr"] for line in lines] == pytest.approx([0.001, 0.001 + 0.019 * 5 / 6])  # of the step itself
        output = capsys.readouterr().out
        printed = re.findall(r"lr: (\S+), .*, loss (\S+) .*, acc1 +(\S+) ", output)
        assert printed == [(f"{v['lr']:.3e}", f"{v['loss']:.4e}", f"{v['acc1']:.3f}") for v in lines]
        speeds = [line for line in JsonLog(tmp_path / "out" / "log.jsonl").read() if line["mode"] == "train"]
        assert re.findall(r", time: (\S+), data_time: (\S+), .*, images/s: (\S+), data_wait: (\S+), ", output) == [
            (f"{v['time']:.3f}", f"{v['data_time']:.3f}", f"{v['images_per_sec']:.1f}", f"{v['data_wait']:.0%}")
            for v in speeds
        ]
        assert re.findall(r", memory: ([\d.]+)G\n", output) == [f"{v['memory'] / 2**30:.1f}" for v in speeds]


class TestEvaluateHook:
    @pytest.mark.parametrize(("interval", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (7, [5])])
    def test_it_evaluates_every_so_many_epochs_and_after_the_last(self, interval, epochs, tmp_path):
        tiny_run(tmp_path, "epochs=5", "dataloader.train.sampler.batch_size=12", f"custom_config.0.interval={interval}")
        assert [line["epoch"] for line in json_lines(tmp_path / "out") if line["mode"] == "val"] == epochs

    def test_passls_eval_kargs_may_be_empty_only(self, tmp_path):
        EvaluateHook(eval_kargs={})
        with pytest.raises(ConfigError, match=r"custom_config.0.eval_kargs: eval_kargs must be empty"):
            tiny_run(tmp_path, "custom_config.0={name: EvaluateHook, eval_kargs: {x: 1}}")


class Run:
    """What CheckpointHook asks of a trainer; a checkpoint is a text, and epoch e scores `accuracies[e - 1]`."""

    def __init__(self, folder, accuracies, iters_per_epoch=3, checkpoint_dir=None):
        self.output_dir, self.checkpoint_dir = folder, checkpoint_dir or folder
        self.accuracies, self.iters_per_epoch = accuracies, iters_per_epoch
        self.epochs, self.state, self.saved = len(accuracies), TrainState(), []
        self.link_checkpoint, self.aside = link_checkpoint, contextlib.nullcontext

    @property
    def is_last_epoch(self):
        return self.state.epoch == self.epochs

    def save_checkpoint(self, path, save_optimizer, before_rename):
        self.saved.append((path.name, save_optimizer))
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(str(self.state.iter).encode()), before_rename)

    def train(self, hook):
        hook.run_begin(self)
        for accuracy in self.accuracies:
            for _ in range(self.iters_per_epoch):
                self.state.iter += 1
                hook.train_iter_end(self)
            self.state.epoch += 1
            if accuracy > self.state.best.get("acc1", -1):
                self.state.best = {"acc1": accuracy, "epoch": self.state.epoch, "iter": self.state.iter}
            hook.train_epoch_end(self)
        return self


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def epochs_named(folder):
    return sorted(int(path.stem.partition("_")[2]) for path in folder.glob("epoch_*.pdparams"))


class TestCheckpointHook:
    @given(
        accuracies=st.lists(st.integers(0, 5), min_size=1, max_size=12),
        interval=st.integers(1, 5),
        keep=st.integers(0, 4),
    )
    @settings(deadline=None, max_examples=60)
    def test_the_newest_few_stay_with_the_best_and_the_latest(self, accuracies, interval, keep, tmp_path_factory):
        folder = tmp_path_factory.mktemp("run")
        Run(folder, accuracies).train(CheckpointHook(interval=interval, max_keep_ckpts=keep))
        last, best = len(accuracies), accuracies.index(max(accuracies)) + 1
        bests = [e for e in range(1, last + 1) if all(accuracies[e - 1] > a for a in accuracies[: e - 1])]
        written = sorted({*range(interval, last + 1, interval), last, *bests})
        assert epochs_named(folder) == (written[-keep:] if keep else written)
        assert (folder / "best.pdparams").read_text() == str(3 * best)
        assert (folder / "latest.pdparams").read_text() == str(3 * last)

    def test_without_evaluation_there_is_no_best(self, tmp_path):
        Run(tmp_path, [-1] * 5).train(CheckpointHook(interval=2, max_keep_ckpts=2))
        assert files(tmp_path) == ["epoch_4.pdparams", "epoch_5.pdparams", "latest.pdparams"]

    def test_by_iteration_the_best_epoch_and_the_end_are_saved_too(self, tmp_path):
        run = Run(tmp_path, [2, 1, 3, 1]).train(CheckpointHook(interval=5, by_epoch=False, max_keep_ckpts=0))
        assert [name for name, _ in run.saved] == [f"iter_{n}.pdparams" for n in (3, 5, 9, 10, 12)]
        assert (tmp_path / "best.pdparams").read_text() == "9"
        assert (tmp_path / "latest.pdparams").read_text() == "12"

    def test_by_iteration_the_newest_few_stay_too(self, tmp_path):
        Run(tmp_path, [-1] * 4).train(CheckpointHook(interval=2, by_epoch=False, max_keep_ckpts=2))
        assert files(tmp_path) == ["iter_10.pdparams", "iter_12.pdparams", "latest.pdparams"]

    def test_they_go_into_the_folder_of_checkpoints(self, tmp_path):
        (tmp_path / "run").mkdir()
        Run(tmp_path / "run", [1], checkpoint_dir=tmp_path / "far" / "away").train(CheckpointHook())
        assert files(tmp_path / "far" / "away") == ["best.pdparams", "epoch_1.pdparams", "latest.pdparams"]
        assert files(tmp_path / "run") == []

    def test_other_names_are_pruned_too_and_other_files_are_not(self, tmp_path):
        (tmp_path / "xcit+.pdparams").write_text("not a checkpoint of ours")
        (tmp_path / "xcit+0x.pdparams").write_text("nor this")
        hook = CheckpointHook(filename_tmpl="xcit+{}.pdparams", max_keep_ckpts=1, create_symlink=False)
        Run(tmp_path, [1, 1, 1]).train(hook)
        assert files(tmp_path) == ["best.pdparams", "xcit+.pdparams", "xcit+0x.pdparams", "xcit+3.pdparams"]

    def test_an_earlier_runs_higher_numbers_are_left_alone(self, tmp_path):
        (tmp_path / "epoch_40.pdparams").write_text("of another run")
        Run(tmp_path, [1, 1, 1]).train(CheckpointHook(max_keep_ckpts=1))
        assert epochs_named(tmp_path) == [3, 40]

    def test_what_a_killed_run_was_writing_is_removed(self, tmp_path):
        gone = [f".{name}.99999999.tmp" for name in ("epoch_3.pdparams", "latest.pdparams", "run.json")]
        gone += [f".epoch_3.pdparams.{os.getpid()}.tmp", f".epoch_4.pdparams.{10**30}.tmp"]
        stays = [f".epoch_3.pdparams.{os.getppid()}.tmp", ".mine.tmp"]
        for name in (*gone, *stays):
            (tmp_path / name).write_text("half")
        Run(tmp_path, [-1]).train(CheckpointHook())
        assert files(tmp_path) == sorted([*stays, "epoch_1.pdparams", "latest.pdparams"])

    def test_what_a_killed_run_was_writing_is_removed_from_both_folders(self, tmp_path):
        for folder in ("run", "checkpoints"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / ".config.yaml.99999999.tmp").write_text("half")
        CheckpointHook().run_begin(Run(tmp_path / "run", [], checkpoint_dir=tmp_path / "checkpoints"))
        assert files(tmp_path / "run") == files(tmp_path / "checkpoints") == []

    @pytest.mark.parametrize("save", [True, False])
    def test_the_optimizers_state_is_saved_or_not(self, save, tmp_path):
        assert Run(tmp_path, [1]).train(CheckpointHook(save_optimizer=save)).saved == [("epoch_1.pdparams", save)]

    def test_it_says_so_as_passl_does(self, tmp_path, capsys):
        setup_logger()
        Run(tmp_path, [-1, -1]).train(CheckpointHook(interval=2))
        Run(tmp_path, [-1]).train(CheckpointHook(interval=3, by_epoch=False))
        assert messages(capsys)[:2] == ["Saving checkpoint at 2 epochs", "Saving checkpoint at 3 iterations"]

    @pytest.mark.parametrize(
        "template",
        [
            "epoch.pdparams",
            "epoch_{}_{}.pdparams",
            "a/{}.pdparams",
            "epoch_{}.pd",
            "{0}.pdparams",
            "{}{x}.pdparams",
            "{}{.pdparams",
        ],
    )
    def test_a_name_that_could_not_be_filled_in_is_refused_before_training(self, template):
        with pytest.raises(ValueError, match=re.escape(f"a name like 'epoch_{{}}.pdparams', not '{template}'")):
            CheckpointHook(filename_tmpl=template)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogHook(interval=0), "interval must be at least 1, not 0"),
        (lambda: EvaluateHook(interval=0), "interval must be at least 1, not 0"),
        (lambda: CheckpointHook(interval=0), "interval 0, max_keep_ckpts 5: expected at least 1 and 0"),
        (lambda: CheckpointHook(max_keep_ckpts=-1), "interval 1, max_keep_ckpts -1: expected at least 1 and 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
