"""The native XCA block in training: outputs, gradients and statistics as the portable formulation and the textbook."""

import os
from unittest import mock

import numpy as np
import paddle
import pytest
from fill_by_name import fill_paddle
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from reference_xcit import xca_block
from test_native_xcit import draw, natively, per_example, widths

from passl_xcit.modeling.backbones.xcit import XCABlock, XCiT
from passl_xcit.ops.conditions import applies_in_training
from passl_xcit.ops.library import MODE, Library

TOLERANCE = 1e-4  # of the largest value
OF_THE_LARGEST = 0.05
STATISTICS = ("local_mp.bn._mean", "local_mp.bn._variance")
# Of one or two tokens, norms and BatchNorm divide by what is almost zero.
some = st.integers(2, 17)
SIZES = [(5, 7, 3), (3, 9, 1), (20, 13, 2), (2, 4, 8)]  # height, width, images


def make_block(heads=3, d=17, drop_path=0.0, qkv_bias=True, mlp_ratio=4.0):
    """A block in training, with parameters drawn by name; and these."""
    block = XCABlock(heads * d, heads, mlp_ratio, qkv_bias, 0.0, 0.0, drop_path, 1.0)
    weights = fill_paddle({name: value.shape for name, value in block.state_dict().items()})
    block.set_state_dict({name: paddle.to_tensor(value.astype("float32")) for name, value in weights.items()})
    block.train()
    return block, weights


def trained(block, x, height, width, mode="on", threads=2):
    """{name: array} of the output, the gradients and the running statistics after one pass forward and back."""
    x = paddle.to_tensor(x, stop_gradient=False)
    before = {name: value.numpy() for name, value in block.state_dict().items() if name in STATISTICS}
    paddle.seed(7)
    with mock.patch.dict(os.environ, {MODE: mode}), mock.patch.object(Library, "threads", lambda self: threads):
        assert applies_in_training(block, x) == (mode == "on")
        y = block(x, height, width)
        (y * paddle.to_tensor(draw(y.shape, seed=1))).sum().backward()
    found = {name: value.grad.numpy() for name, value in block.named_parameters() if value.grad is not None}
    found.update({"x": x.grad.numpy(), "y": y.numpy()})
    found.update({name: value.numpy() for name, value in block.state_dict().items() if name in STATISTICS})
    for parameter in block.parameters():
        parameter.clear_gradient()
    block.set_state_dict({name: paddle.to_tensor(value) for name, value in before.items()})
    return found


def same(ours, expected, portable=None):
    """To TOLERANCE; what is more sensitive than that, to four times the error of the portable formulation.

    Gradients of biases are sums of many terms that may cancel out: they are held against a share of the largest of all.
    """
    assert ours.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        limit = TOLERANCE * max(np.abs(value).max(), OF_THE_LARGEST * largest)
        if portable is not None:
            limit = max(limit, 4 * np.abs(portable[name] - value).max())
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=limit, err_msg=name)


def textbook(weights, x, height, width, heads):
    """{name: float64 array} of the output and the gradients."""
    exact = {name: paddle.to_tensor(value.astype("float64"), stop_gradient=False) for name, value in weights.items()}
    x = paddle.to_tensor(x.astype("float64"), stop_gradient=False)
    y = xca_block(exact, x, (height, width), heads, True)
    (y * paddle.to_tensor(draw(y.shape, seed=1).astype("float64"))).sum().backward()
    found = {name: value.grad.numpy() for name, value in exact.items() if name not in STATISTICS}
    return {**found, "x": x.grad.numpy(), "y": y.numpy()}


@per_example(max_examples=25)
@given(widths, some, some, st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_it_has_the_textbooks_gradients(native, width, height, columns, batch, threads, qkv_bias):
    block, weights = make_block(*width, qkv_bias=qkv_bias)
    x = draw([batch, height * columns, width[0] * width[1]])
    ours, portable = (trained(block, x, height, columns, mode, threads) for mode in ("on", "off"))
    same(
        {name: value for name, value in ours.items() if name not in STATISTICS},
        textbook(weights, x, height, columns, width[0]),
        portable,
    )
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
    expected = trained(make_block()[0], x, 5, 7)
    block, _ = make_block()
    for name, parameter in block.named_parameters():
        if name.startswith(frozen):
            parameter.stop_gradient = True
    ours = trained(block, x, 5, 7)
    gone = {name for name in expected if name.startswith(frozen)}
    assert gone and ours.keys() == expected.keys() - gone
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expected[name])


def test_gradients_are_the_same_bits_each_time(native):
    block, _ = make_block()
    x = draw([5, 143, 51])
    for threads in (1, 2, 3):
        first, second = (trained(block, x, 11, 13, threads=threads) for _ in range(2))
        for name, value in first.items():
            np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_gradients_add_up_over_two_passes(native):
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([2, 12, 16]))
    block(x, 3, 4).sum().backward()
    once = block.gamma1.grad.numpy()
    block(x, 3, 4).sum().backward()
    np.testing.assert_allclose(block.gamma1.grad.numpy(), 2 * once, rtol=1e-6)


def test_a_gradient_that_is_no_number_is_passed_on(native):
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([3, 12, 16]), stop_gradient=False)
    (block(x, 3, 4)[1] * float("nan")).sum().backward()
    assert np.isnan(x.grad.numpy()[1]).all() and np.isnan(block.mlp.fc1.weight.grad.numpy()).all()


@pytest.mark.parametrize(
    "why", ["dropout", "BatchNorm in evaluation", "evaluation", "no gradients", "a hook", "bfloat16"]
)
def test_when_it_does_not_apply(native, why):
    block, _ = make_block(2, 8)
    x = paddle.to_tensor(draw([2, 12, 16]))
    assert applies_in_training(block, x)
    if why == "dropout":
        block.attn.attn_drop.p = 0.1
    elif why == "BatchNorm in evaluation":
        block.local_mp.bn.eval()
    elif why == "evaluation":
        block.eval()
    elif why == "a hook":
        block.mlp.fc1.register_forward_post_hook(lambda *_: None)
    elif why == "bfloat16":
        x = x.astype("bfloat16")
    with paddle.set_grad_enabled(why != "no gradients"):
        assert not applies_in_training(block, x)


def test_a_model_learns_the_same_in_some_steps(native):
    config = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "drop_path_rate": 0.2}
    images, labels = paddle.to_tensor(draw([6, 3, 16, 16])), paddle.arange(6)

    def losses(mode):
        paddle.seed(3)
        model = nn.Sequential(XCiT(**config), nn.Linear(24, 6))
        optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
        found = []
        with mock.patch.dict(os.environ, {MODE: mode}):
            for _ in range(6):
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                found.append(loss.item())
            model.eval()
            return [*found, *natively(model, images).flat] if mode == "on" else [*found, *_off(model, images).flat]

    np.testing.assert_allclose(losses("on"), losses("off"), rtol=1e-3, atol=1e-3)


def _off(model, images):
    with paddle.no_grad():
        return model(images).numpy()


def test_a_model_that_computes_blocks_again_has_the_gradients_of_one_that_keeps_them(native):
    """With Paddle's recompute a native block would lose its gradients: it is computed by Paddle's operators then."""
    images, found = paddle.to_tensor(draw((4, 3, 16, 16))), []
    for use_recompute in (False, True):
        paddle.seed(0)
        model = XCiT(patch_size=4, embed_dim=16, depth=2, num_heads=2, use_recompute=use_recompute)
        model.train()
        with mock.patch.dict(os.environ, {MODE: "on"}):
            (model(images) * paddle.to_tensor(draw((4, 16), seed=1))).sum().backward()
        found.append({name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None})
    assert "blocks.1.mlp.fc2.weight" in found[0]
    same(found[1], found[0])
