"""The native class-attention block in training: outputs and gradients as the portable formulation and the textbook."""

import os
from unittest import mock

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_xcit import class_attention_block
from test_native_xcit import draw, hidden, per_example, widths
from training_passes import (
    adds_up,
    applies_in_spite_of,
    filled_in_training,
    freezes,
    gradients,
    keeps_its_bits,
    passed,
    same,
    same_bits,
    textbook,
)

from passl_xcit.modeling.backbones.xcit import ClassAttentionBlock, XCiT
from passl_xcit.ops.library import MODE

# heads, d, tokens, images: blocks of tokens that are full and not, more heads than a vector has lanes
SIZES = [(3, 17, 65, 3), (20, 2, 64, 2), (4, 32, 197, 4), (2, 48, 130, 1)]


def make_block(heads=3, d=17, mlp_ratio=4.0, qkv_bias=True, tokens_norm=True):
    """A block in training, with parameters drawn by name; and these."""
    ratio = max(mlp_ratio, 1 / (heads * d))
    return filled_in_training(ClassAttentionBlock(heads * d, heads, ratio, qkv_bias, 0.0, 0.0, 1.0, tokens_norm))


def trained(block, x, **options):
    return passed(block, {"x": x}, **options)


@per_example(max_examples=40)
@given(widths, st.integers(2, 200), st.integers(1, 5), st.integers(1, 4), hidden, st.booleans(), st.booleans())
def test_it_has_the_textbooks_gradients(native, width, tokens, batch, threads, mlp_ratio, qkv_bias, tokens_norm):
    block, weights = make_block(*width, mlp_ratio, qkv_bias, tokens_norm)
    x = draw([batch, tokens, width[0] * width[1]])
    ours = trained(block, x, threads=threads)
    expected = textbook(weights, {"x": x}, lambda *given: class_attention_block(*given, width[0], tokens_norm))
    same(ours, expected, trained(block, x, mode="off"))
    np.testing.assert_allclose(ours["y"], expected["y"], rtol=0, atol=1e-5 * max(1, np.abs(expected["y"]).max()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens_norm", [False, True])
def test_sizes_of_models_and_odd_ones_are_those_of_the_portable_formulation(native, size, tokens_norm):
    heads, d, tokens, batch = size
    block, _ = make_block(heads, d, tokens_norm=tokens_norm)
    x = draw([batch, tokens, heads * d])
    same(trained(block, x, threads=3), trained(block, x, mode="off"))


def test_the_bias_of_keys_changes_nothing_and_has_no_gradient(native):
    block, _ = make_block(2, 8)
    gradient = trained(block, draw([2, 20, 16]))["attn.qkv.bias"]
    np.testing.assert_array_equal(gradient[16:32], 0)
    assert np.abs(gradient[:16]).min() > 0 and np.abs(gradient[32:]).min() > 0


def test_results_are_the_same_bits_each_time_for_any_number_of_threads(native):
    block, _ = make_block()
    x = draw([5, 143, 51])
    alone, *others = keeps_its_bits(lambda threads: trained(block, x, threads=threads))
    for other in others:
        same_bits(other, alone)


@pytest.mark.parametrize("frozen", ["mlp", "norm", "attn.qkv.weight", "gamma", "x"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(native, frozen):
    x = draw([2, 35, 51])
    freezes(lambda **options: trained(make_block()[0], x, **options), frozen)


def test_gradients_add_up_over_two_passes(native):
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([2, 12, 16]))
    adds_up(block, lambda: block(x).sum())


@pytest.mark.parametrize("token", [0, 5])
def test_a_gradient_that_is_no_number_is_passed_on(native, token):
    """That of the class token to all tokens of its image, that of another one to itself."""
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([3, 12, 16]), stop_gradient=False)
    (block(x)[1, token] * float("nan")).sum().backward()
    spoilt = np.isnan(x.grad.numpy()).all(axis=2)
    assert spoilt[1].all() if token == 0 else spoilt[1, token]
    assert not spoilt[[0, 2]].any()
    assert np.isnan(block.norm1.weight.grad.numpy()).all()


def test_an_input_that_is_no_number_is_passed_on(native):
    block, _ = make_block(2, 8)
    values = draw([3, 12, 16])
    values[1, 4, 2] = np.nan
    y = block(paddle.to_tensor(values)).numpy()
    assert np.isnan(y[1, [0, 4]]).all() and np.isfinite(y[[0, 2]]).all()


def test_large_scores_have_finite_gradients(native):
    block, _ = make_block(2, 8)
    block.attn.qkv.weight.set_value(block.attn.qkv.weight * 30)
    x = draw([2, 20, 16])
    same(trained(block, x), trained(block, x, mode="off"))


@pytest.mark.parametrize("why", ["dropout", "dropout of the attention", "evaluation", "no gradients", "a hook"])
def test_when_it_does_not_apply(native, why):
    assert not applies_in_spite_of(why, make_block(2, 8)[0], paddle.to_tensor(draw([2, 12, 16])))


@pytest.mark.parametrize("tokens_norm", [False, True])
def test_a_model_has_the_gradients_of_the_portable_one(native, tokens_norm):
    paddle.seed(0)
    model = XCiT(patch_size=4, embed_dim=24, depth=1, num_heads=3, tokens_norm=tokens_norm)
    model.train()
    images, found = paddle.to_tensor(draw([4, 3, 20, 12])), {}
    for mode in ("on", "off"):
        with mock.patch.dict(os.environ, {MODE: mode}):
            found[mode] = gradients(model, images)
    assert "cls_token" in found["on"]
    same(found["on"], found["off"])
