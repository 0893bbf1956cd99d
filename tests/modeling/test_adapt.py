"""Weights of another task: the head, the input channels and the image size are made to fit, and each is said."""

import logging

import numpy as np
import paddle
import pytest

from passl_xcit.modeling import factory
from passl_xcit.modeling.adapt import resized_positions, with_channels
from passl_xcit.modeling.checkpoint_formats import write_file
from passl_xcit.modeling.weights import load_weights
from passl_xcit.utils.errors import CheckpointError

TINY = {
    "xcit_nano_12_p16": {"embed_dim": 32, "depth": 1, "num_heads": 4},
    "crossvit_9_240": {"img_size": 48, "embed_dim": [16, 32], "depth": [[1, 1]], "num_heads": [2, 2]},
    "regnetx_002": {"w_a": 0.0, "w_0": 16, "d": 1},
}


def tiny(preset, seed=0, **options):
    paddle.seed(seed)
    return factory.create_model(preset, **{**TINY[preset], "num_classes": 3, **options})


def saved(model, folder):
    write_file(folder / "w.pdparams", {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return folder / "w.pdparams"


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(logging.Logger, "info", lambda self, message: found.append(message))
    return found


@pytest.mark.parametrize("preset", TINY)
def test_another_number_of_classes_leaves_the_head_untrained_and_loads_the_rest(preset, tmp_path, lines):
    source, model = tiny(preset, seed=1), tiny(preset, seed=2, num_classes=5)
    before = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name.startswith("head.")}
    path = saved(source, tmp_path)
    load_weights(model, path, adapt=True)
    assert lines == [f"{path}: has 3 classes, the model 5: the model's head starts untrained"]
    for name, tensor in model.state_dict().items():
        expected = before[name] if name.startswith("head.") else source.state_dict()[name].numpy()
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_file_without_a_head_is_said_to_have_none(tmp_path, lines):
    source, model = tiny("xcit_nano_12_p16", 1), tiny("xcit_nano_12_p16", 2)
    arrays = {f"backbone.{name}": tensor.numpy() for name, tensor in source.backbone.state_dict().items()}
    write_file(tmp_path / "w.pdparams", arrays)
    load_weights(model, tmp_path / "w.pdparams", adapt=True)
    assert lines == [f"{tmp_path}/w.pdparams: has no classifier, the model 3: the model's head starts untrained"]


@pytest.mark.parametrize("preset", TINY)
@pytest.mark.parametrize("options", [{"num_classes": 5}, {"in_chans": 1}])
def test_without_being_asked_nothing_is_adapted(preset, options, tmp_path):
    path, model = saved(tiny(preset), tmp_path), tiny(preset, **options)
    with pytest.raises(CheckpointError, match="does not fit the model, which is left as it was"):
        load_weights(model, path)


@pytest.mark.parametrize("preset", TINY)
def test_a_grey_image_gives_what_it_gives_as_three_equal_channels(preset, tmp_path):
    source, model = tiny(preset, 1), tiny(preset, 2, in_chans=1)
    load_weights(model, saved(source, tmp_path), adapt=True)
    source.eval(), model.eval()
    grey = paddle.rand([2, 1, 48, 48])
    np.testing.assert_allclose(model(grey).numpy(), source(grey.expand([-1, 3, -1, -1])).numpy(), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_equal_channels_give_what_they_gave(channels):
    kernel = np.random.RandomState(0).standard_normal((2, 3, 3, 3)).astype("float32")
    adapted = with_channels(kernel, channels)
    assert adapted.shape == (2, channels, 3, 3) and adapted.dtype == np.float32
    np.testing.assert_allclose(adapted.sum(axis=1), kernel.sum(axis=1), atol=1e-6)


def test_fewer_channels_are_scaled_up():
    kernel = np.full((2, 3, 3, 3), 0.5, "float32")
    np.testing.assert_allclose(with_channels(kernel, 2), np.full((2, 2, 3, 3), 0.75))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("head.fc_cls.bias"),
        lambda a: a.update({"head.fc_cls.bias": np.array(0, "float32")}),
        lambda a: a.update({"head.fc_cls.bias": a["head.fc_cls.bias"][:, None]}),
        lambda a: a.update({"head.fc_cls.weight": a["head.fc_cls.weight"].T}),
        lambda a: a.update({"head.fc_cls.weight": a["head.fc_cls.weight"][:, :2]}),
        lambda a: a.update({"head.fc_cls.weight": a["head.fc_cls.weight"][:5]}),
        lambda a: a.update({"head.fc_cls.extra": np.zeros(3, "float32")}),
    ],
    ids=["no bias", "bias a number", "bias a column", "transposed", "half the classes", "half the features", "extra"],
)
def test_a_head_that_differs_otherwise_is_damaged_and_refused(change, tmp_path, lines):
    arrays = {name: tensor.numpy() for name, tensor in tiny("xcit_nano_12_p16").state_dict().items()}
    change(arrays)
    write_file(tmp_path / "w.pdparams", arrays)
    with pytest.raises(CheckpointError, match=r"~ head|- head|\+ head"):
        load_weights(tiny("xcit_nano_12_p16"), tmp_path / "w.pdparams", adapt=True)
    assert lines == []


def test_crossvit_takes_weights_of_another_image_size(tmp_path, lines):
    source, model = tiny("crossvit_9_240", 1), tiny("crossvit_9_240", 2, img_size=96)
    path = saved(source, tmp_path)
    load_weights(model, path, adapt=True)
    assert [line.partition(": ")[2] for line in lines] == [
        "backbone.pos_embed.0: 17 positions are resized to 65",
        "backbone.pos_embed.1: 10 positions are resized to 37",
    ]
    np.testing.assert_array_equal(model.backbone.pos_embed[0][:, 0].numpy(), source.backbone.pos_embed[0][:, 0].numpy())
    assert model(paddle.rand([1, 3, 96, 96])).shape == [1, 3]


def test_resizing_positions_keeps_a_constant_and_the_class_token():
    positions = np.full((1, 17, 2), 0.25, "float32")
    positions[:, 0] = 9
    resized = resized_positions(positions, 26)
    assert resized.shape == (1, 26, 2)
    np.testing.assert_allclose(resized[:, 1:], 0.25, rtol=1e-6)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])


@pytest.mark.parametrize("count", [16, 18])
def test_positions_that_are_no_square_are_left_for_the_loader_to_refuse(count):
    positions = np.zeros((1, 17, 2), "float32")
    assert resized_positions(positions, count) is positions


def test_another_architecture_is_refused_all_the_same_and_named(tmp_path):
    path, model = saved(tiny("xcit_nano_12_p16"), tmp_path), tiny("regnetx_002")
    expected = r"this looks like an XCiT of patch_size 16, embed_dim 32, depth 1, num_heads 4\)"
    with pytest.raises(CheckpointError, match=expected):
        load_weights(model, path, adapt=True)
