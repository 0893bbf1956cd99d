"""A run leaves its whole config, which runs again as it is, and says of each start what it was."""

import json
import os
import platform
import re
import shlex
import shutil
import sys
from datetime import datetime, timedelta, timezone

import numpy as np
import paddle
import PIL
import pytest
from tiny_run import ROOT, TRAIN, tiny_config, tiny_file, tiny_run

import passl_xcit
from passl_xcit.engine import launch
from passl_xcit.engine.run_record import without_secrets
from passl_xcit.engine.trainer import Trainer
from passl_xcit.utils.config import Override, load_config, parse_override
from passl_xcit.utils.errors import CheckpointError, DataError


def starts(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["starts"]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def remove_checkpoints(folder):
    for path in folder.glob("*.pdparams"):
        path.unlink()


class TestConfig:
    def test_it_is_the_effective_one(self, tmp_path):
        base = tiny_file(tmp_path)
        (tmp_path / "child.yaml").write_text(f"_base_: {base.name}\nepochs: 1\nmodel: {{head: {{in_channels: 8}}}}\n")
        overrides = [parse_override(text) for text in ("seed=7", "optimizer.weight_decay=1e-3", "device=cpu")]
        launch.run(tmp_path / "child.yaml", overrides)
        effective = load_config(tmp_path / "child.yaml", overrides).to_dict()
        written = load_config(tmp_path / "out" / "config.yaml").to_dict()
        assert written == effective and list(written) == list(effective)
        assert (written["seed"], written["epochs"], written["optimizer"]["weight_decay"]) == (7, 1, 0.001)

    def test_it_runs_again_and_gives_the_same_run(self, tmp_path):
        tiny_run(tmp_path, "epochs=1", "seed=7", "model.architecture.drop_rate=0.2")
        launch.run(tmp_path / "out" / "config.yaml", [Override("output_dir", str(tmp_path / "again"), "--output_dir")])
        first, again = ((tmp_path / name / "latest.pdparams").read_bytes() for name in ("out", "again"))
        assert first == again

    def test_it_goes_on_with_its_own_run(self, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        before = (tmp_path / "out" / "config.yaml").read_bytes()
        launch.run(tmp_path / "out" / "config.yaml", [parse_override("epochs=2")], resume_from="auto")
        assert load_config(tmp_path / "out" / "config.yaml")["epochs"] == 2
        assert (tmp_path / "out" / "config.yaml").read_bytes() == before.replace(b"epochs: 1", b"epochs: 2")

    def test_the_users_own_file_of_that_name_is_kept(self, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        text = "# mine\n_base_: ../tiny.yaml\nepochs: 1\n"
        tiny_file(tmp_path)
        for _ in range(2):
            (tmp_path / "out" / "config.yaml").write_text(text)
            remove_checkpoints(tmp_path / "out")
            launch.run(tmp_path / "out" / "config.yaml")
            message = "out/config.yaml was not written by a training: it is config.yaml.1 now"
        assert (
            (tmp_path / "out" / "config.yaml.1").read_text() == (tmp_path / "out" / "config.yaml.2").read_text() == text
        )
        assert message in capsys.readouterr().out
        assert load_config(tmp_path / "out" / "config.yaml")["seed"] == 5


class TestRecord:
    def test_its_keys_are_the_documented_ones(self, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        table = (
            (ROOT / "docs" / "training.md")
            .read_text(encoding="utf-8")
            .partition("### run.json")[2]
            .partition("\n##")[0]
        )
        documented = [key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in re.findall(r"`(\w+)`", row)]
        assert list(starts(tmp_path / "out")[0]) == documented

    def test_it_says_what_a_start_was(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["tools/train.py", "-c", "my config.yaml"])
        tiny_run(tmp_path, "epochs=1")
        (entry,) = starts(tmp_path / "out")
        started = datetime.fromisoformat(entry.pop("started"))
        assert timedelta(0) < datetime.now(timezone.utc) - started < timedelta(minutes=5)
        assert shlex.split(entry.pop("command")) == ["tools/train.py", "-c", "my config.yaml"]
        data = entry.pop("data")
        assert [(data[split]["samples"], data[split]["classes"]) for split in ("train", "val")] == [(24, 3), (15, 3)]
        assert entry == {
            "resumed_from": None,
            "seed": 5,
            "epochs": 1,
            "iters_per_epoch": 6,
            "global_batch_size": 4,
            "processes": 1,
            "device": "cpu",
            "cores": len(os.sched_getaffinity(0)),
            "versions": {
                "passl_xcit": passl_xcit.__version__,
                "paddle": paddle.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
            },
        }

    @pytest.mark.parametrize("resume_from", ["auto", "{}/out/epoch_1.pdparams"])
    def test_a_resumed_run_adds_where_it_came_from(self, resume_from, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        first = starts(tmp_path / "out")
        tiny_run(tmp_path, resume_from=resume_from.format(tmp_path))
        assert starts(tmp_path / "out")[:-1] == first
        file = f"{tmp_path}/out/epoch_1.pdparams"
        come_from = starts(tmp_path / "out")[-1]["resumed_from"]
        assert os.path.samefile(come_from.pop("file"), file) and come_from == {"epoch": 1, "iter": 6}

    def test_another_run_in_the_folder_is_another_start(self, tmp_path):
        for _ in range(2):
            remove_checkpoints(tmp_path / "out")
            tiny_run(tmp_path, "epochs=1")
        assert [entry["resumed_from"] for entry in starts(tmp_path / "out")] == [None, None]

    @pytest.mark.parametrize("checkpoints", ["out", "elsewhere"])
    def test_with_a_folder_that_is_removed_it_comes_again_with_the_next_checkpoint(
        self, checkpoints, tmp_path, monkeypatch, capsys
    ):
        step, kept = Trainer.train_step, {}

        def removing(trainer, *batch):
            if trainer.state.iter == 3:
                kept.update({name: (tmp_path / "out" / name).read_bytes() for name in ("config.yaml", "run.json")})
                shutil.rmtree(tmp_path / "out")
            return step(trainer, *batch)

        monkeypatch.setattr(Trainer, "train_step", removing)
        tiny_run(tmp_path, f"checkpoint.out_dir={tmp_path}/{checkpoints}")
        assert {name: (tmp_path / "out" / name).read_bytes() for name in kept} == kept and len(kept) == 2
        assert "out/config.yaml was gone: it is written again" in (tmp_path / "out" / "log.txt").read_text()
        assert "out/log.txt: No such file or directory: lines of this log are lost" in capsys.readouterr().err

    def test_auto_without_a_checkpoint_comes_from_nowhere(self, tmp_path):
        tiny_run(tmp_path, "epochs=1", resume_from="auto")
        assert starts(tmp_path / "out")[0]["resumed_from"] is None

    def test_a_run_without_evaluation_has_no_validation_data(self, tmp_path):
        tiny_run(tmp_path, "epochs=1", "custom_config=null")
        assert list(starts(tmp_path / "out")[0]["data"]) == ["train"]

    @pytest.mark.parametrize("text", ["{", "[]", '{"starts": 3}', "null", "[" * 5000, "\udcff"])
    def test_a_file_of_that_name_that_is_none_of_ours_is_kept(self, text, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.json").write_text(text, errors="surrogateescape")
        tiny_run(tmp_path, "epochs=1")
        assert len(starts(tmp_path / "out")) == 1
        assert (tmp_path / "out" / "run.json.1").read_text(errors="surrogateescape") == text

    def test_the_environment_is_not_in_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MY_TOKEN", "hunter-two")
        tiny_run(tmp_path, "epochs=1")
        assert "hunter-two" not in (tmp_path / "out" / "run.json").read_text()

    @pytest.mark.parametrize(
        ("argument", "shown"),
        [
            ("https://me:pass@host.example/w.pdparams", "https://***@host.example/w.pdparams"),
            ("https://host.example/w.pdparams?token=abc", "https://host.example/w.pdparams?***"),
            ("model.pretrained=https://t@host.example/a?b=c", "model.pretrained=https://***@host.example/a?***"),
            ("https://host.example/user@2x.pdparams", "https://host.example/user@2x.pdparams"),
            ("a@b/what?.yaml", "a@b/what?.yaml"),
        ],
    )
    def test_an_address_shows_no_secrets(self, argument, shown):
        assert without_secrets(argument) == shown


def test_what_does_not_start_leaves_no_record(tmp_path):
    with pytest.raises(DataError):
        tiny_run(tmp_path, "dataloader.train.sampler.batch_size=99")
    tiny_run(tmp_path, evaluate_only=True)
    assert not (tmp_path / "out").exists()


def test_a_finished_run_that_is_started_again_is_no_start(tmp_path):
    tiny_run(tmp_path, "epochs=1")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
    tiny_run(tmp_path, "epochs=1", resume_from="auto")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")} == before


def test_a_folder_that_cannot_take_it_ends_the_run_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="out/config.yaml: cannot be written: No space left on device"):
        tiny_run(tmp_path)
    assert files(tmp_path / "out") == [".lock", "log.txt"]


@pytest.mark.slow
def test_only_the_first_of_two_processes_writes_it(tmp_path):
    from test_distributed import launch as launch_two

    code, output, second = launch_two(tmp_path, TRAIN, "-c", tiny_file(tmp_path), "-o", "epochs=1")
    assert code == 0, output + second
    (entry,) = starts(tmp_path / "out")
    assert (entry["processes"], entry["global_batch_size"]) == (2, 8)
    assert load_config(tmp_path / "out" / "config.yaml").to_dict() == tiny_config(tmp_path, "epochs=1").to_dict()
    assert not list((tmp_path / "out").glob(".*.tmp"))
