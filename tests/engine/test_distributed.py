"""Two processes, started by paddle.distributed.launch on the CPU, train and evaluate as one."""

import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from faults import WAITING
from tiny_run import TRAIN, json_lines, start, tiny_file, tiny_run, tiny_trainer

from passl_xcit.engine import builder
from passl_xcit.engine.checkpoint import optimizer_arrays
from passl_xcit.engine.evaluation import EvaluationOptions
from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils import dist
from passl_xcit.utils.dist import copy_from_first, sum_over_processes, wait_for_all
from passl_xcit.utils.errors import CheckpointError, ConfigError, TrainingError
from passl_xcit.utils.seed import step_seed

DUMP, SEVERAL, ONE_OF_TWO = (
    Path(__file__).parent / name for name in ("train_and_dump.py", "train_several.py", "one_of_two.py")
)
VALIDATE = TRAIN.with_name("validate.py")
BATCHES = "dataloader.train.sampler={batch_size: 2, shuffle: true, drop_last: true}"


def launch(folder, *command, stop_at=None):
    """Run `command` in two processes: (exit code, output, what the second one wrote).

    SIGTERM is sent to the launcher when the file `stop_at` says that a process waits for it.
    """
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", 2, "--master", f"127.0.0.1:{free_port()}"]
    process = start(*command, before=[*launcher, "--log_dir", folder / "launch"], start_new_session=True)
    try:
        while stop_at and not (stop_at.exists() and WAITING in stop_at.read_text()) and process.poll() is None:
            time.sleep(0.05)
        if stop_at:
            process.terminate()
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


SHORT = (BATCHES, "epochs=7", "custom_config=null", "checkpoint.interval=100")  # 42 steps
CROSSVIT = (  # no BatchNorm, whose statistics are those of a share of the batch; nor Mixup, which mixes within a share
    "model.architecture={name: CrossViT, img_size: [8, 8], patch_size: [4, 8], embed_dim: [8, 8], "
    "depth: [[1, 1, 0]], num_heads: [2, 2], mlp_ratio: [1.0, 1.0, 1.0]}",
    "model.head.in_channels=[8, 8]",
    "dataloader.train.dataset.batch_transforms=null",
    # Where a gradient is nothing but rounding, as that of a key's bias, Adam makes whole steps of it.
    "optimizer.epsilon=1e-4",
    "lr_scheduler={name: CosineAnnealingDecay, learning_rate: 1e-3, T_max: 7}",
)
RECOMPUTE = "model.architecture.use_recompute=true"
TRAIN_RUNS = {
    "as it is": SHORT,
    "accumulated": (*SHORT, "accum_steps=2"),
    "recomputed": (*SHORT, RECOMPUTE),
    "accumulated and recomputed": (*SHORT, "accum_steps=2", RECOMPUTE),
    "crossvit": (*SHORT, *CROSSVIT),
    "crossvit accumulated": (*SHORT, *CROSSVIT, "accum_steps=2"),
}
COUNTS = {"seven": 7, "one": 1}  # images


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """(folder, {name: what each of two processes found})"""
    folder = tmp_path_factory.mktemp("several")
    tiny_file(folder)
    runs = {"train": TRAIN_RUNS, "evaluate": {name: evaluation(folder, name) for name in COUNTS}}
    code, output, second = launch(folder, SEVERAL, folder, json.dumps(runs))
    assert code == 0, output + second
    names = [*TRAIN_RUNS, *COUNTS]
    return folder, {name: [read_file(folder / f"{name}.rank{rank}") for rank in (0, 1)] for name in names}


def evaluation(folder, name):
    """Overrides for an evaluation of so many images, of a list of all."""
    names = [f"class{label}/{index}.png {label}\n" for label in range(3) for index in range(5)]
    (folder / f"{name}.txt").write_text("".join(names[: COUNTS[name]]))
    return [f"dataloader.val.dataset.list_file={folder / name}.txt", "dataloader.val.sampler.batch_size=2"]


def is_learnt(name):
    """Whether this is no statistic of BatchNorm, which each process gathers for itself."""
    return not name.endswith(("._mean", "._variance"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAIN_RUNS)
def test_they_train_as_one_process_that_computes_both_gradients_and_takes_their_mean(name, several, monkeypatch):
    """42 steps of AdamW, to the bit; Paddle's DataParallel and `no_sync` stand on one side only."""
    folder, found = several
    weights, moments = averaging(folder, TRAIN_RUNS[name], monkeypatch)
    for process in found[name][0], found[name][1]:
        for key, array in weights.items():
            assert not is_learnt(key) or array.tobytes() == process["weights"][key].tobytes(), key
        for key, array in moments.items():
            assert array.tobytes() == process["moments"][key].tobytes(), key


def averaging(folder, overrides, monkeypatch):
    """(weights, moments) of a plain loop over both processes' batches."""
    trainers = []
    for rank in (0, 1):
        monkeypatch.setattr(builder, "rank", lambda: rank)  # noqa: B023
        monkeypatch.setattr(builder, "world_size", lambda: 2)
        trainers.append(tiny_trainer(folder, *overrides))
    trainer, loaders = trainers[0], [trainer.train_loader for trainer in trainers]
    parameters = [parameter for parameter in trainer.model.parameters() if not parameter.stop_gradient]
    for step in range(trainer.total_iters):
        gradients = []
        for rank, loader in enumerate(loaders):
            loader.set_position(*divmod(step, trainer.iters_per_epoch))
            images, targets = next(iter(loader))
            paddle.seed(step_seed(5, step, rank))
            size = 2 // trainer.accum_steps
            for part in (slice(begin, begin + size) for begin in range(0, 2, size)):
                outputs = trainer.model.train_iter(images[part], targets[part])
                (outputs["loss"] / trainer.accum_steps).backward()
            gradients.append([parameter.grad.clone() for parameter in parameters])
            trainer.optimizer.clear_grad()
        for parameter, first, second in zip(parameters, *gradients):
            parameter.grad = (first + second) / 2
        trainer.optimizer.step()
        trainer.optimizer.clear_grad()
        trainer.lr_scheduler.step()
    weights = {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()}
    return weights, optimizer_arrays(trainer.optimizer, trainer.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crossvit", "crossvit accumulated"])
def test_they_train_as_one_process_on_the_whole_batch(name, several):
    folder, found = several
    trainer = tiny_trainer(folder, *SHORT, *CROSSVIT, "dataloader.train.sampler.batch_size=4")
    trainer.train()
    assert trainer.state.iter == 42
    for key, tensor in trainer.model.state_dict().items():
        np.testing.assert_allclose(found[name][0]["weights"][key], tensor.numpy(), rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_they_count_every_image_once(name, several):
    """7 images are 4 + 3; of 1 image the second process has none."""
    folder, found = several
    assert sorted(found[name][0]["seen"] + found[name][1]["seen"]) == list(range(COUNTS[name]))
    alone = tiny_run(folder, *evaluation(folder, name), evaluate_only=True)
    assert found[name][0]["metrics"] == found[name][1]["metrics"] == alone


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
def test_they_write_the_report_of_one_process_once(run, tmp_path):
    """15 samples, of which the second process has 7; each line is there once, and the same to the last digit."""
    weights = run[0] / "out" / "latest.pdparams"
    code, output, second = launch(tmp_path, VALIDATE, tiny_file(run[0]), weights, "--report", tmp_path / "two")
    assert code == 0, output + second
    assert output.count("report: ") == 1 and "report" not in second
    tiny_run(run[0], load=weights, evaluate_only=True, evaluation=EvaluationOptions(tmp_path / "one"))
    lines = [(tmp_path / folder / "predictions.csv").read_text() for folder in ("one", "two")]
    assert lines[0] == lines[1] and lines[0].count("\n") == 16
    reports = [json.loads((tmp_path / folder / "report.json").read_text()) for folder in ("one", "two")]
    assert [report["origin"]["device"]["processes"] for report in reports] == [1, 2]
    for report in reports:
        del report["origin"], report["speed"]
    assert reports[0] == reports[1]


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
    assert "2 processes; process 0 on cpu, of cpu" in output
    rates = [
        {line["iter"]: line["lr"] for line in json_lines(tmp_path / folder) if line["mode"] == "train"}
        for folder in ("whole", "out")
    ]
    assert rates[0] == rates[1] and len(rates[0]) == 12


@pytest.mark.slow
def test_no_process_is_left(run):
    assert not any(exists(model["pid"]) for model in run[3])


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """{what the second process does: (folder, exit code, output of the first, of the second, time of the end)}"""
    done = {}

    def fail(way):
        folder = tmp_path_factory.mktemp("failure")
        (folder / "pids").mkdir()
        command = [ONE_OF_TWO, way, folder / "pids", "-c", tiny_file(folder), "-o", BATCHES]
        done[way] = (folder, *launch(folder, *command), time.time())

    threads = [threading.Thread(target=fail, args=(way,)) for way in SECOND]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


SECOND = {  # what it does in its second epoch: the checkpoint that stays, and what the log of a process says
    "raises": ("epoch_1", "ZeroDivisionError"),
    "exits": ("epoch_1", "gloo"),
    "is killed": ("epoch_1", "gloo"),
    "is frozen": ("epoch_1", "gloo::TimeoutException"),
    "hangs in a step": ("epoch_1", "gloo::TimeoutException"),
    "hangs after a checkpoint": (
        "epoch_2",
        "error: another process of this run has ended, or did not come within 30 seconds; what became of it stands in",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", SECOND)
def test_if_one_fails_all_end_within_a_minute_and_leave_a_whole_checkpoint(way, failures):
    """What ends is noticed at once; for what hangs gloo waits 30 seconds."""
    folder, code, first, second, end = failures[way]
    name, text = SECOND[way]
    assert code != 0 and text in first + second
    assert end - (folder / "out" / f"{name}.pdparams").stat().st_mtime < 60
    assert not any(exists(int(path.suffix[1:])) for path in (folder / "pids").iterdir())
    assert [read_file(path)["epoch"] for path in (folder / "out").glob("epoch_*")]
    assert not list((folder / "out").glob(".*.tmp"))


@pytest.mark.slow
def test_a_run_that_is_stopped_twice_ends_with_the_bytes_of_one_that_was_not(run, tmp_path):
    """SIGTERM to the launcher, which sends it on three times: in an evaluation, and in a step of the second epoch."""
    (tmp_path / "pids").mkdir()
    command = [tmp_path / "pids", "-c", tiny_file(run[0]), "-o", BATCHES, "--output_dir", tmp_path / "out"]
    for way, iterations in (("waits in an evaluation", 6), ("waits in a step", 8)):
        folder = tmp_path / way.replace(" ", "_")
        first_log = folder / "launch" / "workerlog.0"
        code, _, second = launch(folder, ONE_OF_TWO, way, *command, "--resume", "auto", stop_at=first_log)
        assert code == signal.SIGTERM  # the launcher's own way
        assert f"stopped by SIGTERM after {iterations} iterations; go on with --resume auto" in second
        assert read_file(tmp_path / "out" / "interrupted.pdparams")["iter"] == iterations
    code, output, second = launch(tmp_path, ONE_OF_TWO, "nothing", *command, "--resume", "auto")
    assert code == 0 and "Resume training from" in output, output + second
    for name in ("epoch_2.pdparams", "latest.pdparams", "best.pdparams"):
        assert (tmp_path / "out" / name).read_bytes() == (run[0] / "out" / name).read_bytes(), name


@pytest.mark.slow
def test_one_process_goes_on_with_as_many_images_a_step_and_says_what_differs(run, tmp_path, capsys):
    sampler = "dataloader.train.sampler={batch_size: %d, shuffle: true, drop_last: true}"
    options = {"resume_from": run[0] / "out" / "epoch_1.pdparams"}
    tiny_run(run[0], sampler % 4, f"output_dir={tmp_path}", **options)
    output = capsys.readouterr().out
    assert "epoch_1.pdparams: was written by a run of 2 processes, this one has 1: each step has the same" in output
    tree = read_file(tmp_path / "epoch_2.pdparams")
    assert (tree["iter"], tree["samples"], tree["processes"]) == (12, 48, 1)
    with pytest.raises(CheckpointError, match="was written with iters_per_epoch 6, this run has 12"):
        tiny_run(run[0], sampler % 2, f"output_dir={tmp_path}", **options)


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


@pytest.mark.parametrize("wait", [lambda: sum_over_processes([1.0]), wait_for_all, lambda: copy_from_first([None])])
def test_a_process_that_is_lost_is_one_line_and_another_error_is_not(wait, monkeypatch):
    def lose(*arguments, **options):
        raise RuntimeError(text)

    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for name in ("all_reduce", "barrier", "broadcast"):
        monkeypatch.setattr(paddle.distributed, name, lose)
    text = "[/paddle/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:80] TIMEOUT self_rank = none"
    with pytest.raises(TrainingError, match=r"^another process of this run has ended, or did not come within 30 sec"):
        wait()
    text = "not a matter of processes"
    with pytest.raises(RuntimeError, match=text):
        wait()


@pytest.mark.parametrize(
    ("processes", "option", "message"),
    [
        (1, "True", "--distribute True: start with `python -m paddle.distributed.launch tools/train.py ...`"),
        (2, "False", "--distribute False, but paddle.distributed.launch started 2 processes"),
    ],
)
def test_what_was_launched_must_be_what_was_asked_for(processes, option, message, tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "launched_processes", lambda: processes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny_run(tmp_path, distribute=option == "True")
    assert not (tmp_path / "out").exists()


def test_one_card_for_several_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(dist, "launched_processes", lambda: 8)
    with pytest.raises(ConfigError) as caught:
        tiny_run(tmp_path, "device=npu:3")
    assert "device: 'npu:3' for 8 processes: say npu, and let --devices of the launcher choose" in str(caught.value)
