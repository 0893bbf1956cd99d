"""XCA blocks and stems training in bfloat16: gradients as close to float64 as 8 bits of products' operands allow."""

import numpy as np
import paddle
import pytest
import test_native_stem_training as stems
import training_passes
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from test_native_bfloat16 import distance
from test_native_training import STATISTICS, make_block, textbook, trained
from test_native_xcit import draw, per_example
from training_passes import keeps_its_bits, losses, same_bits

from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.ops.library import PRECISION, library, native_precision

# Of the root of the mean square, for the widths of published models, and for any.
OF_A_GRADIENT, OF_A_SMALL_ONE = 0.012, 0.04
# The gradients of these are sums over the tokens, of numbers of the order of 1, that can cancel out.
CANCELLING = ("norm1.bias", "attn.qkv.bias", "attn.temperature")
CANCELLING += (".1.weight", ".1.bias")  # of a stem's BatchNorm
OF_A_TERM = 0.15
widths = st.tuples(st.integers(1, 4), st.integers(4, 24).map(lambda half: 2 * half))  # heads, channels of each
sides = st.integers(5, 17)


@pytest.fixture(autouse=True)
def asked_for_by_the_call(bfloat16, monkeypatch):
    monkeypatch.delenv(PRECISION)
    with native_precision("bfloat16"):
        yield


def in_float32(*args, **options):
    with native_precision("float32"):
        return trained(*args, **options)


def root_mean_square(array):
    return np.sqrt(np.square(array).mean())


def close(ours, exact, share=OF_A_GRADIENT):
    for name, value in exact.items():
        limit = max(share * root_mean_square(value), OF_A_TERM * name.endswith(CANCELLING))
        assert root_mean_square(ours[name] - value) < limit, name


@per_example(max_examples=25)
@given(widths, sides, sides, st.integers(2, 4), st.integers(1, 4))
def test_gradients_are_almost_the_textbooks(width, height, columns, batch, threads):
    block, weights = make_block(*width)
    x = draw([batch, height * columns, width[0] * width[1]])
    ours = trained(block, x, height, columns, threads=threads)
    close(ours, textbook(weights, x, height, columns, width[0]), OF_A_SMALL_ONE)


@pytest.mark.parametrize(("heads", "d", "side"), [(4, 32, 14), (4, 48, 10), (8, 48, 7)])
def test_gradients_at_the_widths_of_models(heads, d, side):
    block, weights = make_block(heads, d)
    x = draw([2, side * side, heads * d])
    close(trained(block, x, side, side), textbook(weights, x, side, side, heads))


def test_it_is_bfloat16_that_was_measured():
    block, _ = make_block(4, 32)
    x = draw([2, 196, 128])
    ours, exact = trained(block, x, 14, 14), in_float32(block, x, 14, 14)
    for name in ("mlp.fc1.weight", "mlp.fc2.weight", "attn.qkv.weight", "attn.proj.weight"):
        assert 1e-3 < distance(ours[name], exact[name]) < OF_A_GRADIENT


def test_running_statistics_move_as_in_float32():
    block, _ = make_block(4, 32)
    x = draw([2, 196, 128])
    ours, exact = trained(block, x, 14, 14), in_float32(block, x, 14, 14)
    for name in STATISTICS:
        assert distance(ours[name], exact[name]) < 0.005


@pytest.mark.parametrize("hidden", [256, 601, 1025])
def test_hidden_channels_of_an_mlp_are_taken_some_at_a_time(hidden):
    block, _ = make_block(2, 16, mlp_ratio=hidden / 32)
    x = draw([3, 130, 32])
    close(trained(block, x, 10, 13), in_float32(block, x, 10, 13), OF_A_SMALL_ONE)


def test_dropped_paths_are_those_of_float32():
    block, _ = make_block(3, 18, drop_path=0.4)
    x = draw([8, 63, 54])
    close(trained(block, x, 7, 9), in_float32(block, x, 7, 9), OF_A_SMALL_ONE)


def stem_and_textbook(patch_size, in_chans, channels, height, width, batch, **options):
    stem, weights = stems.make_stem(patch_size, in_chans, channels)
    arrays = stems.inputs(patch_size, in_chans, channels, height, width, batch)
    exact = training_passes.textbook(weights, arrays, stems.formula_of(patch_size))
    return stems.trained(stem, arrays, **options), exact


@pytest.mark.parametrize("size", [(16, 3, 128, 14, 14, 4), (8, 3, 128, 14, 14, 2), (16, 3, 384, 6, 6, 2)])
def test_a_stems_gradients_at_the_widths_of_models(size):
    ours, exact = stem_and_textbook(*size)
    close(ours, exact)
    assert distance(ours["proj.2.0.weight"], exact["proj.2.0.weight"]) > 1e-3


@per_example(max_examples=20)
@given(
    st.sampled_from([2, 4, 8]),
    st.integers(1, 5),
    st.sampled_from([4, 9, 16, 20]),
    sides,
    sides,
    st.integers(1, 4),
)
def test_a_stems_gradients_are_almost_the_textbooks(patch_size, in_chans, width, height, columns, threads):
    close(
        *stem_and_textbook(patch_size, in_chans, width * patch_size // 2, height, columns, 2, threads=threads),
        OF_A_SMALL_ONE,
    )


def test_a_stems_gradients_are_the_same_bits_each_time():
    stem, _ = stems.make_stem(4, 3, 34)
    arrays = stems.inputs(4, 3, 34, 17, 5, 5)
    keeps_its_bits(lambda threads: stems.trained(stem, arrays, threads=threads))


def test_heads_of_an_odd_width_train_in_float32():
    block, _ = make_block(3, 17)
    x = draw([2, 35, 51])
    ours, exact = trained(block, x, 5, 7), in_float32(block, x, 5, 7)
    same_bits(ours, exact)


def test_gradients_are_the_same_bits_each_time():
    block, _ = make_block(3, 18)
    x = draw([5, 143, 54])
    keeps_its_bits(lambda threads: trained(block, x, 11, 13, threads=threads))


def test_a_backward_pass_computes_in_what_its_forward_pass_did():
    block, _ = make_block(2, 16)
    x = draw([2, 35, 32])
    y = block(paddle.to_tensor(x), 5, 7)
    with native_precision("float32"):
        y.sum().backward()
    later = block.mlp.fc1.weight.grad.numpy()
    block.clear_gradients()
    block(paddle.to_tensor(x), 5, 7).sum().backward()
    np.testing.assert_array_equal(block.mlp.fc1.weight.grad.numpy(), later)


def test_a_gradient_that_is_no_number_is_passed_on():
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([3, 12, 16]), stop_gradient=False)
    (block(x, 3, 4)[1] * float("nan")).sum().backward()
    assert np.isnan(x.grad.numpy()[1]).all() and np.isnan(block.mlp.fc1.weight.grad.numpy()).all()


def test_a_call_says_the_precision_of_its_own_thread_only(monkeypatch):
    found = library()
    assert found.in_bfloat16()
    with native_precision("float32"):
        assert not found.in_bfloat16()
        monkeypatch.setenv(PRECISION, "bfloat16")
        assert not found.in_bfloat16()
    assert found.in_bfloat16()


def test_a_model_learns_almost_as_in_float32():
    images = paddle.to_tensor(draw([6, 3, 32, 32]))

    def learnt(precision):
        paddle.seed(3)
        model = nn.Sequential(XCiT(patch_size=4, embed_dim=32, depth=2, num_heads=2), nn.Linear(32, 6))
        with native_precision(precision):
            return losses(model, model.parameters(), images, steps=8)

    ours, exact = learnt("bfloat16"), learnt("float32")
    assert ours != exact and exact[-1] < 0.7 * exact[0]
    np.testing.assert_allclose(ours, exact, rtol=0.05)
