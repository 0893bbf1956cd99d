"""CrossViT's transformer block in bfloat16: products with weights have operands of 8 bits, its attention has not."""

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from test_native_bfloat16 import distance
from test_native_crossvit import TINY, exact, make_block, textbook_block
from test_native_crossvit_training import fusion_in_training, in_training, textbook, trained
from test_native_xcit import draw, float64, natively, per_example, widths
from training_passes import freezes, keeps_its_bits, losses, same_bits

from passl_xcit.modeling.backbones.crossvit import CrossViT
from passl_xcit.ops.library import native_precision

OF_THE_UPDATE = 0.012  # of the root of the mean square of what the block adds
OF_A_GRADIENT, OF_A_SMALL_ONE = 0.012, 0.04
lengths = st.integers(5, 230)


@pytest.fixture(autouse=True)
def asked_for_by_the_call(bfloat16, monkeypatch):
    with native_precision("bfloat16"):
        yield


@per_example(max_examples=30)
@given(widths, lengths, st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_a_block_is_almost_the_textbooks(width, tokens, batch, threads, qkv_bias):
    block, weights = make_block(*width, 4.0, qkv_bias)
    x = draw([batch, tokens, width[0] * width[1]])
    expected = textbook_block(float64(weights), exact(x), width[0]).numpy()
    assert distance(natively(block, paddle.to_tensor(x), threads=threads) - x, expected - x) < OF_THE_UPDATE


def close(ours, exact, share):
    largest = max(np.abs(value).max() for value in exact.values())
    for name, value in exact.items():
        error, size = (np.sqrt(np.square(array).mean()) for array in (ours[name] - value, value))
        # Gradients of biases are sums of many terms that may cancel out.
        assert error < max(share * size, 0.002 * largest), name


@per_example(max_examples=25)
@given(widths, lengths, st.integers(1, 4), st.integers(1, 4))
def test_gradients_are_almost_the_textbooks(width, tokens, batch, threads):
    block, weights = in_training(*width)
    x = draw([batch, tokens, width[0] * width[1]])
    close(trained(block, x, threads=threads), textbook(weights, x, width[0]), OF_A_SMALL_ONE)


@pytest.mark.parametrize(
    ("heads", "d", "tokens", "mlp_ratio"), [(4, 32, 401, 3.0), (4, 64, 197, 3.0), (6, 64, 197, 4.0)]
)
def test_gradients_at_the_widths_of_models(heads, d, tokens, mlp_ratio):
    block, weights = in_training(heads, d, mlp_ratio)
    x = draw([2, tokens, heads * d])
    ours, exact = trained(block, x), textbook(weights, x, heads)
    close(ours, exact, OF_A_GRADIENT)
    for name in ("mlp.fc1.weight", "mlp.fc2.weight", "attn.qkv.weight"):
        assert distance(ours[name], exact[name]) > 5e-4, name  # it is bfloat16 that was measured


def test_dropped_paths_are_those_of_float32():
    block, _ = in_training(drop_path=0.4)
    x = draw([8, 35, 51])
    ours = trained(block, x)
    with native_precision("float32"):
        close(ours, trained(block, x), OF_A_SMALL_ONE)


def test_gradients_are_the_same_bits_each_time():
    block, _ = in_training()
    x = draw([5, 143, 51])
    keeps_its_bits(lambda threads: trained(block, x, threads=threads))


def test_what_is_frozen_gets_no_gradient_and_changes_no_other():
    x = draw([2, 35, 51])
    freezes(lambda **options: trained(in_training()[0], x, **options), "mlp")


def test_the_fusion_is_in_float32():
    x = draw([2, 35, 51])
    ours = trained(fusion_in_training()[0], x)
    with native_precision("float32"):
        same_bits(ours, trained(fusion_in_training()[0], x))


def test_a_model_learns_almost_as_in_float32():
    images = paddle.to_tensor(draw([6, 3, 36, 36]))

    def learnt(precision):
        paddle.seed(3)
        backbone, head = CrossViT(**TINY), nn.Linear(60, 6)
        parameters = [*backbone.parameters(), *head.parameters()]
        with native_precision(precision):
            return losses(lambda images: head(paddle.concat(backbone(images), axis=1)), parameters, images, steps=8)

    ours, exact = learnt("bfloat16"), learnt("float32")
    assert ours != exact and exact[-1] < 0.7 * exact[0]
    np.testing.assert_allclose(ours, exact, rtol=0.05)
