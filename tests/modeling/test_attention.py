"""What a model attends to."""

import numpy as np
import paddle
import pytest

from passl_xcit.modeling.attention import channel_maps, class_maps, recorded_attention
from passl_xcit.modeling.factory import create_model
from passl_xcit.utils.errors import ConfigError

TINY = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "cls_attn_layers": 2}


@pytest.fixture
def xcit():
    paddle.seed(1)
    return create_model("xcit_nano_12_p16_224", num_classes=3, **TINY)


@pytest.fixture
def crossvit():
    paddle.seed(1)
    sizes = {"img_size": [24, 32], "embed_dim": [8, 16], "num_heads": [2, 2], "depth": [[1, 1], [1, 1]]}
    return create_model("crossvit_9_240", num_classes=3, patch_size=[4, 8], **sizes)


def noise(*shape):
    return paddle.to_tensor(np.random.default_rng(0).standard_normal(shape), "float32")


def float64(tensor):
    return tensor.astype("float64").numpy()


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def heads(tokens):
    """[B, M, C] -> [B, 2, M, d]"""
    return tokens.reshape(*tokens.shape[:2], 2, -1).transpose(0, 2, 1, 3)


def inputs_of(layer, run):
    """What goes into `layer` while `run()` runs."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run()
    hook.remove()
    return float64(seen[0])


def qkv(layer, x):
    projected = x @ float64(layer.qkv.weight) + float64(layer.qkv.bias)
    return np.split(projected, 3, axis=-1)


@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_class_attention_is_the_softmax_of_the_class_tokens_products(xcit, size):
    images = noise(2, 3, *size)
    maps = class_maps(xcit, images)
    assert [found.layer for found in maps] == ["cls_attn_blocks.0.attn", "cls_attn_blocks.1.attn"]
    xcit.eval()
    for found, block in zip(maps, xcit.backbone.cls_attn_blocks):
        q, k, _ = qkv(block.attn, inputs_of(block.attn, lambda: xcit(images)))
        expected = softmax(heads(q)[:, :, :1] @ heads(k).swapaxes(2, 3) / np.sqrt(8))[:, :, 0]
        np.testing.assert_allclose(found.itself, expected[:, :, 0], atol=1e-6)
        grid = expected[:, :, 1:].reshape(2, 2, size[0] // 4, size[1] // 4)
        np.testing.assert_allclose(found.patches, grid, atol=1e-6)


def test_channel_attention_is_the_softmax_of_normalised_channels(xcit):
    images = noise(2, 3, 32, 24)
    xcit.backbone.blocks[1].attn.temperature.set_value(np.array([1.5, 0.5], "float32").reshape(2, 1, 1))
    maps = channel_maps(xcit, images)
    assert [found.layer for found in maps] == ["blocks.0.attn", "blocks.1.attn"]
    np.testing.assert_array_equal(maps[1].temperature, np.array([1.5, 0.5], "float32"))
    xcit.eval()
    for found, block in zip(maps, xcit.backbone.blocks):
        q, k, _ = (heads(part) for part in qkv(block.attn, inputs_of(block.attn, lambda: xcit(images))))
        q, k = (part / np.linalg.norm(part, axis=2, keepdims=True) for part in (q, k))  # over the tokens
        expected = softmax(q.swapaxes(2, 3) @ k * found.temperature.reshape(2, 1, 1))
        np.testing.assert_allclose(found.attention, expected, atol=1e-6)


def test_crossvits_class_tokens_look_at_the_other_branchs_patches(crossvit):
    maps = class_maps(crossvit, noise(2, 3, 50, 20))
    assert [found.layer for found in maps] == [f"blocks.{s}.fusion.{b}.attn" for s in (0, 1) for b in (0, 1)]
    assert [found.patches.shape for found in maps] == 2 * [(2, 2, 4, 4), (2, 2, 6, 6)]  # 32 / 8, then 24 / 4
    for found in maps:
        np.testing.assert_allclose(found.patches.sum(axis=(2, 3)) + found.itself, 1, atol=1e-5)


def test_looking_changes_neither_mode_nor_output(xcit):
    images = noise(1, 3, 16, 16)
    xcit.eval()
    before = xcit(images).numpy()
    xcit.train()
    class_maps(xcit, images)
    assert xcit.training and xcit.backbone.training
    xcit.eval()
    assert np.array_equal(xcit(images).numpy(), before)
    with recorded_attention(xcit) as found:
        xcit(images)
        xcit(images)
    xcit(images)
    assert {name: len(calls) for name, calls in found.items()} == dict.fromkeys(found, 2) and len(found) == 4


@pytest.mark.parametrize(
    ("name", "look", "text"),
    [
        ("regnetx_002", class_maps, "RegNet has no class token to look at"),
        ("regnetx_002", channel_maps, "RegNet has no cross-covariance attention to look at"),
        ("crossvit", channel_maps, "CrossViT has no cross-covariance attention to look at"),
    ],
)
def test_a_model_without_them_is_named(name, look, text, crossvit):
    model = crossvit if name == "crossvit" else create_model(name)
    with pytest.raises(ConfigError, match=text):
        look(model, noise(1, 3, 32, 32))
