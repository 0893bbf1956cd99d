"""A config is read strictly and completely before anything of it is built, and built as it says."""

import re

import paddle
import pytest
import yaml
from tiny_run import tiny_config, tiny_dict, tiny_file, tiny_trainer

from passl_xcit.engine import builder
from passl_xcit.hooks.checkpoint_hook import CheckpointHook
from passl_xcit.hooks.evaluate_hook import EvaluateHook
from passl_xcit.hooks.log_hook import LogHook
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.logger import setup_logger

WRONG = {  # an override with a wrong key or value, and the message after the override itself
    "epoch=3": "epoch: the config takes no 'epoch'; did you mean 'epochs'?",
    "model.architecture.dept=3": "model.architecture.dept: XCiT takes no 'dept'; did you mean 'depth'?",
    "model.neck={}": "model.neck: SwinWrapper takes no 'neck'; known: architecture, backbone, freeze, head",
    "model.head.name=SwinTransformerHead": (
        "model.head.name: no head 'SwinTransformerHead'; did you mean 'SwinTransformerClsHead'?"
    ),
    "dataloader.test={}": "dataloader.test: dataloader takes no 'test'; known: train, val",
    "dataloader.train.shuffle=true": "dataloader.train.shuffle: dataloader takes no 'shuffle'; known: dataset, ",
    "dataloader.train.sampler.batchsize=4": (
        "dataloader.train.sampler.batchsize: DistributedBatchSampler takes no 'batchsize'; did you mean 'batch_size'?"
    ),
    "dataloader.train.sampler.rank=1": "dataloader.train.sampler.rank: DistributedBatchSampler takes no 'rank'",
    "dataloader.val.loader.workers=4": "dataloader.val.loader.workers: loader takes no 'workers'; did you mean ",
    "dataloader.train.dataset.dataroots=x": (
        "dataloader.train.dataset.dataroots: ImageNet takes no 'dataroots'; did you mean 'dataroot'?"
    ),
    "dataloader.train.dataset.transforms.0.probability=1": (
        "dataloader.train.dataset.transforms.0.probability: RandomHorizontalFlip takes no 'probability'; "
    ),
    "dataloader.train.dataset.transforms.2.means=[1.0]": (
        "dataloader.train.dataset.transforms.2.means: Normalize takes no 'means'; did you mean 'mean'?"
    ),
    "dataloader.train.dataset.batch_transforms.0.alpha=1": (
        "dataloader.train.dataset.batch_transforms.0.alpha: Mixup takes no 'alpha'; "
    ),
    "lr_scheduler.learning_rate.tmax=3": (
        "lr_scheduler.learning_rate.tmax: CosineAnnealingDecay takes no 'tmax'; did you mean 'T_max'?"
    ),
    "optimizer.lr=0.1": "optimizer.lr: AdamW takes no 'lr'; known: ",
    "log_config.intervall=1": "log_config.intervall: LogHook takes no 'intervall'; did you mean 'interval'?",
    "checkpoint.max_keep_ckpt=1": (
        "checkpoint.max_keep_ckpt: CheckpointHook takes no 'max_keep_ckpt'; did you mean 'max_keep_ckpts'?"
    ),
    "custom_config.0.interva=1": "custom_config.0.interva: EvaluateHook takes no 'interva'; did you mean 'interval'?",
    "custom_config.0.name=EvalHook": "custom_config.0.name: no hook 'EvalHook'; did you mean 'EvaluateHook'?",
    "epochs=two": "epochs: the config expects int or null, not 'two'",
    "epochs=0": "epochs: must be at least 1, not 0",
    "seed=-1": "seed: must lie in [0, 2**63), not -1",
    "seed=9223372036854775808": "seed: must lie in [0, 2**63), not 9223372036854775808",
    "seed=1.5": "seed: the config expects int, not 1.5",
    "device=0": "device: the config expects text or null, not 0",
    "model.head.in_channels=eight": "model.head.in_channels: SwinTransformerClsHead expects int or a list of int",
    "dataloader.val.dataset.transforms={name: Transpose}": "dataloader.val.dataset.transforms: ",
    "custom_config={name: EvaluateHook}": "custom_config: ",
    "optimizer=AdamW": "optimizer: ",
}


class TestCheckConfig:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("override", WRONG)
    def test_a_wrong_key_or_value_is_named_with_its_place_and_the_right_one(self, override, training, tmp_path):
        with pytest.raises(ConfigError, match=re.escape(f"-o {override}: {WRONG[override]}")) as caught:
            builder.check_config(tiny_config(tmp_path, override), training)
        assert "\n" not in str(caught.value)

    def test_a_wrong_key_of_a_file_is_named_with_the_file(self, tmp_path):
        path = tiny_file(tmp_path)
        path.write_text(path.read_text().replace("weight_decay:", "weightdecay:"))
        message = f"{path}: optimizer.weightdecay: AdamW takes no 'weightdecay'; did you mean 'weight_decay'?"
        with pytest.raises(ConfigError, match=re.escape(message)):
            builder.check_config(tiny_config(tmp_path), training=True)

    @pytest.mark.parametrize("key", ["epochs", "lr_scheduler", "optimizer", "dataloader.train"])
    def test_what_only_training_needs_may_be_missing_in_an_evaluation(self, key, tmp_path):
        cfg = tiny_config(tmp_path, f"{key}=null")
        builder.check_config(cfg, training=False)
        with pytest.raises(ConfigError, match=f"{key}: '{key}' is needed to train"):
            builder.check_config(cfg, training=True)

    def test_an_evaluation_needs_its_data(self, tmp_path):
        cfg = tiny_config(tmp_path, "dataloader.val=null", "custom_config=null")
        builder.check_config(cfg, training=True)
        with pytest.raises(ConfigError, match="dataloader.val: 'dataloader.val' is needed to evaluate"):
            builder.check_config(cfg, training=False)

    def test_evaluating_while_training_needs_its_data_too(self, tmp_path):
        with pytest.raises(ConfigError, match="dataloader.val: 'dataloader.val' is needed to evaluate"):
            tiny_trainer(tmp_path, "dataloader.val=null")

    @pytest.mark.parametrize("key", ["model", "dataloader"])
    def test_a_model_and_data_there_must_be(self, key, tmp_path):
        tiny_file(tmp_path).write_text(yaml.safe_dump({k: v for k, v in tiny_dict(tmp_path).items() if k != key}))
        with pytest.raises(ConfigError, match=f"tiny.yaml: the config needs '{key}', which is not given"):
            builder.check_config(tiny_config(tmp_path), training=False)


class TestBuildModel:
    def test_its_weights_depend_on_the_seed_only(self, tmp_path):
        first = builder.build_model(tiny_config(tmp_path)).state_dict()
        paddle.seed(99)
        paddle.rand([7])
        again = builder.build_model(tiny_config(tmp_path)).state_dict()
        other = builder.build_model(tiny_config(tmp_path, "seed=6")).state_dict()
        assert all((tensor.numpy() == again[name].numpy()).all() for name, tensor in first.items())
        assert (first["head.fc_cls.weight"].numpy() != other["head.fc_cls.weight"].numpy()).any()

    def test_the_largest_seed_is_one(self, tmp_path):
        builder.build_model(tiny_config(tmp_path, f"seed={2**63 - 1}"))

    def test_the_printed_number_counts_what_is_trained(self, tmp_path, capsys):
        """Running statistics are parameters in Paddle, but no gradient descends on them."""
        setup_logger()
        model = builder.build_model(tiny_config(tmp_path))
        trained = sum(p.size for name, p in model.named_parameters() if not name.endswith(("._mean", "._variance")))
        assert f"Number of Parameters is {trained / 1000:.2f}K." in capsys.readouterr().out

    def test_sizes_that_do_not_fit_are_a_config_error(self, tmp_path):
        with pytest.raises(
            ConfigError, match=r"model.head: in_channels of the head is 9, but the backbone gives 8 features"
        ):
            builder.build_model(tiny_config(tmp_path, "model.head.in_channels=9"))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.00"),
        (7, "7.00"),
        (999, "999.00"),
        (1000, "1.00K"),
        (999_999, "1000.00K"),
        (3_049_016, "3.05M"),
        (84_010_000, "84.01M"),
        (1_500_000_000, "1.50B"),
        (10**12, "1.00T"),
    ],
)
def test_numbers_of_parameters_are_printed_in_powers_of_a_thousand(number, text):
    assert builder.format_count(number) == text


class TestBuildLoader:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            (
                "dataloader.val.sampler.drop_last=true",
                "sampler.drop_last: must be false: an evaluation leaves no sample",
            ),
            (
                "dataloader.val.dataset.batch_transforms=[{name: Mixup}]",
                "batch_transforms: an evaluation mixes no images",
            ),
            (
                "dataloader.val.sampler={name: DistributedRepeatedAugSampler, batch_size: 4}",
                "dataloader.val.sampler: an evaluation repeats no images",
            ),
        ],
    )
    def test_an_evaluation_sees_every_sample_as_it_is(self, override, message, tmp_path):
        with pytest.raises(ConfigError, match=message):
            builder.build_loader(tiny_config(tmp_path, override), "val", 3)

    @pytest.mark.parametrize(
        ("split", "policy", "message"),
        [
            ("val", "skip", "an evaluation replaces no image: raise or count_as_wrong"),
            ("train", "count_as_wrong", "a training counts no image as wrong: raise or skip"),
            ("train", "ignore", "on_bad_image must be one of raise, skip, count_as_wrong, not 'ignore'"),
        ],
    )
    def test_a_policy_of_the_other_split_is_refused(self, split, policy, message, tmp_path):
        key = f"dataloader.{split}.dataset.on_bad_image"
        with pytest.raises(ConfigError) as caught:
            builder.build_loader(tiny_config(tmp_path, f"{key}={policy}"), split, 3)
        assert f"{key}: {message}" in str(caught.value)

    def test_each_split_is_built_from_its_own_section(self, tmp_path):
        train, val = (builder.build_loader(tiny_config(tmp_path), split, 3) for split in ("train", "val"))
        assert (len(train.dataset), len(val.dataset)) == (24, 15)
        assert (len(train), len(val)) == (6, 4)

    def test_labels_must_fit_the_model(self, tmp_path):
        with pytest.raises(DataError, match=f"{tmp_path}/train: 3 classes, but the model has 4: set model.head.num_cl"):
            builder.build_loader(tiny_config(tmp_path), "train", 4)


class TestBuildTrainer:
    def test_passls_hooks_are_there_without_being_named(self, tmp_path):
        trainer = tiny_trainer(tmp_path, "log_config=null", "checkpoint=null", "custom_config=null")
        assert [type(hook) for hook in trainer.hooks] == [LogHook, CheckpointHook]
        assert trainer.hooks[0].interval == 10 and trainer.hooks[1].max_keep_ckpts == 5
        assert trainer.evaluator is None

    def test_named_hooks_replace_them(self, tmp_path):
        trainer = tiny_trainer(tmp_path, "log_config.interval=3", "checkpoint.max_keep_ckpts=2")
        assert [type(hook) for hook in trainer.hooks] == [LogHook, EvaluateHook, CheckpointHook]
        assert trainer.hooks[0].interval == 3 and trainer.hooks[2].max_keep_ckpts == 2

    def test_the_schedule_counts_epochs_of_the_loaders_length(self, tmp_path):
        """One epoch of 6 iterations from 0.001 to 0.02, then 3 epochs of cosine."""
        trainer, rates = tiny_trainer(tmp_path), []
        for _ in range(24):
            rates.append(trainer.optimizer.get_lr())
            trainer.lr_scheduler.step()
        assert rates[:7] == pytest.approx([0.001 + 0.019 * step / 6 for step in range(7)])
        assert rates[6 + 9] == pytest.approx(0.01) and trainer.optimizer.get_lr() == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize(
        ("batch_size", "processes", "peak"), [(8, 1, 0.04), (2, 4, 0.04), (1, 8, 0.04), (2, 1, 0.01)]
    )
    def test_the_learning_rate_follows_the_images_a_step_however_many_processes_share_them(
        self, batch_size, processes, peak, tmp_path, monkeypatch, capsys
    ):
        """0.02 is for 4 images; the warm-up's end and the cosine in it are both scaled."""
        monkeypatch.setattr(builder, "world_size", lambda: processes)
        setup_logger()
        cfg = tiny_config(
            tmp_path, "lr_scheduler.base_batch_size=4", f"dataloader.train.sampler.batch_size={batch_size}"
        )
        loader = builder.build_loader(cfg, "train", 3)
        schedule = builder.build_schedule(cfg, loader)
        for step in range(len(loader) + 1):
            assert schedule() == pytest.approx(0.001 + (peak - 0.001) * step / len(loader))
            schedule.step()
        shares = f"{batch_size} x {processes} process{'es' * (processes > 1)}"
        line = f"learning rate 2.000e-02 x global batch {batch_size * processes} ({shares}) / 4 = {peak:.3e}"
        assert line in capsys.readouterr().out

    def test_without_a_base_the_images_a_step_are_printed_alone(self, tmp_path, capsys):
        tiny_trainer(tmp_path)
        assert re.search(r"INFO: global batch 4 \(4 x 1 process\)$", capsys.readouterr().out, re.MULTILINE)

    def test_a_schedule_in_another_one_has_no_base_of_its_own(self, tmp_path):
        key = "lr_scheduler.learning_rate.base_batch_size"
        with pytest.raises(ConfigError, match=f"-o {key}=4: {key}: belongs to the outermost schedule"):
            tiny_trainer(tmp_path, f"{key}=4")

    def test_timms_cosine_lasts_as_long_as_the_run_unless_told_otherwise(self, tmp_path):
        """Two epochs of 6 iterations: half way down after one, down after two."""
        cfg = tiny_config(tmp_path, "lr_scheduler={name: TimmCosine, learning_rate: 0.02, decay_unit: step}")
        schedule = builder.build_schedule(cfg, builder.build_loader(cfg, "train", 3))
        schedule.step(6)
        assert schedule() == pytest.approx(0.01)
        schedule.step(12)
        assert schedule() == pytest.approx(0, abs=1e-12)
