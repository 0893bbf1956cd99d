"""The native stem in training: outputs, gradients and statistics as the portable formulation and the textbook."""

import os
from unittest import mock

import numpy as np
import paddle
import pytest
from fill_by_name import fill_paddle
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from reference_xcit import patch_embed, to_tokens
from test_native_training import same
from test_native_xcit import draw, per_example

from passl_xcit.modeling.backbones.xcit import ConvPatchEmbed, XCiT
from passl_xcit.ops.conditions import applies_in_training
from passl_xcit.ops.library import MODE, Library
from passl_xcit.ops.stem import train_stem

SIZES = [(8, 3, 32, 3, 5, 3), (16, 3, 24, 2, 2, 1), (2, 1, 3, 37, 2, 2), (4, 5, 34, 15, 3, 2), (8, 3, 128, 4, 29, 2)]
TINY = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}


def is_statistic(name):
    return name.endswith(("._mean", "._variance"))


def make_stem(patch_size=8, in_chans=3, channels=24):
    """A stem in training with parameters drawn by name; and these."""
    layer = ConvPatchEmbed(patch_size, in_chans, channels)
    weights = fill_paddle({name: value.shape for name, value in layer.state_dict().items()})
    layer.set_state_dict({name: paddle.to_tensor(value.astype("float32")) for name, value in weights.items()})
    layer.train()
    return layer, weights


def inputs(patch_size, in_chans, channels, height, width, batch):
    """images [B, I, H * p, W * p], positions [N, C]"""
    images = draw([batch, in_chans, height * patch_size, width * patch_size])
    return images, draw([height * width, channels], seed=2)


def trained(layer, images, positions, native=True, threads=2):
    """{name: array} of the output, the gradients and the running statistics after one pass forward and back."""
    images, positions = (paddle.to_tensor(value, stop_gradient=False) for value in (images, positions))
    before = {name: value.numpy() for name, value in layer.state_dict().items() if is_statistic(name)}
    with mock.patch.object(Library, "threads", lambda self: threads):
        if native:
            assert applies_in_training(layer, images)
            y = train_stem(layer, images, positions)
        else:
            with mock.patch.dict(os.environ, {MODE: "off"}):
                y = layer(images).flatten(2).transpose([0, 2, 1]) + positions
        (y * paddle.to_tensor(draw(y.shape, seed=1))).sum().backward()
    found = {name: value.grad.numpy() for name, value in layer.named_parameters() if value.grad is not None}
    found.update({"images": images.grad.numpy(), "positions": positions.grad.numpy(), "y": y.numpy()})
    found.update({name: value.numpy() for name, value in layer.state_dict().items() if is_statistic(name)})
    for parameter in layer.parameters():
        parameter.clear_gradient()
    layer.set_state_dict({name: paddle.to_tensor(value) for name, value in before.items()})
    return found


def textbook(weights, images, positions, patch_size):
    """{name: float64 array} of the output and the gradients."""
    exact = {name: paddle.to_tensor(value.astype("float64"), stop_gradient=False) for name, value in weights.items()}
    images, positions = (paddle.to_tensor(x.astype("float64"), stop_gradient=False) for x in (images, positions))
    y = to_tokens(patch_embed(exact, images, patch_size, True)) + positions
    (y * paddle.to_tensor(draw(y.shape, seed=1).astype("float64"))).sum().backward()
    found = {name: value.grad.numpy() for name, value in exact.items() if not is_statistic(name)}
    return {**found, "images": images.grad.numpy(), "positions": positions.grad.numpy(), "y": y.numpy()}


@per_example(max_examples=25)
@given(
    st.sampled_from([2, 4, 8, 16]),
    st.integers(1, 5),
    st.sampled_from([1, 3, 4, 9, 16, 20]),
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_it_has_the_textbooks_gradients(native, patch_size, in_chans, width, height, columns, batch, threads):
    channels = width * patch_size // 2
    layer, weights = make_stem(patch_size, in_chans, channels)
    arguments = inputs(patch_size, in_chans, channels, height, columns, batch)
    ours, portable = trained(layer, *arguments, threads=threads), trained(layer, *arguments, native=False)
    expected = textbook(weights, *arguments, patch_size)
    same({name: value for name, value in ours.items() if not is_statistic(name)}, expected, portable)
    error = 1e-5 * np.abs(expected["y"]).max() + 4 * np.abs(portable["y"] - expected["y"]).max()
    np.testing.assert_allclose(ours["y"], expected["y"], rtol=0, atol=error)
    for name in filter(is_statistic, ours):
        np.testing.assert_allclose(ours[name], portable[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_maps_of_several_pieces_are_those_of_the_portable_formulation(native, size):
    layer, _ = make_stem(*size[:3])
    arguments = inputs(*size)
    portable = trained(layer, *arguments, native=False)
    for threads in (1, 2, 5):
        same(trained(layer, *arguments, threads=threads), portable)


def test_results_are_the_same_bits_each_time_and_outputs_for_any_number_of_threads(native):
    size = (4, 3, 34, 17, 5, 5)
    layer, _ = make_stem(*size[:3])
    arguments, outputs = inputs(*size), []
    for threads in (1, 2, 3):
        first, second = (trained(layer, *arguments, threads=threads) for _ in range(2))
        for name, value in first.items():
            np.testing.assert_array_equal(second[name], value, err_msg=name)
        outputs.append(first["y"])
    assert all((output == outputs[0]).all() for output in outputs)


@pytest.mark.parametrize("frozen", ["proj.0.0", "proj.2.1.weight", "proj.2", "images", "positions"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(native, frozen):
    arguments = inputs(4, 3, 24, 3, 5, 2)
    expected = trained(make_stem(4)[0], *arguments)
    layer, _ = make_stem(4)
    tensors = dict(
        layer.named_parameters(), **{name: paddle.to_tensor(x) for name, x in zip(("images", "positions"), arguments)}
    )
    for name, tensor in tensors.items():
        tensor.stop_gradient = is_statistic(name) or name.startswith(frozen)
    with mock.patch.object(Library, "threads", lambda self: 2):  # as `trained`, for the same bits
        y = train_stem(layer, tensors["images"], tensors["positions"])
        (y * paddle.to_tensor(draw(y.shape, seed=1))).sum().backward()
    wanted = {name for name, tensor in tensors.items() if not tensor.stop_gradient}
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == wanted
    for name in wanted:
        np.testing.assert_array_equal(tensors[name].grad.numpy(), expected[name], err_msg=name)


def test_gradients_add_up_over_two_passes(native):
    layer, _ = make_stem(4)
    images, positions = map(paddle.to_tensor, inputs(4, 3, 24, 3, 5, 2))
    target = paddle.to_tensor(draw([2, 15, 24], seed=1))
    found = []
    for _ in range(2):
        (train_stem(layer, images, positions) * target).sum().backward()
        found.append({name: value.grad.numpy() for name, value in layer.named_parameters() if value.grad is not None})
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], 2 * value, err_msg=name)


@pytest.mark.parametrize("where", ["an image", "a gradient"])
def test_what_is_no_number_is_passed_on(native, where):
    layer, _ = make_stem(4)
    images, positions = inputs(4, 3, 24, 3, 5, 2)
    if where == "an image":
        images[1, 2, 3, 4] = np.nan
    images, positions = paddle.to_tensor(images), paddle.to_tensor(positions, stop_gradient=False)
    y = train_stem(layer, images, positions)
    assert np.isnan(y.numpy()).any() == (where == "an image")
    factors = paddle.to_tensor(draw([2, 1, 1])) * (np.nan if where == "a gradient" else 1)
    (y * factors).sum().backward()
    for name in ("proj.0.0.weight", "proj.0.1.weight", "proj.2.0.weight"):
        assert np.isnan(dict(layer.named_parameters())[name].grad.numpy()).any(), name


@pytest.mark.parametrize("why", ["SyncBatchNorm", "BatchNorm in evaluation", "evaluation", "a hook", "float64 images"])
def test_when_it_does_not_apply(native, why):
    layer, _ = make_stem(4)
    images = paddle.to_tensor(inputs(4, 3, 24, 3, 5, 2)[0])
    assert applies_in_training(layer, images)
    if why == "SyncBatchNorm":
        layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    elif why == "BatchNorm in evaluation":
        layer.proj[0][1].eval()
    elif why == "evaluation":
        layer.eval()
    elif why == "a hook":
        layer.proj[0].register_forward_post_hook(lambda *_: None)
    elif why == "float64 images":
        images = images.astype("float64")
    assert not applies_in_training(layer, images)


@pytest.fixture
def model(native):
    """A small model in training, the same each time."""
    paddle.seed(0)
    model = XCiT(**TINY)
    model.train()
    return model


def gradients(model, images):
    """Of a model that was taught nothing: {name: array}"""
    (model(images) * paddle.to_tensor(draw([images.shape[0], 24], seed=1))).sum().backward()
    found = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    model.clear_gradients()
    return found


def test_a_model_trains_its_positional_encoding_through_the_stem(model):
    images = paddle.to_tensor(draw([4, 3, 20, 12]))
    with mock.patch("passl_xcit.modeling.backbones.xcit.train_stem", wraps=train_stem) as used:
        ours = gradients(model, images)
    assert used.called
    with mock.patch.dict(os.environ, {MODE: "off"}):
        expected = gradients(model, images)
    assert np.abs(ours["pos_embeder.token_projection.weight"]).max() > 0
    same(ours, expected)


def test_a_model_with_dropout_of_positions_does_not_use_it(model):
    model.pos_drop.p = 0.1
    with mock.patch("passl_xcit.modeling.backbones.xcit.train_stem") as used:
        model(paddle.to_tensor(draw([2, 3, 8, 8])))
    assert not used.called


def test_a_frozen_stem_in_evaluation_leaves_the_positional_encoding_its_gradient(model):
    images = paddle.to_tensor(draw([4, 3, 20, 12]))
    model.patch_embed.eval()
    for parameter in model.patch_embed.parameters():
        parameter.stop_gradient = True
    ours = gradients(model, images)
    with mock.patch.dict(os.environ, {MODE: "off"}):
        same(ours, gradients(model, images))
    assert "pos_embeder.token_projection.weight" in ours
