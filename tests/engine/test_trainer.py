"""A run learns, counts what it does, and goes on after a stop as if there had been none."""

import signal

import numpy as np
import paddle
import pytest
from tiny_run import ROOT, Stop, json_lines, tiny_file, tiny_run, tiny_trainer

from passl_xcit.datasets import demo_fashion_mnist
from passl_xcit.engine import launch
from passl_xcit.engine import trainer as trainer_module
from passl_xcit.hooks.hook import Hook
from passl_xcit.modeling.checkpoint_formats import read_file
from passl_xcit.utils.config import parse_override
from passl_xcit.utils.errors import DataError, TrainingStopped

DEMO = ROOT / "configs" / "demo" / "xcit_demo_p4_fashion_mnist.yaml"
BY_ITER = "checkpoint.by_epoch=false"


def run_until(iterations, stage, folder, *overrides):
    """Train the tiny config until it is stopped."""
    trainer = tiny_trainer(folder, *overrides, hooks=[Stop(iterations, stage)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer


RUNS = ("whole", "resumed")


def two_runs(folder):
    """The overrides that send two runs of `folder` to folders of their own."""
    return [f"output_dir={folder}/{name}" for name in RUNS]


@pytest.mark.slow
def test_two_epochs_of_a_smaller_demo_lower_the_loss_and_raise_the_accuracy(tmp_path, monkeypatch):
    """The demo's transforms, loss and optimizer; to save minutes: 1,000 of its images, one narrow block."""
    monkeypatch.setattr(demo_fashion_mnist, "read_arrays", fewer_images(per_class={"train": 100, "test": 20}))
    model = ("model.architecture.depth=1", "model.architecture.embed_dim=32", "model.head.in_channels=32")
    batches = ("dataloader.train.sampler.batch_size=32", "dataloader.train.loader.num_workers=0")
    run = ("epochs=2", "lr_scheduler.warmup_steps=1", "log_config.interval=1", f"output_dir={tmp_path}")
    best = launch.run(DEMO, [parse_override(text) for text in (*model, *batches, *run)])
    losses = [line["loss"] for line in json_lines(tmp_path) if line["mode"] == "train"]
    accuracies = [line["acc1"] for line in json_lines(tmp_path) if line["mode"] == "val"]
    assert len(losses) == 2 * 31
    assert sum(losses[-10:]) < sum(losses[:10]) - 10 * 0.15
    assert 15 < accuracies[0] < accuracies[1] == best["acc1"] and best["acc1"] > 30  # chance is 10


def fewer_images(per_class):
    """A stand-in for `read_arrays` that returns the first few images of each class."""
    arrays = demo_fashion_mnist.read_arrays()
    for split, number in per_class.items():
        labels = arrays[f"{split}_labels"]
        chosen = np.concatenate([np.flatnonzero(labels == label)[:number] for label in range(10)])
        arrays.update({f"{split}_{kind}": arrays[f"{split}_{kind}"][chosen] for kind in ("images", "labels")})
    return lambda: arrays


RESUMED = {  # where the run stops, and what differs from the tiny config
    "after an epoch": (6, "train_epoch_end", ()),
    "before the epoch's checkpoint is written, so that the epoch is trained again": (12, "train_iter_end", ()),
    "after the first iteration": (1, "train_iter_end", (BY_ITER,)),
    "after the best epoch": (18, "train_epoch_end", ("epochs=4",)),
    "with a moving average": (
        8,
        "train_iter_end",
        (BY_ITER, "checkpoint.interval=4", "custom_config=[{name: EvaluateHook}, {name: EMAHook, warmup_updates: 5}]"),
    ),
    "with accumulated gradients": (8, "train_iter_end", (BY_ITER, "checkpoint.interval=4", "accum_steps=3")),
    "in the warm-up": (3, "train_iter_end", (BY_ITER, "checkpoint.interval=3")),
    "after the warm-up": (8, "train_iter_end", (BY_ITER, "checkpoint.interval=2")),
    "some iterations after the checkpoint": (11, "train_iter_end", (BY_ITER, "checkpoint.interval=4")),
    "after an epoch's last iteration, but before its evaluation": (
        6,
        "train_iter_end",
        (BY_ITER, "checkpoint.interval=3"),
    ),
    "with a last batch that is smaller": (
        6,
        "train_iter_end",
        (BY_ITER, "checkpoint.interval=2", "dataloader.train.sampler={batch_size: 5, shuffle: true}"),
    ),
    "with repeated augmentation and the official schedule": (
        8,
        "train_iter_end",
        (
            BY_ITER,
            "checkpoint.interval=4",
            "dataloader.train.sampler={name: DistributedRepeatedAugSampler, batch_size: 4, shuffle: true}",
            "lr_scheduler={name: TimmCosine, learning_rate: 0.02, T_max: 2, warmup_epoch: 1, epoch_late: true, "
            "base_batch_size: 8}",
        ),
    ),
    "with clipped gradients": (6, "train_epoch_end", ("optimizer.grad_clip={name: global_norm, value: 0.1}",)),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(case, tmp_path):
    """The last checkpoint holds weights, moments, schedule, counters and the best accuracy."""
    iterations, stage, overrides = RESUMED[case]
    whole, resumed = two_runs(tmp_path)
    tiny_run(tmp_path, whole, *overrides)
    run_until(iterations, stage, tmp_path, resumed, *overrides)
    tiny_run(tmp_path, resumed, *overrides, resume_from="auto")
    for name in ("latest.pdparams", "best.pdparams"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_bytes_of_runs_that_differ_do_differ(tmp_path):
    whole, other = two_runs(tmp_path)
    tiny_run(tmp_path, whole)
    tiny_run(tmp_path, other, "model.architecture.drop_rate=0.11")
    first, second = (read_file(tmp_path / name / "latest.pdparams") for name in ("whole", "resumed"))
    assert first["iter"] == second["iter"]
    assert (first["state_dict"]["head.fc_cls.weight"] != second["state_dict"]["head.fc_cls.weight"]).any()


def test_a_resumed_run_logs_what_the_rest_of_an_uninterrupted_one_logs(tmp_path):
    whole, resumed = two_runs(tmp_path)
    every = (BY_ITER, "checkpoint.interval=2")
    tiny_run(tmp_path, whole, *every)
    run_until(8, "train_iter_end", tmp_path, resumed, *every)
    tiny_run(tmp_path, resumed, *every, resume_from="auto")
    assert json_lines(tmp_path / "resumed") == json_lines(tmp_path / "whole")


def test_a_resumed_run_may_have_other_workers(tmp_path):
    whole, resumed = two_runs(tmp_path)
    every = (BY_ITER, "checkpoint.interval=4")
    tiny_run(tmp_path, whole, *every)
    run_until(4, "train_iter_end", tmp_path, resumed, *every)
    workers = "dataloader.train.loader={num_workers: 2}"
    tiny_run(tmp_path, resumed, *every, workers, resume_from="auto")
    assert (tmp_path / "resumed" / "iter_12.pdparams").read_bytes() == (
        tmp_path / "whole" / "iter_12.pdparams"
    ).read_bytes()


def test_models_built_before_do_not_disturb_a_resume(tmp_path):
    """They shift the automatic names under which Paddle keeps the optimizer's state."""
    whole, resumed = two_runs(tmp_path)
    tiny_run(tmp_path, whole)
    run_until(6, "train_epoch_end", tmp_path, resumed)
    paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.LayerNorm(2), paddle.nn.Conv2D(1, 1, 1))
    tiny_run(tmp_path, resumed, resume_from=str(tmp_path / "resumed" / "epoch_1.pdparams"))
    assert (tmp_path / "resumed" / "latest.pdparams").read_bytes() == (
        tmp_path / "whole" / "latest.pdparams"
    ).read_bytes()


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    best = tiny_run(tmp_path)
    before = (tmp_path / "out" / "latest.pdparams").read_bytes()
    assert tiny_run(tmp_path, resume_from="auto") == best
    assert (tmp_path / "out" / "latest.pdparams").read_bytes() == before
    assert len(json_lines(tmp_path / "out")) == 14


def test_the_state_counts_finished_epochs_iterations_and_samples(tmp_path):
    trainer = tiny_trainer(tmp_path, "epochs=3")
    trainer.train()
    assert (trainer.state.epoch, trainer.state.iter, trainer.state.samples) == (3, 18, 72)


def test_the_best_is_the_first_epoch_with_the_highest_accuracy(tmp_path):
    trainer = tiny_trainer(tmp_path, "epochs=5")
    answers = iter([40.0, 60.0, 50.0, 60.0, 30.0])
    trainer.evaluator.evaluate = lambda *_: {"acc1": next(answers), "acc5": 100.0}
    trainer.train()
    assert trainer.state.best == {"acc1": 60.0, "acc5": 100.0, "epoch": 2, "iter": 12}
    assert read_file(tmp_path / "out" / "best.pdparams")["epoch"] == 2


def test_training_goes_on_in_training_mode_after_an_evaluation(tmp_path):
    trainer, modes = tiny_trainer(tmp_path), []
    step = trainer.train_step
    trainer.train_step = lambda *batch: modes.append(trainer.model.training) or step(*batch)
    trainer.train()
    assert modes == [True] * 12 and trainer.model.training


def test_every_step_of_every_process_has_random_draws_of_its_own(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(paddle, "seed", seeds.append)
    for rank in (0, 1):
        monkeypatch.setattr(trainer_module, "rank", lambda: rank)  # noqa: B023
        trainer = tiny_trainer(tmp_path, "custom_config=null")
        del seeds[-1]  # the model's
        trainer.train()
    assert len(set(seeds)) == len(seeds) == 24


def test_evaluation_before_training_counts_as_epoch_0(tmp_path, capsys):
    tiny_run(tmp_path, "custom_config.0.init_eval=true", "epochs=1")
    assert [line["epoch"] for line in json_lines(tmp_path / "out") if line["mode"] == "val"] == [0, 1]
    assert capsys.readouterr().out.count("start evaluate on epoch 1 ..") == 2  # PASSL says 1 for both


def test_a_resumed_run_does_not_evaluate_before_training_again(tmp_path):
    tiny_run(tmp_path, "custom_config.0.init_eval=true", "epochs=1")
    tiny_run(tmp_path, "custom_config.0.init_eval=true", resume_from="auto")
    assert [line["epoch"] for line in json_lines(tmp_path / "out") if line["mode"] == "val"] == [0, 1, 2]


def test_a_data_set_smaller_than_one_batch_is_refused(tmp_path):
    with pytest.raises(DataError, match="24 images do not fill one batch of 32: use a smaller batch_size"):
        tiny_trainer(tmp_path, "dataloader.train.sampler.batch_size=32")


def test_a_damaged_image_stops_the_training_with_its_name(tmp_path):
    tiny_file(tmp_path)
    damaged = tmp_path / "train" / "class1" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{damaged}: the image cannot be read"):
        tiny_run(tmp_path)


class Signal(Hook):
    """Sends this process a signal when `iterations` are finished."""

    def __init__(self, iterations, number):
        super().__init__(priority=1)
        self.iterations, self.number = iterations, number

    def train_iter_begin(self, trainer):
        if trainer.state.iter == self.iterations - 1:
            signal.raise_signal(self.number)


class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("iterations", [2, 6, 7])
    def test_a_stopped_run_saves_its_step_and_resumes_to_the_same_weights(self, number, code, iterations, tmp_path):
        tiny_run(tmp_path, f"output_dir={tmp_path}/whole")
        trainer = tiny_trainer(tmp_path, f"output_dir={tmp_path}/parts", hooks=[Signal(iterations, number)])
        before = signal.getsignal(number)
        with pytest.raises(TrainingStopped) as caught:
            trainer.train()
        assert caught.value.exit_code == code and signal.getsignal(number) == before
        name = signal.Signals(number).name
        assert str(caught.value) == f"stopped by {name} after {iterations} iterations; go on with --resume auto"
        assert read_file(tmp_path / "parts" / "interrupted.pdparams")["iter"] == iterations
        tiny_run(tmp_path, f"output_dir={tmp_path}/parts", resume_from="auto")
        whole, parts = (read_file(tmp_path / name / "epoch_2.pdparams") for name in ("whole", "parts"))
        for kind in ("state_dict", "optimizer"):
            for name, array in whole[kind].items():
                assert array.tobytes() == parts[kind][name].tobytes(), name
        assert not (tmp_path / "parts" / "interrupted.pdparams").exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_a_run_that_is_stopped_in_its_first_evaluation_keeps_the_weights_it_began_with(self, number, tmp_path):
        """They may be those of --load, which --resume does not go together with."""
        init = "custom_config.0.init_eval=true"
        trainer = tiny_trainer(tmp_path, init)
        count = trainer.evaluator._count
        trainer.evaluator._count = lambda stopped: signal.raise_signal(number) or count(stopped)
        with pytest.raises(TrainingStopped, match="after 0 iterations; go on with --resume auto"):
            trainer.train()
        saved = read_file(tmp_path / "out" / "interrupted.pdparams")["state_dict"]
        assert all(np.array_equal(saved[name], value.numpy()) for name, value in trainer.model.state_dict().items())
        tiny_run(tmp_path, init, resume_from="auto")
        assert [line["epoch"] for line in json_lines(tmp_path / "out") if line["mode"] == "val"] == [0, 1, 2]

    def test_under_the_launcher_which_sends_three_a_further_sigterm_means_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", "1")
        trainer = tiny_trainer(tmp_path, hooks=[Signal(2, signal.SIGTERM) for _ in range(3)])
        with pytest.raises(TrainingStopped):
            trainer.train()
        assert read_file(tmp_path / "out" / "interrupted.pdparams")["iter"] == 2

    def test_a_second_ctrl_c_stops_at_once(self, tmp_path):
        trainer = tiny_trainer(tmp_path, hooks=[Signal(2, signal.SIGINT), Signal(2, signal.SIGINT)])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert not (tmp_path / "out" / "interrupted.pdparams").exists()


class Ask(Hook):
    """Asks for a stop, as SIGTERM does, at one stage and iteration, before the hooks of that stage run."""

    def __init__(self, stage, iteration):
        super().__init__(priority=1)
        self.iteration = iteration
        setattr(self, stage, self.ask)

    def ask(self, trainer):
        if trainer.state.iter == self.iteration:
            trainer.stop.number = signal.SIGTERM


@pytest.mark.parametrize("stage, iteration", [("run_begin", 0), ("train_epoch_end", 6), ("train_epoch_end", 12)])
def test_an_evaluation_that_is_broken_off_is_made_again_and_nothing_differs(stage, iteration, tmp_path):
    """The evaluation before training, after an epoch, and after the last one."""
    whole, resumed = two_runs(tmp_path)
    every = ("custom_config=[{name: EvaluateHook, init_eval: true}, {name: EMAHook, decay: 0.9}]",)
    tiny_run(tmp_path, whole, *every)
    with pytest.raises(TrainingStopped, match=f"stopped by SIGTERM after {iteration} iterations; go on with --resume"):
        tiny_trainer(tmp_path, resumed, *every, hooks=[Ask(stage, iteration)]).train()
    assert (tmp_path / "resumed" / "interrupted.pdparams").exists()
    tiny_run(tmp_path, resumed, *every, resume_from="auto")
    assert not (tmp_path / "resumed" / "interrupted.pdparams").exists()
    files = {folder: {p.name: p.read_bytes() for p in (tmp_path / folder).glob("*.pdparams")} for folder in RUNS}
    assert "latest.pdparams" in files["whole"] and files["whole"] == files["resumed"]


def test_an_image_that_breaks_the_evaluation_off_does_not_cost_the_epoch(tmp_path):
    whole, resumed = two_runs(tmp_path)
    tiny_run(tmp_path, whole)
    image = next((tmp_path / "val").rglob("*.png"))
    good = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        tiny_run(tmp_path, resumed)
    assert read_file(tmp_path / "resumed" / "interrupted.pdparams")["iter"] == 6
    image.write_bytes(good)
    tiny_run(tmp_path, resumed, resume_from="auto")
    latest = [(tmp_path / folder / "latest.pdparams").read_bytes() for folder in RUNS]
    assert latest[0] == latest[1]
