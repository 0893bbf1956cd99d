"""Parts of a model that are not trained: linear probing, and the official recipe's frozen patch embedding."""

import numpy as np
import paddle
import pytest
from tiny_run import tiny_trainer

from passl_xcit.modeling import factory

BACKBONE = {"name": "XCiT", "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "drop_path_rate": 0.5}
HEAD = {"name": "SwinTransformerClsHead", "in_channels": 8, "num_classes": 3}


def model(freeze):
    return factory.build({"name": "SwinWrapper", "architecture": BACKBONE, "head": HEAD, "freeze": freeze})


@pytest.mark.parametrize("part", ["backbone", "backbone.patch_embed", "head"])
def test_a_frozen_part_keeps_every_byte_and_the_rest_learns(part, tmp_path):
    trainer = tiny_trainer(tmp_path, f"model.freeze=[{part}]")
    before = {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if (tensor.numpy() != before[name]).any()}
    assert not [name for name in changed if name.startswith(f"{part}.")]
    rest = [name for name in before if not name.startswith(f"{part}.")]
    assert rest and len([name for name in rest if name not in changed]) <= len(rest) // 4


def test_the_optimizer_has_moments_of_what_is_trained_only(tmp_path):
    trainer = tiny_trainer(tmp_path, "model.freeze=[backbone]", "epochs=1")
    trainer.train()
    moments = [key for key in trainer.optimizer.state_dict() if "moment1" in key]
    assert len(moments) == len(list(trainer.model.head.parameters()))


def test_a_frozen_part_drops_nothing_and_its_batchnorm_takes_its_own_statistics():
    frozen = model(["backbone"])
    frozen.train()
    images = paddle.randn([4, 3, 8, 8])
    in_training = frozen(images).numpy()
    frozen.eval()
    assert np.array_equal(in_training, frozen(images).numpy())


def test_the_parts_that_are_not_frozen_are_in_training_mode():
    frozen = model(["backbone.patch_embed"])
    frozen.train()
    assert frozen.training and frozen.backbone.blocks[0].training and frozen.head.training
    assert not any(layer.training for layer in frozen.backbone.patch_embed.sublayers(include_self=True))


def test_a_students_frozen_part_stays_so_in_a_distillation():
    student = {"name": "SwinWrapper", "architecture": BACKBONE, "head": HEAD, "freeze": ["backbone"]}
    teacher = {"name": "SwinWrapper", "architecture": BACKBONE, "head": HEAD}
    wrapper = factory.build({"name": "DistillationWrapper", "models": [{"Teacher": teacher}, {"Student": student}]})
    wrapper.train()
    assert wrapper.student.head.training and not wrapper.student.backbone.training
    assert not wrapper.teacher.training


@pytest.mark.parametrize(
    "freeze, text",
    [
        (["backbon"], "freeze: the model has no part 'backbon'; the nearest are backbone"),
        (["backbone", "head"], r"freeze \['backbone', 'head'\] leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(freeze, text):
    with pytest.raises(Exception, match=text):
        model(freeze)
