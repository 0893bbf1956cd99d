"""CrossViT's native operators in training: outputs and gradients as the portable formulation's and the textbook's."""

import os
from unittest import mock

import numpy as np
import paddle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paddle import nn
from test_native_crossvit import TINY, make_block, make_fusion, textbook_block, textbook_fusion
from test_native_training import same
from test_native_xcit import draw, hidden, per_example, widths

from passl_xcit.modeling.backbones.crossvit import CrossViT
from passl_xcit.ops.conditions import applies_in_training
from passl_xcit.ops.library import MODE, Library

lengths = st.integers(1, 230)


def in_training(heads=3, d=17, mlp_ratio=4.0, qkv_bias=True, drop_path=0.0):
    """A block in training without dropout, and its parameters."""
    return to_training(*make_block(heads, d, mlp_ratio, qkv_bias), drop_path)


def fusion_in_training(heads=3, d=17, qkv_bias=True, drop_path=0.0):
    return to_training(*make_fusion(heads, d, qkv_bias), drop_path)


def to_training(block, weights, drop_path):
    for layer in block.sublayers():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    block.drop_path.rate = drop_path
    block.train()
    return block, weights


both = pytest.mark.parametrize("make", [in_training, fusion_in_training])


def trained(block, x, mode="on", threads=2, weight=None):
    """{name: array} of the output and the gradients after one pass forward and back."""
    x = paddle.to_tensor(x, stop_gradient=False)
    paddle.seed(7)
    with mock.patch.dict(os.environ, {MODE: mode}), mock.patch.object(Library, "threads", lambda self: threads):
        assert applies_in_training(block, x) == (mode == "on")
        y = block(x)
        (y * paddle.to_tensor(draw(y.shape, seed=1) if weight is None else weight)).sum().backward()
    found = {name: value.grad.numpy() for name, value in block.named_parameters() if value.grad is not None}
    for parameter in block.parameters():
        parameter.clear_gradient()
    return {**found, "x": x.grad.numpy(), "y": y.numpy()}


def textbook(weights, x, *arguments, formula=textbook_block):
    """{name: float64 array} of the same."""
    exact = {name: paddle.to_tensor(value.astype("float64"), stop_gradient=False) for name, value in weights.items()}
    x = paddle.to_tensor(x.astype("float64"), stop_gradient=False)
    y = formula(exact, x, *arguments)
    (y * paddle.to_tensor(draw(y.shape, seed=1).astype("float64"))).sum().backward()
    return {**{name: value.grad.numpy() for name, value in exact.items()}, "x": x.grad.numpy(), "y": y.numpy()}


@per_example(max_examples=40)
@given(widths, lengths, st.integers(1, 4), st.integers(1, 4), hidden, st.booleans())
@example((4, 32), 205, 3, 2, 3.0, True)
def test_it_has_the_textbooks_gradients(native, width, tokens, batch, threads, mlp_ratio, qkv_bias):
    block, weights = in_training(*width, mlp_ratio, qkv_bias)
    x = draw([batch, tokens, width[0] * width[1]])
    ours, portable = (trained(block, x, mode, threads) for mode in ("on", "off"))
    same(ours, textbook(weights, x, width[0]), portable)
    np.testing.assert_allclose(ours["y"], portable["y"], rtol=0, atol=1e-5 * max(1.0, np.abs(portable["y"]).max()))


@per_example(max_examples=40)
@given(widths, lengths, st.integers(1, 4), st.integers(1, 4), st.booleans())
@example((4, 64), 197, 3, 2, True)
def test_the_fusion_has_the_textbooks_gradients(native, width, tokens, batch, threads, qkv_bias):
    fusion, weights = fusion_in_training(*width, qkv_bias)
    x = draw([batch, tokens, width[0] * width[1]])
    ours, portable = (trained(fusion, x, mode, threads) for mode in ("on", "off"))
    same(ours, textbook(weights, x, width[0], formula=textbook_fusion), portable)
    np.testing.assert_allclose(ours["y"], portable["y"], rtol=0, atol=1e-5 * max(1.0, np.abs(portable["y"]).max()))


@both
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_it_drops_what_the_portable_formulation_drops(native, batch, make):
    block, _ = make(drop_path=0.4)
    x = draw([batch, 35, 51])
    ours, expected = (trained(block, x, mode) for mode in ("on", "off"))
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
    expected = trained(make()[0], x)
    block, _ = make()
    for name, parameter in block.named_parameters():
        parameter.stop_gradient = name.startswith(frozen)
    ours = trained(block, x)
    gone = {name for name in expected if name.startswith(frozen)}
    assert gone and ours.keys() == expected.keys() - gone
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expected[name])


@both
def test_gradients_are_the_same_bits_each_time(native, make):
    block, _ = make()
    x = draw([5, 143, 51])
    for threads in (1, 2, 3):
        first, second = (trained(block, x, threads=threads) for _ in range(2))
        for name, value in first.items():
            np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_gradients_add_up_over_two_passes(native):
    block, _ = in_training(2, 8)
    x = paddle.to_tensor(draw([2, 12, 16]))
    block(x).sum().backward()
    once = block.mlp.fc1.weight.grad.numpy()
    block(x).sum().backward()
    np.testing.assert_allclose(block.mlp.fc1.weight.grad.numpy(), 2 * once, rtol=1e-6)


def test_a_gradient_of_the_fusion_that_is_no_number_is_passed_on(native):
    fusion, _ = fusion_in_training(2, 8)
    weight = np.ones([3, 1, 16], dtype="float32")
    weight[1] = np.nan
    ours = trained(fusion, draw([3, 12, 16]), weight=weight)
    assert np.isnan(ours["x"][1]).all() and np.isfinite(ours["x"][[0, 2]]).all()
    assert np.isnan(ours["attn.wv.weight"]).all() and np.isnan(ours["attn.wq.weight"]).all()


def test_a_gradient_that_is_no_number_is_passed_on(native):
    block, _ = in_training(2, 8)
    weight = np.ones([3, 12, 16], dtype="float32")
    weight[1] = np.nan
    ours = trained(block, draw([3, 12, 16]), weight=weight)
    assert np.isnan(ours["x"][1]).all() and np.isfinite(ours["x"][[0, 2]]).all()
    assert np.isnan(ours["mlp.fc1.weight"]).all() and np.isnan(ours["attn.qkv.weight"]).all()


@both
@pytest.mark.parametrize("why", ["dropout", "evaluation", "no gradients", "a hook", "bfloat16"])
def test_when_it_does_not_apply(native, why, make):
    block, _ = make(2, 8)
    x = paddle.to_tensor(draw([2, 12, 16]))
    assert applies_in_training(block, x)
    if why == "dropout":
        block.attn.attn_drop.p = 0.1
    elif why == "evaluation":
        block.eval()
    elif why == "a hook":
        block.attn.proj.register_forward_post_hook(lambda *_: None)
    elif why == "bfloat16":
        x = x.astype("bfloat16")
    with paddle.set_grad_enabled(why != "no gradients"):
        assert not applies_in_training(block, x)


@pytest.mark.parametrize("multi_conv", [False, True])
def test_a_model_learns_the_same_in_some_steps(native, multi_conv):
    images, labels = paddle.to_tensor(draw([6, 3, 36, 36])), paddle.arange(6)

    def losses(mode):
        paddle.seed(3)
        backbone = CrossViT(**TINY, drop_path_rate=0.2, multi_conv=multi_conv)
        head = nn.Linear(60, 6)
        optimizer = paddle.optimizer.AdamW(1e-3, parameters=[*backbone.parameters(), *head.parameters()])
        found = []
        with mock.patch.dict(os.environ, {MODE: mode}):
            for _ in range(6):
                loss = nn.functional.cross_entropy(head(paddle.concat(backbone(images), axis=1)), labels)
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                found.append(loss.item())
        return found

    np.testing.assert_allclose(losses("on"), losses("off"), rtol=1e-3, atol=1e-3)
