"""Two processes, started by paddle.distributed.launch on the CPU, train and evaluate as one."""

import os
import re
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_run import TRAIN, json_lines, start, tiny_file, tiny_run, tiny_trainer

from passl_xcit.engine import builder
from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.seed import step_seed

DUMP = Path(__file__).parent / "train_and_dump.py"
BATCHES = "dataloader.train.sampler={batch_size: 2, shuffle: true, drop_last: true}"


def launch(folder, *command):
    """Run `command` in two processes: (exit code, output, what the second one wrote)."""
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", 2, "--master", f"127.0.0.1:{free_port()}"]
    process = start(*command, before=[*launcher, "--log_dir", folder / "launch"], start_new_session=True)
    try:
        output, errors = process.communicate(timeout=100)
    finally:
        end_group(process.pid)
    return process.returncode, output + errors, (folder / "launch" / "workerlog.1").read_text()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_group(group):
    """End what may be left of a process group that `launch` started."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, output of the first process, of the second one, the model of each)"""
    folder = tmp_path_factory.mktemp("two")
    code, output, second = launch(folder, DUMP, folder, "-c", tiny_file(folder), "-o", BATCHES, "--distribute", "True")
    assert code == 0, output + second
    return folder, output, second, [read_file(folder / f"rank{rank}.pdparams") for rank in (0, 1)]


@pytest.mark.slow
def test_gradients_are_averaged_over_the_processes(run, monkeypatch):
    """Compared with one process that goes through both shares of each batch and averages by itself."""
    folder, _, _, models = run
    trainers = []
    for rank in (0, 1):
        monkeypatch.setattr(builder, "rank", lambda: rank)  # noqa: B023
        monkeypatch.setattr(builder, "world_size", lambda: 2)
        trainers.append(tiny_trainer(folder, BATCHES))
    trainer, loaders = trainers[0], [trainer.train_loader for trainer in trainers]
    for step in range(trainer.total_iters):
        for rank, loader in enumerate(loaders):
            loader.set_position(*divmod(step, trainer.iters_per_epoch))
            paddle.seed(step_seed(5, step, rank))
            (trainer.model.train_iter(*next(iter(loader)))["loss"] / 2).backward()
        trainer.optimizer.step()
        trainer.optimizer.clear_grad()
        trainer.lr_scheduler.step()
    for name, parameter in trainer.model.named_parameters():
        if not parameter.stop_gradient:
            np.testing.assert_allclose(models[0][name], parameter.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_after_an_evaluation_all_processes_have_the_model_that_was_saved(run):
    """The statistics of BatchNorm, too, which each process gathers for itself while it trains on a CPU."""
    folder, _, _, models = run
    saved = read_file(folder / "out" / "latest.pdparams")["state_dict"]
    for model in models:
        assert all((model[name] == array).all() for name, array in saved.items())


@pytest.mark.slow
def test_they_evaluate_an_odd_number_of_samples_to_the_accuracy_of_one_process(run):
    folder = run[0]
    evaluation = json_lines(folder / "out")[-1]
    alone = tiny_run(folder, load=folder / "out" / "latest.pdparams", evaluate_only=True)
    assert {name: evaluation[name] for name in alone} == alone


@pytest.mark.slow
def test_samples_are_counted_over_all_processes(run):
    assert read_file(run[0] / "out" / "latest.pdparams")["samples"] == 48
    assert read_file(run[0] / "out" / "latest.pdparams")["global_batch_size"] == 4


@pytest.mark.slow
def test_only_the_first_process_prints_and_each_has_its_log_file(run):
    folder, output, second, _ = run
    assert output.count("start evaluate on epoch 1 ..") == 1 and "Evaluate total samples 15" in output
    assert "passl" not in second
    for name in ("log.txt", "log.txt.rank1"):
        assert re.findall(r"Saving|Validate", (folder / "out" / name).read_text()).count("Validate") == 2
    assert len(json_lines(folder / "out")) == 14


@pytest.mark.slow
def test_each_log_file_holds_the_lines_of_its_own_process(run):
    """All of them, with the losses of its own share of the batches; checkpoints are the first one's."""
    logs = [(run[0] / "out" / name).read_text() for name in ("log.txt", "log.txt.rank1")]
    lines = [re.findall(r"Epoch \[(\d)/2\]\[(\d)/6\]\t.* loss (\S+) .*, images/s: ", text) for text in logs]
    places = [[line[:2] for line in found] for found in lines]
    assert places[0] == places[1] == [(str(epoch), str(number)) for epoch in (1, 2) for number in range(6)]
    assert lines[0] != lines[1]
    assert [("Configs: " in text, "Saving checkpoint" in text) for text in logs] == [(True, True), (True, False)]


@pytest.mark.slow
def test_two_processes_resume_what_one_has_begun_with_the_same_steps_and_learning_rates(tmp_path):
    """4 images a step, then 2 + 2; learning rates are scaled, and images repeated: 24 in 6 steps."""
    scaled = "lr_scheduler={name: TimmCosine, learning_rate: 0.01, base_batch_size: 2, T_max: 2, decay_unit: step}"
    repeats = "dataloader.train.sampler={name: DistributedRepeatedAugSampler, shuffle: true, batch_size: %d}"
    tiny_run(tmp_path, scaled, repeats % 4, f"output_dir={tmp_path / 'whole'}")
    tiny_run(tmp_path, scaled, repeats % 4, "epochs=1")
    code, output, second = launch(
        tmp_path, TRAIN, "-c", tiny_file(tmp_path), "-o", scaled, "-o", repeats % 2, "--resume", "auto"
    )
    assert code == 0, output + second
    assert "learning rate 1.000e-02 x global batch 4 (2 x 2 processes) / 2 = 2.000e-02" in output
    rates = [
        {line["iter"]: line["lr"] for line in json_lines(tmp_path / folder) if line["mode"] == "train"}
        for folder in ("whole", "out")
    ]
    assert rates[0] == rates[1] and len(rates[0]) == 12


@pytest.mark.slow
def test_no_process_is_left(run):
    assert not any(exists(model["pid"]) for model in run[3])


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_of_them(tmp_path):
    """The second process gets every second sample; the first one waits for it in vain."""
    config = tiny_file(tmp_path)
    damaged = tmp_path / "val" / "class0" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    code, output, second = launch(tmp_path, TRAIN, "-c", config, "--evaluate-only")
    assert code not in (0, None)
    assert re.search(rf"error: {damaged}: the image cannot be read", second)
    assert "Traceback" not in second


@pytest.mark.parametrize(
    ("processes", "option", "message"),
    [
        (1, "True", "--distribute True: start with `python -m paddle.distributed.launch tools/train.py ...`"),
        (2, "False", "--distribute False, but paddle.distributed.launch started 2 processes"),
    ],
)
def test_what_was_launched_must_be_what_was_asked_for(processes, option, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(processes))
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny_run(tmp_path, distribute=option == "True")
    assert not (tmp_path / "out").exists()
