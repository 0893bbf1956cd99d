"""CrossViT's native operators in training: outputs and gradients as the portable formulation's and the textbook's."""

import os
from unittest import mock

import numpy as np
import paddle
import pytest
import training_passes
from hypothesis import example, given
from hypothesis import strategies as st
from paddle import nn
from test_native_crossvit import TINY, textbook_block, textbook_fusion
from test_native_xcit import draw, hidden, per_example, widths
from training_passes import (
    adds_up,
    applies_in_spite_of,
    filled_in_training,
    freezes,
    keeps_its_bits,
    losses,
    passed,
    same,
)

from passl_xcit.modeling.backbones.crossvit import Block, CrossAttentionBlock, CrossViT
from passl_xcit.ops.library import MODE

lengths = st.integers(1, 230)


def in_training(heads=3, d=17, mlp_ratio=4.0, qkv_bias=True, drop_path=0.0):
    """A block in training without dropout, and its parameters."""
    ratio = max(mlp_ratio, 1 / (heads * d))
    return filled_in_training(Block(heads * d, heads, ratio, qkv_bias, 0.0, 0.0, drop_path))


def fusion_in_training(heads=3, d=17, qkv_bias=True, drop_path=0.0):
    return filled_in_training(CrossAttentionBlock(heads * d, heads, qkv_bias, 0.0, 0.0, drop_path))


both = pytest.mark.parametrize("make", [in_training, fusion_in_training])


def trained(block, x, **options):
    return passed(block, {"x": x}, **options)


def textbook(weights, x, *arguments, formula=textbook_block):
    return training_passes.textbook(weights, {"x": x}, lambda weights, x: formula(weights, x, *arguments))


@per_example(max_examples=40)
@given(widths, lengths, st.integers(1, 4), st.integers(1, 4), hidden, st.booleans())
@example((4, 32), 205, 3, 2, 3.0, True)
def test_it_has_the_textbooks_gradients(native, width, tokens, batch, threads, mlp_ratio, qkv_bias):
    block, weights = in_training(*width, mlp_ratio, qkv_bias)
    x = draw([batch, tokens, width[0] * width[1]])
    ours, portable = (trained(block, x, mode=mode, threads=threads) for mode in ("on", "off"))
    same(ours, textbook(weights, x, width[0]), portable)
    np.testing.assert_allclose(ours["y"], portable["y"], rtol=0, atol=1e-5 * max(1.0, np.abs(portable["y"]).max()))


@per_example(max_examples=40)
@given(widths, lengths, st.integers(1, 4), st.integers(1, 4), st.booleans())
@example((4, 64), 197, 3, 2, True)
def test_the_fusion_has_the_textbooks_gradients(native, width, tokens, batch, threads, qkv_bias):
    fusion, weights = fusion_in_training(*width, qkv_bias)
    x = draw([batch, tokens, width[0] * width[1]])
    ours, portable = (trained(fusion, x, mode=mode, threads=threads) for mode in ("on", "off"))
    same(ours, textbook(weights, x, width[0], formula=textbook_fusion), portable)
    np.testing.assert_allclose(ours["y"], portable["y"], rtol=0, atol=1e-5 * max(1.0, np.abs(portable["y"]).max()))


@both
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_it_drops_what_the_portable_formulation_drops(native, batch, make):
    block, _ = make(drop_path=0.4)
    x = draw([batch, 35, 51])
    ours, expected = (trained(block, x, mode=mode) for mode in ("on", "off"))
    if make is fusion_in_training:  # nothing depends on the keys' bias: portable, rounding is left of its gradient
        expected["attn.wk.bias"] = np.zeros_like(ours["attn.wk.bias"])
    same(ours, expected)


@pytest.mark.parametrize("hidden", [513, 1100])
def test_hidden_channels_are_taken_some_at_a_time(native, hidden):
    block, _ = in_training(2, 16, mlp_ratio=hidden / 32)
    x = draw([3, 130, 32])
    same(trained(block, x), trained(block, x, mode="off"))


@pytest.mark.parametrize("epsilons", [(1e-3, 1e-7), (1e-7, 1e-3)])
def test_each_norm_has_its_own_epsilon(native, epsilons):
    block, weights = in_training(2, 12)
    block.norm1.epsilon, block.norm2.epsilon = epsilons
    x = 0.1 * draw([2, 10, 24])
    same(trained(block, x), textbook(weights, x, 2, epsilons))


def test_the_fusions_norm_has_its_epsilon(native):
    fusion, weights = fusion_in_training(2, 12)
    fusion.norm1.epsilon = 1e-3
    x = 0.1 * draw([2, 10, 24])
    same(trained(fusion, x), textbook(weights, x, 2, 1e-3, formula=textbook_fusion), trained(fusion, x, mode="off"))


@pytest.mark.parametrize("score", [-3e3, 3e3])
def test_scores_that_are_large_have_finite_gradients(native, score):
    block, weights = in_training(2, 16)
    weights["attn.qkv.weight"][:, :32] = 0
    weights["attn.qkv.bias"][:32], weights["attn.qkv.bias"][32:64] = 1, score / 4
    block.set_state_dict({name: paddle.to_tensor(value.astype("float32")) for name, value in weights.items()})
    x = draw([2, 33, 32])
    same(trained(block, x), textbook(weights, x, 2), trained(block, x, mode="off"))


@pytest.mark.parametrize(
    ("make", "frozen"),
    [*((in_training, name) for name in ("mlp", "norm1", "attn.qkv.weight")), (fusion_in_training, "attn.wk")],
)
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(native, make, frozen):
    x = draw([2, 35, 51])
    freezes(lambda **options: trained(make()[0], x, **options), frozen)


@both
def test_gradients_are_the_same_bits_each_time(native, make):
    block, _ = make()
    x = draw([5, 143, 51])
    keeps_its_bits(lambda threads: trained(block, x, threads=threads))


def test_gradients_add_up_over_two_passes(native):
    block, _ = in_training(2, 8)
    x = paddle.to_tensor(draw([2, 12, 16]))
    adds_up(block, lambda: block(x).sum())


@pytest.mark.parametrize(
    ("make", "rows", "spoilt"),
    [(in_training, 12, ("mlp.fc1", "attn.qkv")), (fusion_in_training, 1, ("attn.wv", "attn.wq"))],
)
def test_a_gradient_that_is_no_number_is_passed_on(native, make, rows, spoilt):
    block, _ = make(2, 8)
    weight = np.ones([3, rows, 16], dtype="float32")
    weight[1] = np.nan
    ours = trained(block, draw([3, 12, 16]), weight=weight)
    assert np.isnan(ours["x"][1]).all() and np.isfinite(ours["x"][[0, 2]]).all()
    assert all(np.isnan(ours[f"{name}.weight"]).all() for name in spoilt)


@both
@pytest.mark.parametrize("why", ["dropout", "evaluation", "no gradients", "a hook", "bfloat16"])
def test_when_it_does_not_apply(native, why, make):
    assert not applies_in_spite_of(why, make(2, 8)[0], paddle.to_tensor(draw([2, 12, 16])))


@pytest.mark.parametrize("multi_conv", [False, True])
def test_a_model_learns_the_same_in_some_steps(native, multi_conv):
    images = paddle.to_tensor(draw([6, 3, 36, 36]))

    def learnt(mode):
        paddle.seed(3)
        backbone, head = CrossViT(**TINY, drop_path_rate=0.2, multi_conv=multi_conv), nn.Linear(60, 6)
        parameters = [*backbone.parameters(), *head.parameters()]
        with mock.patch.dict(os.environ, {MODE: mode}):
            return losses(lambda images: head(paddle.concat(backbone(images), axis=1)), parameters, images)

    np.testing.assert_allclose(learnt("on"), learnt("off"), rtol=1e-3, atol=1e-3)
