"""What a run prints and in which order, what it writes and where, and what it refuses before it writes anything."""

import os
import re
import shutil

import paddle
import pytest
from tiny_run import tiny_config, tiny_file, tiny_run

import passl_xcit
from passl_xcit.datasets.imagenet import ImageNet
from passl_xcit.engine import builder, launch
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.solver import optimizer
from passl_xcit.utils.config import load_config
from passl_xcit.utils.errors import CheckpointError, ConfigError, UserError


@pytest.fixture
def weights(tmp_path):
    """A weight file that fits the tiny config."""
    tiny_run(tmp_path, "epochs=1", f"output_dir={tmp_path}/earlier")
    write_file(tmp_path / "weights.pdparams", read_file(tmp_path / "earlier" / "latest.pdparams")["state_dict"])
    return tmp_path / "weights.pdparams"


def forbid(monkeypatch, *functions):
    """Make these functions of the builder fail when they are called."""
    for name in functions:
        monkeypatch.setattr(builder, name, lambda *arguments, name=name, **options: pytest.fail(f"{name} was called"))


def printed(capsys):
    return capsys.readouterr().out.splitlines()


class TestEvaluation:
    def test_it_builds_nothing_of_training(self, weights, tmp_path, monkeypatch):
        forbid(monkeypatch, "build_trainer", "build_hooks")
        monkeypatch.setattr(optimizer, "NativeAdamW", None)
        seen = []
        monkeypatch.setattr(ImageNet, "__init__", recording(ImageNet.__init__, seen))
        overrides = ("dataloader.train.dataset.dataroot=/nowhere", "lr_scheduler=null", "optimizer=null")
        metrics = tiny_run(tmp_path, *overrides, load=weights, evaluate_only=True)
        assert set(metrics) == {"acc1", "acc5"} and seen == [f"{tmp_path}/val"]

    def test_it_writes_nothing(self, weights, tmp_path):
        before = sorted(tmp_path.rglob("*"))
        tiny_run(tmp_path, load=weights, evaluate_only=True)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_checkpoint_has_the_accuracy_that_its_run_logged(self, tmp_path):
        best = tiny_run(tmp_path)
        metrics = tiny_run(tmp_path, load=tmp_path / "out" / "best.pdparams", evaluate_only=True)
        assert metrics == {"acc1": best["acc1"], "acc5": best["acc5"]}

    def test_without_weights_it_says_that_they_are_untrained(self, tmp_path, capsys):
        tiny_run(tmp_path, evaluate_only=True)
        assert "WARNING: no --load: the weights are untrained" in capsys.readouterr().out


def recording(init, seen):
    def wrapped(self, dataroot, *arguments, **options):
        seen.append(dataroot)
        init(self, dataroot, *arguments, **options)

    return wrapped


class TestLog:
    def test_an_evaluation_prints_passls_lines_in_passls_order(self, weights, tmp_path, capsys):
        capsys.readouterr()
        tiny_run(tmp_path, load=weights, evaluate_only=True)
        lines = [line[17:] for line in printed(capsys)]
        starts = ["passl INFO: Configs: {'epochs': 2, "] + [
            f"passl.engine.trainer INFO: {text}"
            for text in (
                f"train with paddle {paddle.__version__} on Place(cpu) device",
                "Number of Parameters is 2.97K.",
                "start evaluate on epoch 1 ..",
                "Evaluate total samples 15",
                "Validate Epoch [1] acc1 (",
            )
        ]
        assert len(lines) == len(starts)
        assert all(line.startswith(start) for line, start in zip(lines, starts))

    @pytest.mark.parametrize("training", [True, False])
    def test_the_printed_config_ends_as_passls_does(self, training, tmp_path, capsys):
        tiny_run(tmp_path, evaluate_only=not training)
        config = printed(capsys)[0]
        assert re.search(rf"'is_train': {training}, 'timestamp': '-\d{{4}}(-\d\d){{4}}'}}$", config)

    def test_log_txt_holds_what_was_printed_from_the_first_line_on(self, tmp_path, capsys):
        tiny_run(tmp_path)
        assert (tmp_path / "out" / "log.txt").read_text() == capsys.readouterr().out

    def test_a_second_run_in_the_process_appends_its_own_lines_once(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=1")
        tiny_run(tmp_path, resume_from="auto")
        assert (tmp_path / "out" / "log.txt").read_text() == capsys.readouterr().out
        tiny_run(tmp_path, f"output_dir={tmp_path}/other")
        assert (tmp_path / "other" / "log.txt").read_text() == capsys.readouterr().out


class TestDevice:
    def test_passls_gpu_becomes_the_cpu_with_a_warning(self, tmp_path, capsys):
        tiny_run(tmp_path, "device=gpu", evaluate_only=True)
        lines = printed(capsys)
        assert lines[1].endswith("device: gpu was asked for, but this Paddle sees no GPU: running on the CPU")
        assert lines[2].endswith("on Place(cpu) device")

    @pytest.mark.parametrize(
        ("device", "message"),
        [
            ("npu", "device: 'npu' needs Paddle's Ascend plugin, which is not installed (this Paddle has: cpu)"),
            ("npu:0", "device: 'npu' needs Paddle's Ascend plugin"),
            ("gpu:x", "device: 'gpu:x': expected a device such as cpu, gpu, gpu:1 or npu:0"),
            ("cpu:0", "device: 'cpu:0'"),
            ("gpu:", "device: 'gpu:': expected a device such as cpu, gpu, gpu:1 or npu:0"),
            ("banana", "device: no device 'banana'; this Paddle has: cpu"),
            ("xpu", "device: no device 'xpu'; this Paddle has: cpu"),
        ],
    )
    def test_a_device_that_is_not_there_is_named_before_a_model_is_built(self, device, message, tmp_path, monkeypatch):
        forbid(monkeypatch, "build_model")
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            tiny_run(tmp_path, f"device='{device}'")
        assert str(caught.value).startswith(f"-o device='{device}': ")
        assert not (tmp_path / "out").exists()

    def test_without_a_device_in_the_config_it_is_what_paddle_was_built_for(self, tmp_path, capsys):
        tiny_run(tmp_path, "device=null", evaluate_only=True)
        assert "on Place(cpu) device" in capsys.readouterr().out


class TestRefused:
    """Nothing is written: not even the output folder is made."""

    @pytest.fixture(autouse=True)
    def nothing_is_written(self, tmp_path):
        tiny_file(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        yield
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("evaluate_only", [True, False])
    @pytest.mark.parametrize("override", ["epoch=1", "checkpoint.x=1", "dataloader.val.dataset.transforms.0.x=1"])
    def test_a_wrong_key_before_device_weights_or_data_are_touched(
        self, override, evaluate_only, tmp_path, monkeypatch
    ):
        forbid(monkeypatch, "build_model", "build_loader")
        for name in ("select_device", "load_weights", "setup_logger"):
            monkeypatch.setattr(launch, name, lambda *_: pytest.fail("touched"))
        with pytest.raises(ConfigError, match="takes no"):
            tiny_run(tmp_path, override, load="/nowhere", evaluate_only=evaluate_only)

    @pytest.mark.parametrize("evaluate_only", [True, False])
    def test_a_weight_file_that_is_not_there(self, evaluate_only, tmp_path, monkeypatch):
        forbid(monkeypatch, "build_model", "build_loader")
        with pytest.raises(CheckpointError, match=r"--load /nowhere.pdparams: there is no such file"):
            tiny_run(tmp_path, load="/nowhere.pdparams", evaluate_only=evaluate_only)

    def test_a_checkpoint_that_is_not_there(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"--resume /nowhere.pdparams: there is no such file"):
            tiny_run(tmp_path, resume_from="/nowhere.pdparams")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"load": "w", "resume_from": "auto"}, "--resume and --load cannot go together"),
            ({"evaluate_only": True, "resume_from": "auto"}, "--resume and --evaluate-only cannot go together"),
        ],
    )
    def test_options_that_contradict_each_other(self, options, message, tmp_path):
        with pytest.raises(ConfigError, match=message):
            tiny_run(tmp_path, **options)

    @pytest.mark.parametrize("split", ["train", "val"])
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("dataroot=/nowhere", r"/nowhere: no such folder"),
            ("dataroot={}", "holds no class folders"),
            ("list_file={}/negative.txt", "negative.txt: label -1 is out of range: the model has classes 0 to 2"),
            ("list_file={}/three.txt", "three.txt: label 3 is out of range: the model has classes 0 to 2"),
            ("list_file={}/words.txt", "words.txt:2: expected 'path label', found 'class0/1.png zero'"),
        ],
    )
    def test_data_that_cannot_be_used(self, override, message, split, tmp_path, tmp_path_factory):
        lists = tmp_path_factory.mktemp("lists")
        for name, label in (("negative", "-1"), ("three", "3"), ("words", "zero")):
            (lists / f"{name}.txt").write_text(f"class0/0.png 0\nclass0/1.png {label}\n")
        with pytest.raises(UserError, match=message):
            tiny_run(tmp_path, f"dataloader.{split}.dataset.{override.format(lists)}")

    def test_a_class_count_that_does_not_fit(self, tmp_path):
        with pytest.raises(UserError, match="3 classes, but the model has 5: set model.head.num_classes to 3, or keep"):
            tiny_run(tmp_path, "model.head.num_classes=5")

    @pytest.mark.parametrize("key", ["output_dir", "checkpoint.out_dir"])
    def test_an_output_folder_below_a_file(self, key, tmp_path):
        made = [f"output_dir={tmp_path}"] if key != "output_dir" else []
        with pytest.raises(ConfigError, match=rf"{key}: {tmp_path}/tiny.yaml/out: cannot be made: Not a directory"):
            tiny_run(tmp_path, *made, f"{key}={tmp_path}/tiny.yaml/out")

    def test_an_output_folder_that_is_a_file(self, tmp_path):
        with pytest.raises(ConfigError, match=rf"output_dir: {tmp_path}/tiny.yaml: cannot be made: File exists"):
            tiny_run(tmp_path, f"output_dir={tmp_path}/tiny.yaml")

    def test_an_output_folder_that_takes_no_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with pytest.raises(ConfigError, match=f"output_dir: {tmp_path}: this folder cannot be written to"):
            tiny_run(tmp_path, f"output_dir={tmp_path}")


class TestAFolderThatHoldsARun:
    @pytest.mark.parametrize("key", ["output_dir", "checkpoint.out_dir"])
    def test_is_not_overwritten_by_another_one(self, key, tmp_path):
        tiny_run(tmp_path, "epochs=1", f"{key}={tmp_path}/run")
        elsewhere = [f"output_dir={tmp_path}/new"] if key != "output_dir" else []
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("[!.]*")}
        message = (
            rf"{key}: {tmp_path}/run holds checkpoints of another run, such as epoch_1.pdparams: go on with it "
            r"\(--resume auto\), choose another output_dir, or delete them$"
        )
        with pytest.raises(ConfigError, match=message):
            tiny_run(tmp_path, *elsewhere, f"{key}={tmp_path}/run")
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("[!.]*")} == before
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["latest", "best", "best_ema", "interrupted", "epoch_7"])
    def test_is_known_by_any_name_that_would_be_given_again(self, name, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / f"{name}.pdparams").write_text("dear to somebody")
        with pytest.raises(ConfigError, match=f"holds checkpoints of another run, such as {name}.pdparams: go on"):
            tiny_run(tmp_path)

    def test_takes_a_new_one_where_it_has_weights_only_or_no_checkpoint_yet(self, weights, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        for path in (tmp_path / "out").glob("*.pdparams"):
            path.unlink()
        shutil.copy(weights, tmp_path / "out" / "xcit_nano_12_p16_224.pdparams")
        tiny_run(tmp_path, "epochs=1", load=tmp_path / "out" / "xcit_nano_12_p16_224.pdparams")
        assert (tmp_path / "out" / "epoch_1.pdparams").is_file()

    def test_can_be_evaluated(self, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        assert tiny_run(tmp_path, load=tmp_path / "out" / "best.pdparams", evaluate_only=True)["acc5"] == 100.0


class TestNumClassesAuto:
    AUTO = "model.head.num_classes=auto"

    def test_is_the_number_of_the_folders_and_stands_in_the_written_config(self, tmp_path):
        tiny_run(tmp_path, self.AUTO, "epochs=1")
        tiny_run(tmp_path, self.AUTO, resume_from="auto")
        tiny_run(tmp_path, "epochs=3", resume_from="auto")  # the same run as with the number
        assert load_config(tmp_path / "out" / "config.yaml")["model"]["head"]["num_classes"] == 3
        assert read_file(tmp_path / "out" / "latest.pdparams")["state_dict"]["head.fc_cls.weight"].shape == (8, 3)

    def test_is_the_validation_datas_in_an_evaluation(self, weights, tmp_path):
        shutil.rmtree(tmp_path / "train", ignore_errors=True)
        expected = tiny_run(tmp_path, load=weights, evaluate_only=True)
        assert tiny_run(tmp_path, self.AUTO, load=weights, evaluate_only=True) == expected

    def test_is_one_more_than_the_largest_label_of_a_list(self, tmp_path):
        tiny_file(tmp_path)
        (tmp_path / "train" / "list.txt").write_text("class0/0.png 0\nclass0/1.png 6\n" * 4)
        cfg = tiny_config(tmp_path, self.AUTO, "dataloader.train.dataset.list_file=list.txt")
        assert builder.with_classes_of_data(cfg, "train")["model"]["head"]["num_classes"] == 7

    def test_holds_for_every_head_that_says_so(self, tmp_path):
        models = "[{Teacher: {head: {num_classes: auto}}}, {Student: {head: {num_classes: 5}}}]"
        cfg = builder.with_classes_of_data(tiny_config(tmp_path, f"model={{models: {models}}}"), "train")
        assert [node["head"]["num_classes"] for item in cfg["model"]["models"] for node in item.values()] == [3, 5]

    def test_is_no_other_word(self, tmp_path):
        with pytest.raises(ConfigError, match="model.head.num_classes: SwinTransformerClsHead expects int, not 'many'"):
            tiny_run(tmp_path, "model.head.num_classes=many")


class TestLoad:
    def test_training_starts_with_the_weights(self, weights, tmp_path):
        """With a learning rate of next to nothing it ends with them, too."""
        small = "lr_scheduler={name: CosineAnnealingDecay, learning_rate: 1e-12, T_max: 1}"
        tiny_run(tmp_path, small, "optimizer.weight_decay=0.0", load=weights)
        trained = read_file(tmp_path / "out" / "latest.pdparams")["state_dict"]
        for name, array in read_file(weights).items():
            if name in trained and not name.endswith(("._mean", "._variance")):
                assert abs(trained[name] - array).max() < 1e-9

    def test_what_does_not_fit_is_listed_and_the_model_left_alone(self, weights, tmp_path):
        arrays = {name: array for name, array in read_file(weights).items()}
        del arrays["backbone.cls_token"]
        arrays["head.other"] = arrays.pop("head.fc_cls.weight")
        arrays["head.fc_cls.bias"] = arrays["head.fc_cls.bias"][:2]
        write_file(tmp_path / "other.pdparams", arrays)
        models = []
        with pytest.raises(CheckpointError) as caught, pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "load_weights", keeping_the_model(launch.load_weights, models))
            tiny_run(tmp_path, load=tmp_path / "other.pdparams", evaluate_only=True)
        assert str(caught.value).splitlines() == [
            f"{tmp_path}/other.pdparams does not fit the model, which is left as it was:",
            "  - backbone.cls_token [1, 1, 8]: the model has it, the file has not",
            "  - head.fc_cls.weight [8, 3]: the model has it, the file has not",
            "  + head.other [8, 3]: the file has it, the model has not",
            "  ~ head.fc_cls.bias: file [2], model [3]",
        ]
        before, after = models
        assert all((before[name] == after[name]).all() for name in before)


def keeping_the_model(load, models):
    """`load`, which writes down the model's weights before and after it."""

    def wrapped(model, path, **options):
        models.append({name: tensor.numpy().copy() for name, tensor in model.state_dict().items()})
        try:
            load(model, path, **options)
        finally:
            models.append({name: tensor.numpy() for name, tensor in model.state_dict().items()})

    return wrapped


class TestFromPython:
    def test_a_training_and_an_evaluation_take_values_by_their_paths(self, tmp_path):
        config = tiny_file(tmp_path)
        best = passl_xcit.train(config, overrides={"epochs": 1, "dataloader.train.sampler.batch_size": 8})
        checkpoint = tmp_path / "out" / "latest.pdparams"
        assert best["epoch"] == 1 and best["iter"] == 3
        report = tmp_path / "report"
        found = passl_xcit.evaluate(config, checkpoint, {"dataloader.val.sampler.batch_size": 1}, str(report))
        assert (report / "report.html").is_file()
        assert found == {"acc1": best["acc1"], "acc5": best["acc5"]}
        again = passl_xcit.train(
            config, resume="auto", overrides={"epochs": 2, "dataloader.train.sampler.batch_size": 8}
        )
        assert again["iter"] in (3, 6) and read_file(checkpoint)["epoch"] == 2

    def test_a_wrong_value_is_named_by_its_path(self, tmp_path):
        with pytest.raises(ConfigError, match=r"^overrides\['epoch'\]: epoch: the config takes no 'epoch'"):
            passl_xcit.train(tiny_file(tmp_path), overrides={"epoch": 1})
        with pytest.raises(CheckpointError, match="--load gone.pdparams: there is no such file"):
            passl_xcit.evaluate(tiny_file(tmp_path), "gone.pdparams")
