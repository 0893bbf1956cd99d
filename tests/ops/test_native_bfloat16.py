"""The native operators in bfloat16 are as far from float64 as rounding their operands to 8 bits makes them."""

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_xcit import patch_embed, to_tokens, xca_block
from test_native_xcit import (
    Embedding,
    draw,
    each_operator,
    filled,
    float64,
    lengths,
    make_xca_block,
    natively,
    per_example,
    portable,
    widths,
)

from passl_xcit.modeling.backbones.xcit import ConvPatchEmbed, XCiT

# Of the root of the mean square of what an operator adds to its input: the products' operands have 8 bits, 0.2 percent.
OF_THE_UPDATE = 0.012


def distance(ours, expected):
    """Root of the mean square of the difference, as a share of that of `expected`."""
    return np.sqrt(np.square(ours - expected).mean() / np.square(expected).mean())


def close(ours, expected):
    assert distance(ours, expected) < OF_THE_UPDATE


even = widths.filter(lambda width: width[1] % 2 == 0)
# Of a few tokens the normalised columns of q and k are little more than their signs, which rounding can turn.
many = st.integers(5, 17)


@per_example(max_examples=30)
@given(even, many, many, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_an_xca_block_is_almost_the_textbooks(bfloat16, width, height, columns, batch, threads, qkv_bias):
    block, weights = make_xca_block(*width, 4.0, qkv_bias)
    x = draw([batch, height * columns, width[0] * width[1]])
    exact = paddle.to_tensor(x.astype("float64"))
    expected = xca_block(float64(weights), exact, (height, columns), width[0], False).numpy()
    ours = natively(block, paddle.to_tensor(x), height, columns, threads=threads)
    close(ours - x, expected - x)


@per_example(max_examples=20)
@given(st.sampled_from([2, 4, 8, 16]), st.integers(1, 5), st.sampled_from([1, 3, 4, 9, 16, 20]), lengths, lengths)
def test_the_stem_is_almost_the_textbooks(bfloat16, patch_size, in_chans, width, height, columns):
    channels = width * patch_size // 2
    stem, weights = filled(ConvPatchEmbed(patch_size, in_chans, channels))
    images = draw([2, in_chans, height * patch_size, columns * patch_size])
    expected = patch_embed(float64(weights), paddle.to_tensor(images.astype("float64")), patch_size, False)
    embed = Embedding(stem, paddle.zeros([height * columns, channels]))
    close(natively(embed, paddle.to_tensor(images)), to_tokens(expected).numpy())


def test_it_is_bfloat16_that_was_measured(bfloat16):
    block, _ = make_xca_block(4, 32)
    x = paddle.to_tensor(draw([2, 196, 128]))
    exact, ours = portable(block, x, 14, 14), natively(block, x, 14, 14)
    assert 1e-4 < distance(ours - x.numpy(), exact - x.numpy()) < OF_THE_UPDATE


def test_heads_of_an_odd_width_are_computed_in_float32(bfloat16):
    block, _ = make_xca_block(2, 17)
    x = paddle.to_tensor(draw([2, 12, 34]))
    np.testing.assert_allclose(natively(block, x, 3, 4), portable(block, x, 3, 4), atol=1e-5)


def test_a_model_has_almost_the_same_features(bfloat16):
    model, _ = filled(XCiT(patch_size=8, embed_dim=128, depth=12, num_heads=4))
    images = paddle.to_tensor(draw([2, 3, 112, 112]))
    assert distance(natively(model, images), portable(model, images)) < 0.01


@pytest.mark.parametrize("name", sorted(each_operator()))
def test_the_number_of_threads_changes_no_bit(bfloat16, name):
    layer, inputs = each_operator()[name]
    layer.eval()
    alone = natively(layer, *inputs, threads=1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(natively(layer, *inputs, threads=threads), alone)


@pytest.mark.parametrize("name", sorted(each_operator()))
def test_a_number_that_is_none_is_seen_in_its_image_and_in_no_other(bfloat16, name):
    layer, (x, *size) = each_operator()[name]
    layer.eval()
    clean = natively(layer, x, *size)
    spoilt = x.numpy()
    spoilt[2].flat[7] = np.nan
    ours = natively(layer, paddle.to_tensor(spoilt), *size)
    assert np.isnan(ours[2]).any()
    np.testing.assert_array_equal(np.delete(ours, 2, axis=0), np.delete(clean, 2, axis=0))
