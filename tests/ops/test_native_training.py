"""The native XCA block in training: outputs, gradients and statistics as the portable formulation and the textbook."""

import os
from unittest import mock

import numpy as np
import paddle
import pytest
import training_passes
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from reference_xcit import xca_block
from test_native_xcit import draw, per_example, widths
from training_passes import (
    adds_up,
    applies_in_spite_of,
    filled_in_training,
    freezes,
    gradients,
    keeps_its_bits,
    losses,
    passed,
    same,
    without_statistics,
)

from passl_xcit.modeling.backbones.xcit import XCABlock, XCiT
from passl_xcit.ops.library import MODE

STATISTICS = ("local_mp.bn._mean", "local_mp.bn._variance")
# Of one or two tokens, norms and BatchNorm divide by what is almost zero.
some = st.integers(2, 17)
SIZES = [(5, 7, 3), (3, 9, 1), (20, 13, 2), (2, 4, 8)]  # height, width, images


def make_block(heads=3, d=17, drop_path=0.0, qkv_bias=True, mlp_ratio=4.0):
    """A block in training, with parameters drawn by name; and these."""
    return filled_in_training(XCABlock(heads * d, heads, mlp_ratio, qkv_bias, 0.0, 0.0, drop_path, 1.0))


def trained(block, x, height, width, **options):
    return passed(block, {"x": x}, lambda x: block(x, height, width), **options)


def textbook(weights, x, height, width, heads):
    return training_passes.textbook(
        weights, {"x": x}, lambda weights, x: xca_block(weights, x, (height, width), heads, True)
    )


@per_example(max_examples=25)
@given(widths, some, some, st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_it_has_the_textbooks_gradients(native, width, height, columns, batch, threads, qkv_bias):
    block, weights = make_block(*width, qkv_bias=qkv_bias)
    x = draw([batch, height * columns, width[0] * width[1]])
    ours, portable = (trained(block, x, height, columns, mode=mode, threads=threads) for mode in ("on", "off"))
    same(without_statistics(ours), textbook(weights, x, height, columns, width[0]), portable)
    for name in STATISTICS:
        np.testing.assert_allclose(ours[name], portable[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "batch"), SIZES)
def test_it_drops_what_the_portable_formulation_drops(native, height, width, batch):
    block, _ = make_block(drop_path=0.4)
    x = draw([batch, height * width, 51])
    same(trained(block, x, height, width), trained(block, x, height, width, mode="off"))


@pytest.mark.parametrize("hidden", [600, 1025])
def test_hidden_channels_of_an_mlp_are_taken_some_at_a_time(native, hidden):
    block, _ = make_block(2, 16, mlp_ratio=hidden / 32)
    x = draw([3, 130, 32])
    same(trained(block, x, 10, 13), trained(block, x, 10, 13, mode="off"))


def test_a_factor_of_zero_has_gradients(native):
    block, _ = make_block(2, 8)
    for gamma in (block.gamma1, block.gamma2, block.gamma3):
        gamma.set_value(paddle.zeros([16]))
    x = draw([2, 12, 16])
    ours = trained(block, x, 3, 4)
    same(ours, trained(block, x, 3, 4, mode="off"))
    assert all(np.abs(ours[name]).max() > 0.1 for name in ("gamma1", "gamma2", "gamma3"))


def test_a_silent_channel_has_finite_gradients(native):
    block, _ = make_block(2, 8)
    for tensor in (block.attn.qkv.weight, block.attn.qkv.bias):
        values = tensor.numpy()
        values[..., [3, 20]] = 0  # a column of q, and one of k
        tensor.set_value(values)
    x = draw([2, 12, 16])
    ours = trained(block, x, 3, 4)
    assert all(np.isfinite(value).all() for value in ours.values())
    others = [name for name in ours if "qkv" not in name]
    expected = trained(block, x, 3, 4, mode="off")
    same({name: ours[name] for name in others}, {name: expected[name] for name in others})


@pytest.mark.parametrize("frozen", ["mlp", "norm1", "attn.qkv.weight", "gamma"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(native, frozen):
    x = draw([2, 35, 51])
    freezes(lambda **options: trained(make_block()[0], x, 5, 7, **options), frozen)


def test_gradients_are_the_same_bits_each_time(native):
    block, _ = make_block()
    x = draw([5, 143, 51])
    keeps_its_bits(lambda threads: trained(block, x, 11, 13, threads=threads))


def test_gradients_add_up_over_two_passes(native):
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([2, 12, 16]))
    adds_up(block, lambda: block(x, 3, 4).sum())


def test_a_gradient_that_is_no_number_is_passed_on(native):
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([3, 12, 16]), stop_gradient=False)
    (block(x, 3, 4)[1] * float("nan")).sum().backward()
    assert np.isnan(x.grad.numpy()[1]).all() and np.isnan(block.mlp.fc1.weight.grad.numpy()).all()


@pytest.mark.parametrize(
    "why", ["dropout", "BatchNorm in evaluation", "evaluation", "no gradients", "a hook", "bfloat16"]
)
def test_when_it_does_not_apply(native, why):
    assert not applies_in_spite_of(why, make_block(2, 8)[0], paddle.to_tensor(draw([2, 12, 16])))


def test_a_model_learns_the_same_in_some_steps(native):
    images = paddle.to_tensor(draw([6, 3, 16, 16]))

    def learnt(mode):
        paddle.seed(3)
        backbone = XCiT(patch_size=4, embed_dim=24, depth=2, num_heads=3, drop_path_rate=0.2)
        model = nn.Sequential(backbone, nn.Linear(24, 6))
        with mock.patch.dict(os.environ, {MODE: mode}):
            found = losses(model, model.parameters(), images)
            model.eval()
            with paddle.no_grad():
                return [*found, *model(images).numpy().flat]

    np.testing.assert_allclose(learnt("on"), learnt("off"), rtol=1e-3, atol=1e-3)


def test_a_model_that_computes_blocks_again_has_the_gradients_of_one_that_keeps_them(native):
    """With Paddle's recompute a native block would lose its gradients: it is computed by Paddle's operators then."""
    images, found = paddle.to_tensor(draw((4, 3, 16, 16))), []
    for use_recompute in (False, True):
        paddle.seed(0)
        model = XCiT(patch_size=4, embed_dim=16, depth=2, num_heads=2, use_recompute=use_recompute)
        model.train()
        with mock.patch.dict(os.environ, {MODE: "on"}):
            found.append(gradients(model, images))
    assert "blocks.1.mlp.fc2.weight" in found[0]
    same(found[1], found[0])
