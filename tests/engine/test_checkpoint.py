"""What a checkpoint holds, what is refused, which one `--resume auto` takes, and what a killed run leaves."""

import errno
import itertools
import json
import os
import shutil
import signal
import time

import numpy as np
import paddle
import pytest
from tiny_run import json_lines, start, tiny_file, tiny_run, tiny_trainer

from passl_xcit.engine.checkpoint import (
    checkpoints_in,
    link_checkpoint,
    optimizer_arrays,
    resume,
    resume_newest,
    save_checkpoint,
)
from passl_xcit.hooks.checkpoint_hook import CheckpointHook
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.weights import load_weights
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.logger import setup_logger


@pytest.fixture
def trained(tmp_path):
    """(trainer after two epochs, folder of its checkpoints)"""
    trainer = tiny_trainer(tmp_path)
    trainer.train()
    return trainer, tmp_path / "out"


def age(folder):
    """Make the files of `folder` older than any that is written from now on."""
    for path in folder.glob("*.pdparams"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**12))


def tree_of(folder):
    return read_file(folder / "epoch_2.pdparams")


def damage(path):
    """Change one bit of one weight."""
    weight = read_file(path)["state_dict"]["head.fc_cls.weight"].tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weight) + 5] ^= 1
    path.unlink()  # best.pdparams may be another name of the file
    path.write_bytes(data)


class TestContent:
    def test_paddle_reads_it_in_passls_shape(self, trained):
        trainer, folder = trained
        tree = paddle.load(str(folder / "epoch_2.pdparams"))
        assert {"epoch", "state_dict", "optimizer", "lr_scheduler"} <= set(tree)
        assert tree["epoch"] == 2 and tree["lr_scheduler"]["last_epoch"] == 12
        assert list(tree["state_dict"]) == list(trainer.model.state_dict())
        fresh = tiny_trainer(folder.parent).model
        assert fresh.set_state_dict(tree["state_dict"]) == ([], [])
        for name, tensor in trainer.model.state_dict().items():
            assert (fresh.state_dict()[name].numpy() == tensor.numpy()).all()

    def test_its_counters_are_those_of_the_run(self, trained):
        trainer, folder = trained
        tree = tree_of(folder)
        assert (tree["iter"], tree["samples"]) == (12, 48)
        assert (tree["seed"], tree["iters_per_epoch"], tree["global_batch_size"]) == (5, 6, 4)
        assert tree["paddle"] == paddle.__version__

    def test_it_knows_the_accuracy_of_its_own_epoch(self, trained):
        trainer, folder = trained
        evaluations = [line for line in json_lines(folder) if line["mode"] == "val"]
        for epoch in (1, 2):
            best = max(line["acc1"] for line in evaluations[:epoch])
            assert read_file(folder / f"epoch_{epoch}.pdparams")["best"]["acc1"] == best

    def test_moments_stand_under_the_names_of_their_parameters(self, trained):
        """The first moment after one AdamW step is (1 - beta1) times the gradient."""
        trainer, folder = trained
        trainer = tiny_trainer(folder.parent, "optimizer.beta1=0.75")
        images, targets = next(iter(trainer.train_loader))
        parameters = {name: p for name, p in trainer.model.named_parameters() if not p.stop_gradient}
        trainer.model.train_iter(images, targets)["loss"].backward()
        gradients = {name: parameter.grad.numpy() for name, parameter in parameters.items()}
        trainer.optimizer.step()
        arrays = optimizer_arrays(trainer.optimizer, trainer.model)
        assert {name for name in arrays if name.endswith("/moment1")} == {f"{name}/moment1" for name in gradients}
        for name, gradient in gradients.items():
            np.testing.assert_allclose(arrays[f"{name}/moment1"], 0.25 * gradient, rtol=1e-5, atol=1e-9)

    def test_without_optimizer_it_loads_but_does_not_resume(self, tmp_path):
        tiny_run(tmp_path, "checkpoint.save_optimizer=false")
        latest = tmp_path / "out" / "latest.pdparams"
        assert read_file(latest)["optimizer"] is None
        assert tiny_run(tmp_path, load=latest, evaluate_only=True)["acc1"] == read_file(latest)["best"]["acc1"]
        with pytest.raises(CheckpointError, match=r"no training state to resume \(optimizer, lr_scheduler\); --load"):
            tiny_run(tmp_path, resume_from=latest)

    def test_a_full_disk_leaves_the_checkpoint_before_and_no_temporary_file(self, trained, monkeypatch):
        trainer, folder = trained
        before = (folder / "epoch_2.pdparams").read_bytes()

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="epoch_2.pdparams: cannot be written: No space left on device"):
            save_checkpoint(folder / "epoch_2.pdparams", trainer)
        assert (folder / "epoch_2.pdparams").read_bytes() == before
        assert not list(folder.glob(".*"))


REFUSED = {  # override of the run that resumes, and what it is told
    "seed=6": "was written with seed 5, this run has 6: resume with the settings it was started with, or start anew",
    "dataloader.train.sampler.batch_size=8": "was written with iters_per_epoch 6, this run has 3",
    "dataloader.train.sampler.shuffle=false": "was written with sampler.shuffle True, this run has False",
    "dataloader.train.sampler={name: DistributedRepeatedAugSampler, batch_size: 4, shuffle: true, drop_last: true}": (
        "was written with sampler.name DistributedBatchSampler, this run has DistributedRepeatedAugSampler"
    ),
    "model.architecture.depth=2": "was written with model.architecture.depth 1, this run has 2: resume with",
    "accum_steps=2": "was written with accum_steps 1, this run has 2",
    "optimizer.weight_decay=0.1": "was written with optimizer.weight_decay 0.05, this run has 0.1",
    "dataloader.train.dataset.transforms.0.prob=0.3": "was written with transforms.0.prob 0.5, this run has 0.3",
    "dataloader.train.dataset.batch_transforms.0.mixup_alpha=0.3": "was written with batch_transforms.0.mixup_alpha",
    "custom_config=[{name: EvaluateHook}, {name: EMAHook}]": "was written with EMA.0 None, this run has",
    "use_amp=true": r"AMP None, this run has {.*'dtype': 'float16', 'level': 'O1', .*, \.\.\.}: resume",
}


SAME = [  # overrides that say what holds without them, or that change no weight
    "optimizer.beta1=0.9",
    "optimizer={name: AdamW, weight_decay: 0.05, epsilon: 1e-8, grad_clip: null}",
    "model.freeze=null",
    "model.architecture.act=gelu",
    "lr_scheduler.learning_rate.eta_min=0",
    "dataloader.train.dataset.transforms.0.prob=0.5",
    "dataloader.train.sampler.name=DistributedBatchSampler",
    "model.architecture.use_recompute=true",
]


@pytest.mark.parametrize("override", SAME)
def test_a_run_that_says_what_was_so_by_default_is_the_same(override, trained, capsys):
    resume(trained[1] / "epoch_1.pdparams", tiny_trainer(trained[1].parent, override))
    assert "Resume training from" in capsys.readouterr().out


def test_a_run_with_less_memory_goes_on_with_the_same_bytes(trained):
    whole, folder = trained
    resumed = tiny_trainer(folder.parent, "model.architecture.use_recompute=true", f"output_dir={folder}2")
    resume(folder / "epoch_1.pdparams", resumed)
    resumed.train()
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()):
        assert (one.numpy() == other.numpy()).all()


def test_an_argument_that_is_newer_than_the_checkpoint_counts_as_its_default(trained):
    trainer, folder = trained
    tree = tree_of(folder)
    settings = json.loads(tree["settings"])
    assert settings["optimizer"].pop("epsilon") == 1e-8
    write_file(folder / "older.pdparams", {**tree, "settings": json.dumps(settings)})
    resume(folder / "older.pdparams", trainer)
    settings["optimizer"]["beta2"] = 0.5
    write_file(folder / "other.pdparams", {**tree, "settings": json.dumps(settings)})
    with pytest.raises(CheckpointError, match="was written with optimizer.beta2 0.5, this run has 0.999"):
        resume(folder / "other.pdparams", trainer)


class TestMoreEpochs:
    LATE = {"name": "TimmCosine", "learning_rate": 0.02}

    @pytest.mark.parametrize(
        "schedule",
        [LATE, {"name": "LinearWarmup", "warmup_steps": 1, "start_lr": 0.0, "end_lr": 0.1, "learning_rate": LATE}],
    )
    def test_of_a_schedule_as_long_as_the_run_are_refused_unless_its_length_is_given(self, schedule, tmp_path):
        override = f"lr_scheduler={json.dumps(schedule)}"
        tiny_run(tmp_path, override, "epochs=1")
        inner = "lr_scheduler" if schedule is self.LATE else "lr_scheduler.learning_rate"
        with pytest.raises(CheckpointError, match=rf"was written with {inner}.T_max 1, this run has 2: resume with"):
            tiny_run(tmp_path, override, resume_from="auto")
        tiny_run(tmp_path, override, f"{inner}.T_max=1", resume_from="auto")
        assert tree_of(tmp_path / "out")["iter"] == 12

    def test_of_a_schedule_with_a_length_of_its_own_are_trained(self, tmp_path):
        tiny_run(tmp_path, "epochs=1")
        tiny_run(tmp_path, resume_from="auto")
        assert tree_of(tmp_path / "out")["iter"] == 12


@pytest.mark.parametrize("text", [None, 7, "", "[", "[1]", "null", '{"a": ' * 5000, "{}"])
def test_settings_that_are_none_are_refused(text, trained):
    trainer, folder = trained
    write_file(folder / "damaged.pdparams", {**tree_of(folder), "settings": text})
    with pytest.raises(CheckpointError, match="damaged.pdparams: was written with [a-z_A-Z]+ None, this run has"):
        resume(folder / "damaged.pdparams", trainer)


class TestRefused:
    @pytest.mark.parametrize("override", REFUSED)
    def test_a_run_with_another(self, override, trained):
        with pytest.raises(CheckpointError, match=REFUSED[override]):
            tiny_run(trained[1].parent, override, resume_from="auto")

    def test_a_run_with_other_images(self, trained):
        folder = trained[1].parent
        (folder / "train" / "class0" / "0.png").rename(folder / "train" / "class0" / "00.png")
        with pytest.raises(CheckpointError, match=r"was written with data.sha256 \w+, this run has \w+: resume with"):
            tiny_run(folder, resume_from="auto")

    def test_a_run_of_fewer_epochs_than_are_done_trains_nothing(self, trained, capsys):
        before = (trained[1] / "latest.pdparams").read_bytes()
        tiny_run(trained[1].parent, "epochs=1", resume_from="auto")
        assert "2 of 1 epochs are done: nothing to train; raise `epochs`" in capsys.readouterr().out
        assert (trained[1] / "latest.pdparams").read_bytes() == before

    def test_another_batch_size_with_as_many_iterations(self, trained):
        trainer, folder = trained
        write_file(folder / "other.pdparams", {**tree_of(folder), "global_batch_size": 8})
        with pytest.raises(CheckpointError, match="was written with global_batch_size 8, this run has 4"):
            resume(folder / "other.pdparams", trainer)

    def test_weights_alone(self, trained):
        trainer, folder = trained
        weights = folder / "weights.pdparams"
        write_file(weights, tree_of(folder)["state_dict"])
        message = r"weights.pdparams: no training state to resume \(.*optimizer.*\); --load takes its weights"
        with pytest.raises(CheckpointError, match=message):
            resume(weights, trainer)

    @pytest.mark.parametrize("entry", ["epoch", "iter", "samples", "best", "lr_scheduler", "optimizer"])
    def test_a_checkpoint_that_lacks_an_entry(self, entry, trained):
        trainer, folder = trained
        tree = tree_of(folder)
        del tree[entry]
        write_file(folder / "less.pdparams", tree)
        with pytest.raises(CheckpointError, match=rf"less.pdparams: no training state to resume \({entry}\)"):
            resume(folder / "less.pdparams", trainer)

    def test_the_moments_of_another_optimizer(self, trained):
        trainer, folder = trained
        tree = tree_of(folder)
        tree["optimizer"]["head.fc_cls.weight/velocity"] = tree["optimizer"].pop("head.fc_cls.weight/moment1")
        write_file(folder / "sgd.pdparams", tree)
        message = (
            r"another model or optimizer; differs: \['head.fc_cls.weight/moment1', 'head.fc_cls.weight/velocity'\]"
        )
        with pytest.raises(CheckpointError, match=message):
            resume(folder / "sgd.pdparams", trainer)


class TestResumeAuto:
    def test_takes_the_newest(self, trained, capsys):
        folder = trained[1]
        tiny_run(folder.parent, "epochs=3", resume_from="auto")
        assert f"Resume training from {folder}/epoch_2.pdparams success!" in capsys.readouterr().out
        assert read_file(folder / "latest.pdparams")["epoch"] == 3

    def test_takes_the_one_before_a_damaged_one_and_says_so(self, trained, capsys):
        folder = trained[1]
        damage(folder / "epoch_2.pdparams")
        (folder / "latest.pdparams").unlink()
        (folder / "best.pdparams").unlink()
        tiny_run(folder.parent, resume_from="auto")
        output = capsys.readouterr().out
        assert "epoch_2.pdparams: is damaged: digest differs" in output
        assert "trying the checkpoint before it" in output
        assert f"Resume training from {folder}/epoch_1.pdparams success!" in output

    def test_takes_the_third_if_two_are_damaged(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=3", f"output_dir={tmp_path}/whole")
        shutil.copytree(tmp_path / "whole", tmp_path / "out")
        folder = tmp_path / "out"
        for name in ("latest", "best"):
            (folder / f"{name}.pdparams").unlink()
        damage(folder / "epoch_2.pdparams")
        os.truncate(folder / "epoch_3.pdparams", 1000)
        tiny_run(tmp_path, "epochs=3", resume_from="auto")
        output = capsys.readouterr().out
        assert output.count("trying the checkpoint before it") == 2
        assert f"Resume training from {folder}/epoch_1.pdparams success!" in output
        for name in ("epoch_3.pdparams", "latest.pdparams"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_does_not_take_what_a_killed_run_was_writing(self, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".epoch_1.pdparams.99999999.tmp").write_bytes(b"half")
        tiny_run(tmp_path, resume_from="auto")
        assert f"no checkpoint in {tmp_path}/out: starting from the beginning" in capsys.readouterr().out
        assert not list((tmp_path / "out").glob(".*.tmp"))

    def test_does_not_take_weights_that_are_not_finite(self, trained, capsys):
        trainer, folder = trained
        tree = tree_of(folder)
        tree["state_dict"]["head.fc_cls.bias"][:] = np.nan
        write_file(folder / "epoch_3.pdparams", tree)
        tiny_run(folder.parent, resume_from="auto")
        output = capsys.readouterr().out
        assert "epoch_3.pdparams: holds non-finite values in 'head.fc_cls.bias'; trying the checkpoint before" in output
        assert f"Resume training from {folder}/epoch_2.pdparams success!" in output

    def test_says_when_all_are_damaged_and_trains_nothing(self, trained):
        folder = trained[1]
        for path in folder.glob("*.pdparams"):
            path.write_bytes(path.read_bytes()[:100])
        lines = (folder / "log.jsonl").read_text()
        with pytest.raises(CheckpointError, match=rf"{folder}: none of its 2 checkpoints can be read"):
            tiny_run(folder.parent, resume_from="auto")
        assert (folder / "log.jsonl").read_text() == lines

    def test_passes_over_links_to_nothing_and_folders(self, trained, capsys):
        folder = trained[1]
        (folder / "gone.pdparams").symlink_to(folder / "epoch_7.pdparams")
        (folder / "folder.pdparams").mkdir()
        tiny_run(folder.parent, resume_from="auto")
        assert f"Resume training from {folder}/epoch_2.pdparams success!" in capsys.readouterr().out

    def test_starts_from_the_beginning_where_there_is_none(self, tmp_path, capsys):
        tiny_run(tmp_path, resume_from="auto")
        assert f"no checkpoint in {tmp_path}/out: starting from the beginning" in capsys.readouterr().out
        assert read_file(tmp_path / "out" / "latest.pdparams")["iter"] == 12

    def test_does_not_take_a_higher_number_of_an_earlier_run(self, tmp_path, capsys):
        tiny_run(tmp_path, "epochs=4")
        age(tmp_path / "out")
        tiny_trainer(tmp_path, "epochs=1").train()
        tiny_run(tmp_path, resume_from="auto")
        assert f"Resume training from {tmp_path}/out/epoch_1.pdparams success!" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("overrides", "name"),
        [
            (("checkpoint.filename_tmpl='2nd-run{}.pdparams'",), "out/2nd-run1.pdparams"),
            (("checkpoint.out_dir={}/elsewhere",), "elsewhere/epoch_1.pdparams"),
        ],
    )
    def test_looks_where_and_for_what_the_run_writes(self, overrides, name, tmp_path, capsys):
        overrides = [text.format(tmp_path) if "/" in text else text for text in overrides]
        tiny_run(tmp_path, "epochs=1", *overrides)
        tiny_run(tmp_path, *overrides, resume_from="auto")
        assert f"Resume training from {tmp_path}/{name} success!" in capsys.readouterr().out


class TestLinks:
    def test_a_link_is_replaced_and_leaves_no_temporary_file(self, tmp_path):
        for content in ("old", "new"):
            (tmp_path / content).write_text(content)
            link_checkpoint(tmp_path / content, tmp_path / "latest")
        assert (tmp_path / "latest").read_text() == "new" and (tmp_path / "old").read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 3

    def test_linking_twice_leaves_no_temporary_file_either(self, tmp_path):
        """To rename one name of a file to another name of the same file does nothing."""
        (tmp_path / "epoch_1").write_text("weights")
        for _ in range(2):
            link_checkpoint(tmp_path / "epoch_1", tmp_path / "latest")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_1", "latest"]

    def test_a_file_system_without_hard_links_gets_a_copy(self, tmp_path, monkeypatch):
        def refuse(source, target):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", refuse)
        (tmp_path / "epoch_1").write_text("weights")
        link_checkpoint(tmp_path / "epoch_1", tmp_path / "latest")
        assert (tmp_path / "latest").read_text() == "weights"

    def test_a_copy_that_fails_leaves_no_half_of_it(self, tmp_path, monkeypatch):
        def refuse(source, target):
            raise OSError(95, "Operation not supported")

        def half(source, target):
            target.write_text("wei")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr(shutil, "copyfile", half)
        (tmp_path / "epoch_1").write_text("weights")
        with pytest.raises(OSError, match="No space left"):
            link_checkpoint(tmp_path / "epoch_1", tmp_path / "latest")
        assert [path.name for path in tmp_path.iterdir()] == ["epoch_1"]


def exit_code_when_killed_at(step, action):
    """Run `action` in a child process that dies, as from kill -9, at its file operation number `step`."""
    child = os.fork()
    if not child:
        calls = iter(range(1, step))
        for name in ("fsync", "replace", "link", "unlink"):
            setattr(os, name, _dying(getattr(os, name), calls))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _dying(operation, calls):
    def wrapped(*arguments, **options):
        if next(calls, None) is None:
            os._exit(9)
        return operation(*arguments, **options)

    return wrapped


def test_killed_at_any_step_of_saving_a_run_can_be_resumed(trained):
    """Whatever the step, there is a newest checkpoint, old or new, and `latest` and `best` can be read."""
    trainer, folder = trained
    hook = next(hook for hook in trainer.hooks if isinstance(hook, CheckpointHook))
    hook.max_keep_ckpts = 1
    trainer.state.best["iter"] = trainer.state.iter  # all steps of saving: best is linked anew, too
    codes = []
    while 0 not in codes:
        codes.append(exit_code_when_killed_at(len(codes) + 1, lambda: hook.train_epoch_end(trainer)))
        assert resume_newest(folder, trainer) == folder / "epoch_2.pdparams"
        for name in ("latest.pdparams", "best.pdparams"):
            read_file(folder / name)
    assert codes[:-1] == [9] * (len(codes) - 1) and len(codes) > 8
    assert not (folder / "epoch_1.pdparams").exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_at_any_step_of_saving_is_logged_and_leaves_whole_files(error, trained, monkeypatch, capsys):
    setup_logger()  # to what capsys sees
    trainer, folder = trained
    hook = next(hook for hook in trainer.hooks if isinstance(hook, CheckpointHook))
    trainer.epochs, trainer.state.best["iter"] = 3, trainer.state.iter  # all steps of saving, and not for the last time
    steps = 0
    while steps == 0 or "the training goes on" in capsys.readouterr().out:
        steps += 1
        outcomes = itertools.chain([None] * (steps - 1), [error], itertools.repeat(None))
        with monkeypatch.context() as patch:
            for name in ("open", "fsync", "replace"):
                patch.setattr(os, name, _failing(getattr(os, name), outcomes))
            hook.train_epoch_end(trainer)
        assert not list(folder.glob(".*.tmp"))
        for path in folder.glob("*.pdparams"):
            read_file(path)
        assert resume_newest(folder, trainer) == folder / "epoch_2.pdparams"
    assert steps > 5


def _failing(operation, outcomes):
    """`operation` that fails where the next of the outcomes is an error number."""

    def wrapped(*arguments, **options):
        error = next(outcomes)
        if error:
            raise OSError(error, os.strerror(error))
        return operation(*arguments, **options)

    return wrapped


def test_a_checkpoint_that_a_run_goes_on_from_has_all_its_names(tmp_path):
    """Killed at any step of its first save or of a later one, which is the best each time, and so is its average."""
    trainer = tiny_trainer(tmp_path, "epochs=1", "custom_config=[{name: EMAHook}]")
    trainer.train()
    hook = next(hook for hook in trainer.hooks if isinstance(hook, CheckpointHook))
    folder = trainer.checkpoint_dir = tmp_path / "names"
    trainer.state.best = trainer.state.best_ema = {"acc1": 50.0, "iter": 6}
    for codes in ([], []):  # of the first epoch, and of the second
        while 0 not in codes:
            shutil.copytree(folder, tmp_path / "before") if folder.exists() else (tmp_path / "before").mkdir()
            codes.append(exit_code_when_killed_at(len(codes) + 1, lambda: hook.train_epoch_end(trainer)))
            if checkpoints_in(folder)[:1] == [folder / f"epoch_{trainer.state.epoch}.pdparams"]:
                for name in ("latest.pdparams", "best.pdparams", "best_ema.pdparams"):
                    assert read_file(folder / name)["epoch"] == trainer.state.epoch, name
            if 0 not in codes:
                shutil.rmtree(folder)
                (tmp_path / "before").rename(folder)
        shutil.rmtree(tmp_path / "before")
        assert codes[:-1] == [9] * (len(codes) - 1) and len(codes) > 10
        trainer.state.epoch, trainer.state.iter = 2, 12
        trainer.state.best = trainer.state.best_ema = {"acc1": 60.0, "iter": 12}


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    """Real processes, killed at some moment after they wrote a checkpoint; every iteration writes one."""
    every = ["checkpoint={name: CheckpointHook, by_epoch: false, max_keep_ckpts: 3}", "epochs=8"]
    whole = start("-c", tiny_file(tmp_path), *options(every), "--output_dir", tmp_path / "whole")
    assert whole.communicate()[1] == "" and whole.returncode == 0
    arguments = ["-c", tiny_file(tmp_path), *options(every), "--output_dir", tmp_path / "killed", "--resume", "auto"]
    for delay in (0.0, 0.013, 0.031):
        assert killed(start(*arguments), tmp_path / "killed", delay) == -signal.SIGKILL
    last = start(*arguments)
    output, errors = last.communicate()
    assert last.returncode == 0 and "Resume training from" in output, errors
    for name in ("latest.pdparams", "best.pdparams"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "killed").glob(".*.tmp"))


def options(overrides):
    return [word for text in overrides for word in ("-o", text)]


def killed(process, folder, delay):
    """Kill `process` as soon as it has written three more checkpoints, and `delay` seconds; return its exit code."""
    goal = last_number(folder) + 3
    while process.poll() is None and last_number(folder) < goal:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return process.returncode


def last_number(folder):
    return max((int(path.stem.partition("_")[2]) for path in folder.glob("iter_*.pdparams")), default=0)


class TestMaths:
    """Weights of MindCV need other maths than the paper's, and so does a run that began with them."""

    @pytest.fixture
    def mindcv_file(self, tmp_path):
        model = tiny_trainer(tmp_path).model
        model.backbone.set_maths(qk_norm=False, act="gelu_tanh")
        arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        write_file(tmp_path / "w.pdparams", {**arrays, "maths": model.backbone.maths})
        return tmp_path / "w.pdparams"

    def test_a_resumed_run_ends_with_the_same_weights(self, mindcv_file, tmp_path):
        tiny_run(tmp_path, f"output_dir={tmp_path}/whole", load=mindcv_file)
        tiny_run(tmp_path, f"output_dir={tmp_path}/parts", "epochs=1", load=mindcv_file)
        tiny_run(tmp_path, f"output_dir={tmp_path}/parts", resume_from="auto")
        whole, parts = (tree_of(tmp_path / name) for name in ("whole", "parts"))
        assert whole["maths"] == parts["maths"] == {"qk_norm": False, "act": "gelu_tanh"}
        for name, array in whole["state_dict"].items():
            assert array.tobytes() == parts["state_dict"][name].tobytes(), name

    def test_a_checkpoint_of_it_is_evaluated_with_its_maths(self, mindcv_file, tmp_path):
        tiny_run(tmp_path, load=mindcv_file)
        trainer = tiny_trainer(tmp_path)
        load_weights(trainer.model, tmp_path / "out" / "epoch_2.pdparams")
        assert trainer.model.backbone.maths == {"qk_norm": False, "act": "gelu_tanh"}

    def test_maths_that_no_model_has_are_refused(self, trained, tmp_path):
        trainer, folder = trained
        tree = tree_of(folder)
        for maths in ({"depth": 3}, {"act": "relu"}, {"act": 3}):
            write_file(folder / "other.pdparams", {**tree, "maths": maths})
            with pytest.raises(CheckpointError, match=r"other.pdparams: its weights need \{.*\}: "):
                load_weights(trainer.model, folder / "other.pdparams")


def test_resuming_prints_no_warning_of_paddles(trained, recwarn):
    tiny_run(trained[1].parent, "epochs=3", resume_from="auto")
    assert not [str(warning.message) for warning in recwarn if "unused" in str(warning.message)]
