"""The native stem in training: outputs, gradients and statistics as the portable formulation and the textbook."""

import os
from unittest import mock

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_xcit import patch_embed, to_tokens
from test_native_xcit import draw, per_example
from training_passes import (
    adds_up,
    applies_in_spite_of,
    filled_in_training,
    freezes,
    gradients,
    is_statistic,
    keeps_its_bits,
    passed,
    same,
    textbook,
    without_statistics,
)

from passl_xcit.modeling.backbones.xcit import ConvPatchEmbed, XCiT
from passl_xcit.ops.library import MODE
from passl_xcit.ops.stem import train_stem

SIZES = [(8, 3, 32, 3, 5, 3), (16, 3, 24, 2, 2, 1), (2, 1, 3, 37, 2, 2), (4, 5, 34, 15, 3, 2), (8, 3, 128, 4, 29, 2)]
TINY = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}


def make_stem(patch_size=8, in_chans=3, channels=24):
    """A stem in training with parameters drawn by name; and these."""
    return filled_in_training(ConvPatchEmbed(patch_size, in_chans, channels))


def inputs(patch_size, in_chans, channels, height, width, batch):
    """images [B, I, H * p, W * p], positions [N, C]"""
    images = draw([batch, in_chans, height * patch_size, width * patch_size])
    return {"images": images, "positions": draw([height * width, channels], seed=2)}


def trained(layer, arrays, mode="on", **options):
    def natively(images, positions):
        return train_stem(layer, images, positions)

    def portably(images, positions):
        return layer(images).flatten(2).transpose([0, 2, 1]) + positions  # [B, C, H, W] -> [B, N, C]

    return passed(layer, arrays, natively if mode == "on" else portably, mode, **options)


def formula_of(patch_size):
    return lambda weights, images, positions: to_tokens(patch_embed(weights, images, patch_size, True)) + positions


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
    arrays = inputs(patch_size, in_chans, channels, height, columns, batch)
    ours, portable = trained(layer, arrays, threads=threads), trained(layer, arrays, mode="off")
    expected = textbook(weights, arrays, formula_of(patch_size))
    same(without_statistics(ours), expected, portable)
    error = 1e-5 * np.abs(expected["y"]).max() + 4 * np.abs(portable["y"] - expected["y"]).max()
    np.testing.assert_allclose(ours["y"], expected["y"], rtol=0, atol=error)
    for name in filter(is_statistic, ours):
        np.testing.assert_allclose(ours[name], portable[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_maps_of_several_pieces_are_those_of_the_portable_formulation(native, size):
    layer, _ = make_stem(*size[:3])
    arrays = inputs(*size)
    portable = trained(layer, arrays, mode="off")
    for threads in (1, 2, 5):
        same(trained(layer, arrays, threads=threads), portable)


def test_results_are_the_same_bits_each_time_and_outputs_for_any_number_of_threads(native):
    size = (4, 3, 34, 17, 5, 5)
    layer, _ = make_stem(*size[:3])
    arrays = inputs(*size)
    outputs = [found["y"] for found in keeps_its_bits(lambda threads: trained(layer, arrays, threads=threads))]
    assert all((output == outputs[0]).all() for output in outputs)


@pytest.mark.parametrize("frozen", ["proj.0.0", "proj.2.1.weight", "proj.2", "images", "positions"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(native, frozen):
    arrays = inputs(4, 3, 24, 3, 5, 2)
    freezes(lambda **options: trained(make_stem(4)[0], arrays, **options), frozen)


def test_gradients_add_up_over_two_passes(native):
    layer, _ = make_stem(4)
    images, positions = map(paddle.to_tensor, inputs(4, 3, 24, 3, 5, 2).values())
    target = paddle.to_tensor(draw([2, 15, 24], seed=1))
    adds_up(layer, lambda: (train_stem(layer, images, positions) * target).sum())


@pytest.mark.parametrize("where", ["an image", "a gradient"])
def test_what_is_no_number_is_passed_on(native, where):
    layer, _ = make_stem(4)
    images, positions = inputs(4, 3, 24, 3, 5, 2).values()
    if where == "an image":
        images[1, 2, 3, 4] = np.nan
    images, positions = paddle.to_tensor(images), paddle.to_tensor(positions, stop_gradient=False)
    y = train_stem(layer, images, positions)
    assert np.isnan(y.numpy()).any() == (where == "an image")
    factors = paddle.to_tensor(draw([2, 1, 1])) * (np.nan if where == "a gradient" else 1)
    (y * factors).sum().backward()
    for name in ("proj.0.0.weight", "proj.0.1.weight", "proj.2.0.weight"):
        assert np.isnan(dict(layer.named_parameters())[name].grad.numpy()).any(), name


@pytest.mark.parametrize("why", ["SyncBatchNorm", "BatchNorm in evaluation", "evaluation", "a hook", "float64"])
def test_when_it_does_not_apply(native, why):
    images = inputs(4, 3, 24, 3, 5, 2)["images"]
    assert not applies_in_spite_of(why, make_stem(4)[0], paddle.to_tensor(images))


@pytest.fixture
def model(native):
    """A small model in training, the same each time."""
    paddle.seed(0)
    model = XCiT(**TINY)
    model.train()
    return model


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
