"""Ordinary mistakes, found by people who tried the program: each ends in one line that says what to do."""

import os
import re
import shutil

import pytest
from tiny_run import tiny_config, tiny_run, tiny_trainer

from passl_xcit.engine import builder
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError, TrainingError, exit_with_one_line


def message(error, *arguments, **options):
    with pytest.raises(error) as caught:
        tiny_run(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "override, error, text",
    [
        (
            "dataloader.train.dataset.transforms.0={name: CenterCrop, size: 6}",
            DataError,
            "images of 6 x 6 pixels do not divide into patches of 4: let CenterCrop or Resize make both sides",
        ),
        ("model.architecture.in_chans=1", DataError, "images have 3 channels, but the model's in_chans is 1"),
        ("model.head.with_avg_pool=true", ConfigError, "with_avg_pool must be false: the backbone gives 2-D features"),
        ("checkpoint={name: LogHook}", ConfigError, "must be a CheckpointHook; other hooks stand in custom_config"),
        ("log_config.name=CheckpointHook", ConfigError, "must be a LogHook"),
        ("optimizer.weight_decay=-1.0", ConfigError, "weight_decay must not be negative, but is -1.0"),
        ("model.architecture.mlp_ratio=-1.0", ConfigError, "mlp_ratio must be above 0, not -1.0"),
    ],
)
def test_values_that_cannot_work(override, error, text, tmp_path):
    assert text in message(error, tmp_path, override)


@pytest.mark.parametrize(
    "override",
    ["model.architecture.patch_size=3", "dataloader.train.sampler.batch_size=0", "optimizer.weight_decay=-1"],
)
def test_a_wrong_value_of_an_override_is_blamed_on_the_override(override, tmp_path):
    path = override.partition("=")[0]
    assert message(ConfigError, tmp_path, override).startswith(f"-o {override}: {path}: ")


class TestLossThatIsNoNumber:
    RATE = ("lr_scheduler.learning_rate=1.0e+30", "lr_scheduler.end_lr=1.0e+30")

    def test_training_stops_and_says_why(self, tmp_path):
        text = message(TrainingError, tmp_path, *self.RATE)
        pattern = (
            r"the gradient was not finite in 6 iterations in a row, the last with loss .* learning rate \d\.\d+e\+"
        )
        assert re.match(pattern, text)

    def test_no_checkpoint_of_it_is_written(self, tmp_path):
        message(TrainingError, tmp_path, *self.RATE, "log_config.interval=1000", "epochs=2")
        assert not list((tmp_path / "out").glob("*.pdparams"))


class TestResume:
    def test_with_another_learning_rate_is_refused(self, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        checkpoint = tmp_path / "out" / "epoch_1.pdparams"
        text = message(CheckpointError, tmp_path, "lr_scheduler.end_lr=0.01", resume_from=checkpoint)
        assert "was written with lr_scheduler.end_lr 0.02, this run has 0.01" in text

    def test_of_a_finished_run_says_that_nothing_is_left(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=1")
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        tiny_run(tmp_path, "epochs=1", resume_from="auto")
        assert "1 of 1 epochs are done: nothing to train; raise `epochs`" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == files

    @pytest.mark.parametrize(
        "entry, text",
        [
            ({"epoch": "x"}, "expected whole numbers"),
            ({"epoch": -5}, "expected whole numbers"),
            ({"iter": 10**6}, "1000000 iterations are not 1 epochs of 6"),
            ({"best": {"acc1": "x"}}, "expected numbers"),
            ({"optimizer": [1]}, "the state of its optimizer, schedule or loss scale is not"),
            ({"lr_scheduler": [1]}, "the state of its optimizer, schedule or loss scale is not"),
            ({"bad_images": [24]}, "its bad images are [24], expected numbers of the 24 images"),
            ({"bad_images": {"a": 1}}, "expected numbers of the 24 images"),
        ],
        ids=str,
    )
    def test_of_a_file_whose_entries_make_no_sense_is_refused(self, entry, text, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        path = tmp_path / "odd.pdparams"
        write_file(path, {**read_file(tmp_path / "out" / "epoch_1.pdparams"), **entry})
        assert text in message(CheckpointError, tmp_path, resume_from=path)


class TestFolders:
    def test_hidden_ones_are_no_classes(self, tmp_path):
        tiny_config(tmp_path)
        (tmp_path / "val" / ".git").mkdir()
        tiny_run(tmp_path, "epochs=1")

    @pytest.mark.parametrize("target", ["..", "."])
    def test_a_link_that_leads_back_is_followed_once(self, target, tmp_path):
        trainer = tiny_trainer(tmp_path)
        count = len(trainer.evaluator.loader.dataset)
        (tmp_path / "val" / "class0" / "loop").symlink_to(target)
        linked = tiny_trainer(tmp_path).evaluator.loader.dataset
        assert len(linked) == count if target == "." else len(linked) < 3 * count

    def test_other_class_names_in_the_other_split_are_refused(self, tmp_path):
        tiny_config(tmp_path)
        (tmp_path / "val" / "class1").rename(tmp_path / "val" / "class9")
        assert message(DataError, tmp_path).endswith("'class2' instead of 'class1'")


class TestEndings:
    def test_an_error_of_the_system_is_one_line(self, capsys):
        def main(_):
            os.stat("x" * 300)

        with pytest.raises(SystemExit) as ended:
            exit_with_one_line(main)
        assert ended.value.code == 1
        assert capsys.readouterr().err == f"error: {'x' * 300}: File name too long\n"

    def test_too_little_memory_is_one_line(self, capsys):
        def main(_):
            raise MemoryError

        with pytest.raises(SystemExit) as ended:
            exit_with_one_line(main)
        assert ended.value.code == 1
        assert capsys.readouterr().err == "error: not enough memory: try a smaller batch, image or model\n"


def test_same_class_names_in_both_splits_are_fine(tmp_path):
    cfg = tiny_config(tmp_path)
    shutil.rmtree(tmp_path / "val" / "class2")
    (tmp_path / "val" / "class2").mkdir()
    assert builder.build_trainer(cfg, builder.build_model(cfg)).evaluator is not None
