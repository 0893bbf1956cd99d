"""The native operators compute what the layers' portable formulation and the textbook say."""

import os
from functools import partial
from unittest import mock

import numpy as np
import paddle
import pytest
from fill_by_name import fill_paddle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_xcit import class_attention_block, patch_embed, to_tokens, xca_block

from passl_xcit.modeling.backbones.xcit import VARIANTS, ClassAttentionBlock, ConvPatchEmbed, XCABlock, XCiT
from passl_xcit.ops.conditions import applies
from passl_xcit.ops.library import MODE, Library
from passl_xcit.ops.stem import stem

TOLERANCE = 1e-5  # of the largest value
per_example = partial(settings, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

# Heads and d. LayerNorm of few channels, which can be almost equal, has no accurate float32.
widths = st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 5, 8, 16, 17, 24, 32, 40, 48, 64])).filter(
    lambda width: width[0] * width[1] >= 8
)
lengths = st.integers(1, 17)
hidden = st.sampled_from([0.5, 1.0, 4.0])


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def filled(layer):
    """The layer in evaluation mode with parameters drawn by name, and these."""
    weights = fill_paddle({name: value.shape for name, value in layer.state_dict().items()})
    layer.set_state_dict({name: paddle.to_tensor(value.astype("float32")) for name, value in weights.items()})
    layer.eval()
    return layer, weights


def float64(weights):
    return {name: paddle.to_tensor(value.astype("float64")) for name, value in weights.items()}


def portable(layer, *inputs):
    with mock.patch.dict(os.environ, {MODE: "off"}), paddle.no_grad():
        return layer(*inputs).numpy()


def natively(layer, *inputs, threads=2):
    """What the layer computes, and it must be the native operator that does."""
    calls = []
    run = Library.run

    def counted(self, name, operator, half=False):
        calls.append(name)
        run(self, name, operator, half)

    patched = mock.patch.multiple(Library, run=counted, threads=lambda self: threads)
    with paddle.no_grad(), patched:
        outputs = layer(*inputs)
    assert calls
    return outputs.numpy()


def same(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


def make_xca_block(heads, d, mlp_ratio=4.0, qkv_bias=True):
    return filled(XCABlock(heads * d, heads, max(mlp_ratio, 1 / (heads * d)), qkv_bias, 0.1, 0.1, 0.1, 1.0))


def make_class_block(heads, d, mlp_ratio=4.0, qkv_bias=True, tokens_norm=True):
    ratio = max(mlp_ratio, 1 / (heads * d))
    return filled(ClassAttentionBlock(heads * d, heads, ratio, qkv_bias, 0.1, 0.1, 1.0, tokens_norm))


@per_example(max_examples=40)
@given(widths, lengths, lengths, st.integers(1, 5), st.integers(1, 4), hidden, st.booleans())
def test_an_xca_block_is_the_textbooks(native, width, height, columns, batch, threads, mlp_ratio, qkv_bias):
    block, weights = make_xca_block(*width, mlp_ratio, qkv_bias)
    x = draw([batch, height * columns, width[0] * width[1]])
    expected = xca_block(float64(weights), paddle.to_tensor(x.astype("float64")), (height, columns), width[0], False)
    ours = natively(block, paddle.to_tensor(x), height, columns, threads=threads)
    same(ours, expected.numpy())
    same(ours, portable(block, paddle.to_tensor(x), height, columns))


@per_example(max_examples=40)
@given(widths, st.integers(2, 300), st.integers(1, 5), st.integers(1, 4), hidden, st.booleans(), st.booleans())
def test_a_class_block_is_the_textbooks(native, width, tokens, batch, threads, mlp_ratio, qkv_bias, tokens_norm):
    block, weights = make_class_block(*width, mlp_ratio, qkv_bias, tokens_norm)
    x = draw([batch, tokens, width[0] * width[1]])
    expected = class_attention_block(float64(weights), paddle.to_tensor(x.astype("float64")), width[0], tokens_norm)
    ours = natively(block, paddle.to_tensor(x), threads=threads)
    same(ours, expected.numpy())
    same(ours, portable(block, paddle.to_tensor(x)))


class Embedding(paddle.nn.Layer):
    """The stem with a positional encoding, as XCiT calls it."""

    def __init__(self, patch_embed, positions):
        super().__init__()
        self.patch_embed, self.positions = patch_embed, positions

    def forward(self, images):
        if applies(self.patch_embed, images):
            return stem(self.patch_embed, images, self.positions)
        return self.patch_embed(images).flatten(2).transpose([0, 2, 1]) + self.positions


@per_example(max_examples=30)
@given(
    st.sampled_from([2, 4, 8, 16]),
    st.integers(1, 5),
    st.sampled_from([1, 3, 4, 9, 16, 20]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_stem_is_the_textbooks(native, patch_size, in_chans, width, height, columns, batch, threads):
    channels = width * patch_size // 2
    layer, weights = filled(ConvPatchEmbed(patch_size, in_chans, channels))
    images = draw([batch, in_chans, height * patch_size, columns * patch_size])
    positions = draw([height * columns, channels], seed=1)
    expected = patch_embed(float64(weights), paddle.to_tensor(images.astype("float64")), patch_size, False)
    embed = Embedding(layer, paddle.to_tensor(positions))
    ours = natively(embed, paddle.to_tensor(images), threads=threads)
    same(ours, to_tokens(expected).numpy() + positions)
    same(ours, portable(embed, paddle.to_tensor(images)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if "_24_" not in name or "medium" in name])
def test_models_of_all_widths_have_the_features_of_the_portable_formulation(native, name):
    model, _ = filled(XCiT(**{**VARIANTS[name], "depth": 2}))
    images = paddle.to_tensor(draw([3, 3, 112, 80]))
    same(natively(model, images), portable(model, images))


def test_the_widest_model_has_the_features_of_the_portable_formulation(native):
    model, _ = filled(XCiT(**{**VARIANTS["xcit_large_24_p16"], "depth": 1, "cls_attn_layers": 1}))
    images = paddle.to_tensor(draw([2, 3, 48, 64]))
    same(natively(model, images), portable(model, images))


def each_operator():
    """{name: (layer, inputs)} with nothing that is a multiple of a vector."""
    x = paddle.to_tensor(draw([5, 11 * 13, 36]))
    images = paddle.to_tensor(draw([5, 3, 40, 56]))
    positions = paddle.to_tensor(draw([35, 36]))
    return {
        "xca block": (make_xca_block(3, 12)[0], (x, 11, 13)),
        "class block": (make_class_block(3, 12)[0], (x,)),
        "stem": (Embedding(filled(ConvPatchEmbed(8, 3, 36))[0], positions), (images,)),
    }


def test_large_numbers_stay_finite(native):
    block, _ = make_class_block(2, 8)
    block.attn.qkv.weight.set_value(block.attn.qkv.weight * 1e4)
    x = paddle.to_tensor(draw([2, 20, 16]))
    same(natively(block, x), portable(block, x))


@pytest.mark.parametrize("far", [5.19, 5.21, 30.0, 1e6])
def test_gelu_ends_where_it_should(native, far):
    """By the block's MLP with weights that are the identity, and all else switched off."""
    block, _ = make_xca_block(1, 16, mlp_ratio=1.0)
    for gamma in (block.gamma1, block.gamma3):
        gamma.set_value(paddle.zeros([16]))
    block.gamma2.set_value(paddle.ones([16]))
    block.norm2.weight.set_value(paddle.zeros([16]))
    block.norm2.bias.set_value(paddle.to_tensor(np.linspace(-far, far, 16, dtype="float32")))
    for linear in (block.mlp.fc1, block.mlp.fc2):
        linear.weight.set_value(paddle.eye(16))
        linear.bias.set_value(paddle.zeros([16]))
    x = paddle.zeros([1, 4, 16])
    np.testing.assert_allclose(natively(block, x, 2, 2), portable(block, x, 2, 2), rtol=2e-6, atol=1e-6)
