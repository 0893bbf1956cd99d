"""The command line of tools/train.py: its options, and one line on stderr for whatever is wrong."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from tiny_run import json_lines, start, tiny_file, tiny_run

from passl_xcit.utils.errors import ConfigError, exit_with_one_line
from tools import train


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `tools/train.py -c CONFIG <arguments>` in an empty folder: (exit code, stdout, stderr)."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    config = tiny_file(tmp_path)

    def call(*arguments, config=config):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(train.main, ["-c", str(config), *map(str, arguments)])
        output, errors = capsys.readouterr()
        return exit.value.code or 0, output, errors

    return call


def assert_one_line(result, code, message):
    """An error is one line `error: ...` on stderr and an exit code."""
    assert result[0] == code
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", result[2]), result[2]


@pytest.fixture
def untouched(tmp_path):
    """Nothing is written anywhere in the test's folder."""
    tiny_file(tmp_path)
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"tiny.yaml", "train", "val", "empty", "given"}
    assert not list((tmp_path / "empty").glob("*"))


class TestRuns:
    def test_it_trains_and_then_evaluates_what_it_trained(self, run, tmp_path):
        code, output, errors = run("--output_dir", tmp_path / "mine", "-o", "epochs=1")
        assert code == 0 and "'epochs': 1, 'output_dir': '" in output
        accuracy = re.search(r"Validate Epoch \[1\] (.*)", output).group(1)
        code, output, errors = run("--load", tmp_path / "mine" / "latest.pdparams", "--evaluate-only")
        assert code == 0 and f"Validate Epoch [1] {accuracy}\n" in output

    def test_its_default_folder_is_passls_outputs(self, run, tmp_path):
        tiny_file(tmp_path).write_text(tiny_file(tmp_path).read_text().replace("output_dir:", "#"))
        assert run("-o", "epochs=1")[0] == 0
        assert (tmp_path / "empty" / "outputs" / "latest.pdparams").is_file()

    @pytest.mark.parametrize("option", ["-c", "--config", "--config-file"])
    def test_the_config_has_three_names(self, option, tmp_path, capsys):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(train.main, [option, str(tiny_file(tmp_path)), "--evaluate-only"])
        assert not exit.value.code

    def test_overrides_are_yaml_and_the_last_one_wins(self, run):
        code, output, _ = run("-o", "seed=1", "--override", "epochs=7", "-o", "seed=0x10", "--evaluate-only")
        assert code == 0 and "{'epochs': 7, " in output and "'seed': 16," in output

    def test_a_key_that_the_file_lacks_but_the_class_accepts_may_be_set(self, run):
        code, output, _ = run("-o", "model.architecture.mlp_ratio=2", "--evaluate-only")
        assert code == 0 and "'mlp_ratio': 2" in output

    def test_an_override_is_never_evaluated(self, run):
        assert_one_line(run("-o", "epochs=__import__('os').getpid()"), 2, "epochs: the config expects int")
        code, output, _ = run("-o", "output_dir=max", "--evaluate-only")
        assert code == 0 and "'output_dir': 'max'" in output

    def test_data_dir_stands_for_both_data_roots(self, run, tmp_path):
        roots = ("-o", "dataloader.train.dataset.dataroot=/no", "-o", "dataloader.val.dataset.dataroot=/no")
        code, output, _ = run(*roots, "--data_dir", tmp_path, "-o", "epochs=1")
        assert code == 0 and f"'dataroot': '{tmp_path}/train'" in output and f"'dataroot': '{tmp_path}/val'" in output

    def test_data_dir_in_an_evaluation_needs_val_only(self, run, tmp_path):
        code, output, _ = run("-o", "dataloader.train=null", "--data_dir", tmp_path, "--evaluate-only")
        assert code == 0 and "Evaluate total samples 15" in output

    def test_resume_takes_a_file_or_auto(self, run, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        for value in ("auto", tmp_path / "out" / "epoch_1.pdparams"):
            code, output, _ = run("--resume", value)
            assert code == 0 and f"Resume training from {tmp_path}/out/epoch_1.pdparams success!" in output
            assert json_lines(tmp_path / "out")[-1]["epoch"] == 2
            (tmp_path / "out" / "epoch_2.pdparams").unlink()
            (tmp_path / "out" / "latest.pdparams").unlink()
            (tmp_path / "out" / "best.pdparams").unlink()

    def test_distribute_false_is_what_one_process_is(self, run):
        assert run("--distribute", "False", "--evaluate-only")[0] == 0

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_to_all_its_processes_ends_it_saved_and_with_the_customary_code(self, number, code, tmp_path):
        """In a terminal Ctrl-C reaches the workers, too, as a batch system's SIGTERM does. No process stays."""
        train = {"num_workers": 2}, {"batch_size": 1, "shuffle": True}
        overrides = [f"dataloader.train.{key}={json.dumps(value)}" for key, value in zip(("loader", "sampler"), train)]
        arguments = ["-c", tiny_file(tmp_path), "-o", overrides[0], "-o", overrides[1]]
        process = start(*arguments, "-o", "epochs=9999", start_new_session=True, stderr=subprocess.STDOUT)
        while "Epoch [2/9999][12/24]" not in (line := process.stdout.readline()):
            assert line, "the run ended by itself"
        os.killpg(process.pid, number)
        rest = process.communicate(timeout=60)[0].splitlines()
        assert process.returncode == code
        said = [line for line in rest if not re.match(r"\[\d\d/\d\d ", line)]
        assert len(said) == 1 and re.fullmatch(
            rf"stopped by {signal.Signals(number).name} after \d+ iterations; go on with --resume auto", said[0]
        )
        assert any("stopping after this step; once more stops at once, unsaved" in line for line in rest)
        assert not outlives_a_second(process.pid)
        tiny_run(tmp_path, overrides[1], resume_from="auto")
        assert json_lines(tmp_path / "out")[-1]["epoch"] == 2


def outlives_a_second(group):
    """Whether there still is a process of this group after a second."""
    for _ in range(20):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


BAD_OPTIONS = {
    "unknown": (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
    "abbreviated": (["--evaluate"], "unrecognized arguments: --evaluate"),
    "another abbreviated": (["--out", "x"], "unrecognized arguments: --out x"),
    "PASSL's that did nothing": (["--no-cuda"], "unrecognized arguments: --no-cuda"),
    "two values after one -o": (["-o", "epochs=1", "seed=3", "--evaluate-only"], "unrecognized arguments: seed=3"),
    "no value": (["--load"], "argument --load: expected one argument"),
    "neither true nor false": (["--distribute", "yes"], "argument --distribute: expected True or False, not 'yes'"),
}


@pytest.mark.usefixtures("untouched")
class TestRefused:
    @pytest.mark.parametrize("case", BAD_OPTIONS)
    def test_an_option_that_is(self, case, run):
        arguments, message = BAD_OPTIONS[case]
        code, _, errors = run(*arguments)
        assert code == 2 and errors.splitlines()[-1].endswith(message)

    def test_no_config_at_all(self, capsys):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(train.main, [])
        assert exit.value.code == 2 and "required: -c/--config-file/--config" in capsys.readouterr().err

    @pytest.mark.parametrize("config", ["nowhere.yaml", "."])
    def test_a_config_that_cannot_be_read(self, config, run):
        assert_one_line(
            run(config=config), 2, rf"{re.escape(config)}: the config cannot be read: (No such file|Is a dir)"
        )

    @pytest.mark.parametrize(
        ("line", "wrong", "message"),
        [
            ("epochs: 2", "epoch: 2", "epoch: the config takes no 'epoch'; did you mean 'epochs'?"),
            ("depth: 1", "dept: 1", "model.architecture.dept: XCiT takes no 'dept'; did you mean 'depth'?"),
            ("name: LinearWarmup", "name: Linear", "lr_scheduler.name: no lr_scheduler 'Linear'; did you mean "),
            (
                "- name: EvaluateHook",
                "- name: EvaluateHook\n  every: 1",
                "custom_config.0.every: EvaluateHook takes no 'every'; ",
            ),
            (
                " mean:",
                " means:",
                "dataloader.train.dataset.transforms.2.means: Normalize takes no 'means'; did you mean ",
            ),
        ],
    )
    @pytest.mark.parametrize("mode", [["--evaluate-only", "--load", "/nowhere"], []])
    def test_a_wrong_key_of_the_file(self, line, wrong, message, mode, run, tmp_path):
        path = tiny_file(tmp_path)
        assert line in path.read_text()
        path.write_text(path.read_text().replace(line, wrong, 1))
        assert_one_line(run(*mode), 2, re.escape(f"{path}: {message}"))

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["-o", "epochs"], 2, "-o epochs: expected KEY=VALUE, such as -o epochs=10"),
            (["-o", "=3"], 2, "-o =3: expected KEY=VALUE"),
            (["-o", "epochs.x=3"], 2, "-o epochs.x=3: epochs is 2, which has nothing below it"),
            (["-o", "epochs=[1"], 2, r"-o epochs=\[1: the value cannot be read"),
            (["-o", "custom_config.4.interval=2"], 2, "'4' is no place in a list of 1"),
            (["--data_dir", "/nowhere"], 2, "--data_dir /nowhere: there is no such folder"),
            (["--data_dir", "."], 1, "train: no such folder"),
            (["--data_dir", ".", "--evaluate-only"], 1, "val: no such folder"),
            (["--load", "nowhere.pdparams"], 1, "--load nowhere.pdparams: there is no such file"),
            (["--load", "."], 1, r"\.: is a folder; give the weight file itself"),
            (["--load", __file__], 1, r"test_train_cli.py: is not a weight file; it starts with b'"),
            (["--resume", "nowhere.pdparams"], 1, "--resume nowhere.pdparams: there is no such file"),
            (["--resume", "."], 1, r"\.: is a folder; give the weight file itself"),
            (["--resume", "auto", "--load", __file__], 2, "--resume and --load cannot go together"),
            (["--resume", "auto", "--evaluate-only"], 2, "--resume and --evaluate-only cannot go together"),
            (["--distribute", "True"], 2, "--distribute True: start with `python -m paddle.distributed.launch"),
            (
                ["--output_dir", __file__],
                2,
                "--output_dir: output_dir: .*test_train_cli.py: cannot be made: File exists",
            ),
            (["--output_dir", f"{__file__}/x"], 2, "cannot be made: Not a directory"),
            (["-o", "device=banana"], 2, "-o device=banana: device: no device 'banana'; this Paddle has: cpu"),
            (["-o", "device=npu"], 2, "-o device=npu: device: 'npu' needs Paddle's Ascend plugin"),
            (["-o", "dataloader.train.sampler.batch_size=99"], 1, "24 images do not fill one batch of 99"),
            (["-o", "model.head.num_classes=2"], 1, "3 classes, but the model has 2: set model.head.num_classes to 3"),
        ],
    )
    def test_what_cannot_be_done(self, arguments, code, message, run):
        assert_one_line(run(*arguments), code, message)

    @pytest.mark.parametrize("option", ["--load", "--resume"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a git-lfs pointer; fetch the "),
            (b"<!DOCTYPE html><html>404", "is an HTML page; the download went wrong"),
            (b"", "is empty; copy or download it again"),
            (b"\x80\x04}", "damaged|ends"),
        ],
    )
    def test_a_file_that_holds_no_weights(self, option, content, message, run, tmp_path):
        (tmp_path / "given").write_bytes(content)
        assert_one_line(run(option, tmp_path / "given"), 1, rf"given: .*({message})")

    def test_an_empty_folder_of_images(self, run, tmp_path):
        (tmp_path / "given").mkdir()
        assert_one_line(
            run("-o", f"dataloader.train.dataset.dataroot={tmp_path}/given"), 1, "given: holds no class folders"
        )

    def test_weights_that_do_not_fit_in_as_many_lines_as_there_are_differences(self, run, tmp_path):
        tiny_run(tmp_path, "epochs=1", f"output_dir={tmp_path}/given")
        code, _, errors = run("-o", "model.architecture.qkv_bias=false", "--load", tmp_path / "given" / "best.pdparams")
        assert code == 1
        assert errors.splitlines() == [
            f"error: {tmp_path}/given/best.pdparams does not fit the model, which is left as it was:",
            "  + backbone.blocks.0.attn.qkv.bias [24]: the file has it, the model has not",
            "  + backbone.cls_attn_blocks.0.attn.qkv.bias [24]: the file has it, the model has not",
        ]

    def test_with_a_debug_switch_the_traceback_stays(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PASSL_XCIT_DEBUG", "1")
        with pytest.raises(ConfigError):
            exit_with_one_line(train.main, ["-c", str(tmp_path / "nowhere.yaml")])
