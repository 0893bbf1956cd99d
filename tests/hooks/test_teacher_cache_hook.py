"""The teacher's logits from a file give the training that the teacher itself gives."""

import signal

import numpy as np
import pytest
from tiny_run import tiny_run, tiny_trainer

from passl_xcit.hooks.teacher_cache_hook import TeacherCacheHook
from passl_xcit.modeling.architectures import Classification
from passl_xcit.utils.errors import ConfigError, TrainingStopped

BACKBONE = "{name: XCiT, patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2, cls_attn_layers: 1, drop_path_rate: 0.2}"
HEAD = "{name: SwinTransformerClsHead, in_channels: 8, num_classes: 3}"
MODEL = f"""model={{name: DistillationWrapper, models: [
    {{Teacher: {{name: SwinWrapper, architecture: {BACKBONE}, head: {HEAD}}}}},
    {{Student: {{name: SwinWrapper, architecture: {BACKBONE}, head: {HEAD}}}}}]}}"""
FIXED = (
    MODEL,
    "dataloader.train.dataset.transforms=[{name: Transpose}, "
    "{name: Normalize, mean: [110.0, 110.0, 110.0], std: [50.0, 50.0, 50.0]}]",
    "dataloader.train.dataset.batch_transforms=[{name: Mixup, prob: 0.0}]",
)
CACHE = "custom_config=[{name: EvaluateHook}, {name: TeacherCacheHook}]"


def weights(trainer):
    return [tensor.numpy() for tensor in trainer.model.state_dict().values()]


@pytest.mark.parametrize("overrides", [(), ("accum_steps=3",)], ids=["whole batch", "in parts"])
def test_a_training_with_it_ends_as_one_without(overrides, tmp_path):
    """To 1e-4: the teacher computes an image in another batch, and AdamW makes little of much."""
    plain, cached = (tiny_trainer(tmp_path, *FIXED, *overrides, *more) for more in ((), (CACHE,)))
    plain.train()
    cached.train()
    for one, other in zip(weights(plain), weights(cached)):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_teacher_is_asked_once_an_image_and_not_again_in_the_next_run(tmp_path, monkeypatch):
    asked = []
    forward = Classification.forward

    def counted(self, images):
        asked.extend([self] * len(images))
        return forward(self, images)

    monkeypatch.setattr(Classification, "forward", counted)
    for expected in (24, 0):
        trainer = tiny_trainer(tmp_path, *FIXED, CACHE)
        trainer.train()
        assert asked.count(trainer.model.teacher) == expected


def cache_of(folder):
    (path,) = folder.glob("teacher_logits-*.npy")
    return path


def test_another_teacher_has_another_file(tmp_path):
    shared = f"custom_config=[{{name: EvaluateHook}}, {{name: TeacherCacheHook, file: {tmp_path}/teacher_logits.npy}}]"
    for seed in (5, 6):
        tiny_trainer(tmp_path, *FIXED, shared, "epochs=1", f"seed={seed}").train()
    one, other = (np.load(path) for path in tmp_path.glob("teacher_logits-*.npy"))
    assert one.shape == other.shape == (24, 3) and not np.array_equal(one, other)


def test_another_weight_of_the_loss_takes_the_same_file(tmp_path):
    for weight in (0.5, 0.7):
        tiny_trainer(tmp_path, *FIXED, CACHE, "epochs=1", f"model.dml_loss_weight={weight}").train()
        assert cache_of(tmp_path / "out")


@pytest.mark.parametrize("damage", ["empty", "cut", "other shape", "other type"])
def test_a_file_that_is_not_one_of_ours_is_written_anew(damage, tmp_path):
    tiny_trainer(tmp_path, *FIXED, CACHE, "epochs=1").train()
    path = cache_of(tmp_path / "out")
    good = path.read_bytes()
    if damage in ("empty", "cut"):
        path.write_bytes(good[: 0 if damage == "empty" else len(good) // 2])
    else:
        np.save(path, np.zeros((24, 3), "float64") if damage == "other type" else np.zeros((24, 2), "float32"))
    tiny_trainer(tmp_path, *FIXED, CACHE, "epochs=1").train()
    assert path.read_bytes() == good


def test_a_stop_while_the_teacher_is_asked_leaves_no_half_file(tmp_path):
    trainer = tiny_trainer(tmp_path, *FIXED, CACHE)
    trainer.stop.number = signal.SIGTERM
    with pytest.raises(TrainingStopped, match="stopped by SIGTERM after 0 iterations"):
        trainer.train()
    assert not list((tmp_path / "out").glob("*.npy")) and not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.parametrize(
    "override, name",
    [
        ("dataloader.train.dataset.transforms.0={name: RandomHorizontalFlip}", "RandomHorizontalFlip"),
        ("dataloader.train.dataset.batch_transforms.0.prob=1.0", "Mixup"),
    ],
)
def test_a_view_that_is_drawn_at_random_is_refused_by_name(override, name, tmp_path):
    with pytest.raises(
        ConfigError, match=f"TeacherCacheHook: {name} draws at random, so that the teacher sees an image"
    ):
        tiny_run(tmp_path, *FIXED, CACHE, override)


def test_a_model_without_a_teacher_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="TeacherCacheHook: the model has no teacher"):
        tiny_run(tmp_path, CACHE)


def test_another_kind_of_file_is_refused():
    with pytest.raises(ValueError, match=r"file is a name like 'teacher_logits.npy', not 'logits.txt'"):
        TeacherCacheHook(file="logits.txt")
