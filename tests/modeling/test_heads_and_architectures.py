"""Heads, and the model that a config names."""

import numpy as np
import paddle
import pytest
from paddle import nn

from passl_xcit.losses import cross_entropy
from passl_xcit.modeling.architectures import Classification
from passl_xcit.modeling.backbones import xcit  # noqa: F401 (registers)
from passl_xcit.modeling.heads import ClasHead, SwinTransformerClsHead
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import HEADS, MODELS

TINY = {"name": "XCiT", "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1}
HEAD = {"name": "SwinTransformerClsHead", "in_channels": 16, "num_classes": 3}


def as_float64(tensor):
    return tensor.numpy().astype("float64")


def features(*shape):
    return paddle.to_tensor(np.random.default_rng(0).normal(size=shape), dtype="float32")


# Heads.


def test_a_head_is_one_linear_layer_with_passls_names():
    head, x = SwinTransformerClsHead(8, 3), features(4, 8)
    assert {name: value.shape for name, value in head.state_dict().items()} == {
        "fc_cls.weight": [8, 3],
        "fc_cls.bias": [3],
    }
    expected = as_float64(x) @ as_float64(head.fc_cls.weight) + as_float64(head.fc_cls.bias)
    np.testing.assert_allclose(head(x).numpy(), expected, atol=1e-6)


def test_a_head_starts_with_a_normal_of_0_01():
    paddle.seed(0)
    head = SwinTransformerClsHead(300, 200)
    assert head.fc_cls.weight.numpy().std() == pytest.approx(0.01, rel=0.02)
    assert (head.fc_cls.bias == 0).all()


@pytest.mark.parametrize("make", [lambda: SwinTransformerClsHead(8, 3, with_avg_pool=True), lambda: ClasHead(8, 3)])
def test_feature_maps_are_averaged(make):
    head, maps = make(), features(2, 8, 5, 4)
    expected = head.fc_cls(maps.mean(axis=[2, 3]))
    np.testing.assert_allclose(head(maps).numpy(), expected.numpy(), atol=1e-6)


def test_of_several_branches_the_logits_are_averaged():
    head, branches = SwinTransformerClsHead([8, 4], 3), (features(5, 8), features(5, 4))
    assert sorted(head.state_dict()) == ["fc_cls.0.bias", "fc_cls.0.weight", "fc_cls.1.bias", "fc_cls.1.weight"]
    expected = (head.fc_cls[0](branches[0]) + head.fc_cls[1](branches[1])) / 2
    assert head(branches).shape == [5, 3] and head.in_channels == (8, 4)
    np.testing.assert_allclose(head(branches).numpy(), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("targets", [paddle.to_tensor([0, 2]), paddle.to_tensor([[0.9, 0.1, 0.0], [0.2, 0.2, 0.6]])])
def test_a_loss_comes_with_accuracies(targets):
    logits = paddle.to_tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 2.0]], stop_gradient=False)
    values = SwinTransformerClsHead(8, 3).loss(logits, targets)
    assert {name: value.item() for name, value in values.items() if name != "loss"} == {"acc1": 50.0, "acc5": 100.0}
    assert values["loss"].item() == cross_entropy(logits, targets).item()
    assert not values["loss"].stop_gradient and values["acc1"].stop_gradient


@pytest.mark.parametrize("in_channels", [0, -1, [8, 0], []])
def test_a_head_needs_channels(in_channels):
    with pytest.raises(ValueError, match="in_channels must be at least 1, not "):
        SwinTransformerClsHead(in_channels, 3)


def test_a_head_needs_a_class():
    with pytest.raises(
        ConfigError, match="model.head.num_classes: num_classes must lie between 1 and 10,000,000, not 0"
    ):
        HEADS.build({**HEAD, "num_classes": 0}, "model.head")


# Models.


@pytest.mark.parametrize("name", ["Classification", "SwinWrapper"])
@pytest.mark.parametrize("key", ["architecture", "backbone"])
def test_passls_names_and_keys_all_mean_the_same_model(name, key):
    node = {"name": name, key: TINY, "head": HEAD}
    MODELS.check(node, "model")
    model = MODELS.build(node, "model")
    assert type(model) is Classification and model.num_classes == 3
    assert {parameter.split(".")[0] for parameter in model.state_dict()} == {"backbone", "head"}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"head": HEAD}, "model: give the backbone once: as 'architecture' or as 'backbone'"),
        (
            {"head": HEAD, "architecture": TINY, "backbone": TINY},
            "model.backbone: give the backbone once: as 'architecture' or",
        ),
        (
            {"head": {**HEAD, "in_channels": 8}, "architecture": TINY},
            "model.head: in_channels of the head is 8, but the backbone gives 16 features",
        ),
        (
            {"head": {**HEAD, "in_channels": [16]}, "architecture": TINY},
            "model.head: in_channels of the head is (16,), but the backbone gives 16 features",
        ),
        (
            {"head": HEAD, "architecture": {**TINY, "num_heads": 3}},
            "model.architecture.embed_dim: embed_dim 16 is not a multiple",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(node, message):
    with pytest.raises(ConfigError) as caught:
        MODELS.build({"name": "SwinWrapper", **node}, "model")
    assert str(caught.value).startswith(message)


def test_a_model_is_its_head_after_its_backbone(tiny_model):
    model, images = tiny_model(num_classes=5), features(2, 3, 8, 12)
    model.eval()
    assert model(images).shape == [2, 5]
    np.testing.assert_array_equal(model(images).numpy(), model.head(model.backbone(images)).numpy())


def test_a_training_forward_gives_the_heads_loss(tiny_model):
    model, images, targets = tiny_model(), features(2, 3, 8, 8), paddle.to_tensor([0, 2])
    values = model.train_iter(images, targets)
    assert values["loss"].item() == pytest.approx(model.head.loss(model(images), targets)["loss"].item(), rel=1e-6)


def test_any_layer_with_num_features_is_a_backbone():
    class Mean(nn.Layer):
        num_features = 3

        def forward(self, images):
            return images.mean(axis=[2, 3])

    model = Classification(SwinTransformerClsHead(3, 2), Mean())
    assert model(features(4, 3, 8, 8)).shape == [4, 2]
