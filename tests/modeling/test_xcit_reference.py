"""The textbook XCiT computes what timm's computes, and the package's XCiT computes what the textbook says."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from fill_by_name import fill_by_name, fill_paddle, formula_images, paddle_layout, paddle_name
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_xcit import (
    as_tensor,
    below,
    class_attention_block,
    fourier_features,
    layer_norm,
    positional_encoding,
    reference_forward,
)

from passl_xcit.modeling.backbones.xcit import VARIANTS, XCiT

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "xcit_timm.json").read_text())["cases"]
WITH_TRAINING = [name for name, case in GOLDEN.items() if "train" in case]
CASES_AND_MODES = [(name, mode) for name, case in GOLDEN.items() for mode in ("eval", "train") if mode in case]
BUFFERS = ("._mean", "._variance")

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4}
MODELS = {  # arguments of XCiT, and the size of its images
    "p16": ({**SMALL, "patch_size": 16, "tokens_norm": True}, (48, 64)),
    "p16, cls norm": ({**SMALL, "patch_size": 16, "tokens_norm": False}, (64, 48)),
    "p8": ({**SMALL, "patch_size": 8, "tokens_norm": True}, (24, 40)),
    "p8, cls norm": ({**SMALL, "patch_size": 8, "tokens_norm": False}, (40, 24)),
    "p4, grey images": ({**SMALL, "patch_size": 4, "tokens_norm": True, "in_chans": 1}, (28, 20)),
    "p4, cls norm": ({**SMALL, "patch_size": 4, "tokens_norm": False}, (12, 20)),
    "no qkv bias": ({**SMALL, "patch_size": 8, "tokens_norm": True, "qkv_bias": False}, (24, 40)),
    "one head": ({**SMALL, "patch_size": 8, "tokens_norm": True, "num_heads": 1}, (24, 40)),
    "heads of two": ({**SMALL, "patch_size": 8, "tokens_norm": True, "num_heads": 16}, (24, 40)),
    "narrow mlp": ({**SMALL, "patch_size": 8, "tokens_norm": True, "mlp_ratio": 1.5}, (24, 40)),
    "one class layer": ({**SMALL, "patch_size": 8, "tokens_norm": False, "cls_attn_layers": 1}, (24, 40)),
    "three class layers": ({**SMALL, "patch_size": 8, "tokens_norm": True, "cls_attn_layers": 3}, (24, 40)),
    "one row of tokens": ({**SMALL, "patch_size": 8, "tokens_norm": True}, (8, 72)),
}


def textbook(config, params, images, training=False):
    """reference_forward with the arguments of XCiT that it needs."""
    names = ("patch_size", "depth", "num_heads", "tokens_norm")
    arguments = {name: config[name] for name in names}
    arguments["cls_attn_layers"] = config.get("cls_attn_layers", 2)
    return reference_forward(params, images, training=training, **arguments)


def golden_weights(case):
    return paddle_layout(fill_by_name(case["shapes"], case["model"]["eta"]))


def tensors(weights, dtype):
    """Leaf tensors that take gradients."""
    return {name: paddle.to_tensor(value.astype(dtype), stop_gradient=False) for name, value in weights.items()}


def backward(features):
    """Gradients of a fixed random projection of the features: LayerNorm makes their plain sum nearly constant."""
    cotangent = fill_by_name({"cotangent": features.shape})["cotangent"]
    (features * paddle.to_tensor(cotangent.astype(features.numpy().dtype))).sum().backward()


def filled_xcit(config, weights=None):
    """An XCiT with weights filled by name, and these weights."""
    model = XCiT(**config)
    weights = weights or fill_paddle({name: value.shape for name, value in model.state_dict().items()})
    state = {name: paddle.to_tensor(value.astype("float32")) for name, value in weights.items()}
    missing, unexpected = model.set_state_dict(state)
    assert not missing and not unexpected
    return model, weights


def set_training(model, training):
    model.train() if training else model.eval()


# The textbook and timm.


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name, mode", CASES_AND_MODES)
def test_the_textbook_computes_timms_features(name, mode, dtype, tolerance):
    case = GOLDEN[name]
    params = tensors(golden_weights(case), dtype)
    features = textbook(case["model"], params, formula_images(*case["images"]), training=mode == "train")
    np.testing.assert_allclose(features.numpy(), case[mode], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", WITH_TRAINING)
def test_the_textbook_has_timms_gradients(name):
    case = GOLDEN[name]
    params = tensors(golden_weights(case), "float64")
    backward(textbook(case["model"], params, formula_images(*case["images"]), training=True))
    for official, norm in case["gradient_norms"].items():
        ours = np.linalg.norm(params[paddle_name(official)].grad.numpy())
        assert ours == pytest.approx(norm, rel=1e-11), official


# Laws of the textbook (on which the published weights depend).


@settings(max_examples=15, deadline=None)
@given(st.sampled_from("qk"), st.lists(st.floats(1e-2, 1e2), min_size=32, max_size=32))
def test_a_positive_factor_on_any_channel_of_q_or_k_changes_nothing(part, factors):
    case = GOLDEN["p8_tokens_norm"]
    images, weights = formula_images(*case["images"]), golden_weights(case)
    before = textbook(case["model"], weights, images)
    columns = slice(0, 32) if part == "q" else slice(32, 64)
    for block in range(case["model"]["depth"]):
        weights[f"blocks.{block}.attn.qkv.weight"][:, columns] *= factors
        weights[f"blocks.{block}.attn.qkv.bias"][columns] *= factors
    np.testing.assert_allclose(textbook(case["model"], weights, images).numpy(), before.numpy(), atol=1e-12)


def class_block_input():
    """Parameters of a class-attention block of 32 channels, and tokens [2, 16, 32]."""
    params = below(golden_weights(GOLDEN["p8_tokens_norm"]), "cls_attn_blocks.0")
    tokens = fill_by_name({"tokens": (2, 16, 32)})["tokens"] * 100
    return {name: as_tensor(value) for name, value in params.items()}, as_tensor(tokens)


def identity_norm(channels):
    return {"weight": paddle.ones([channels], "float64"), "bias": paddle.zeros([channels], "float64")}


@pytest.mark.parametrize("tokens_norm, tolerance", [(False, 0), (True, 1e-5)])
def test_class_attention_without_its_branches_doubles_the_patch_tokens(tokens_norm, tolerance):
    params, tokens = class_block_input()
    identity = identity_norm(32)
    tokens = layer_norm(identity, tokens)  # a second LayerNorm leaves them as they are, but for its epsilon
    params.update({"gamma1": paddle.zeros([32], "float64"), "gamma2": paddle.zeros([32], "float64")})
    params.update({f"norm2.{name}": value for name, value in identity.items()})
    after = class_attention_block(params, tokens, 4, tokens_norm)
    np.testing.assert_allclose(after[:, 1:].numpy(), 2 * tokens[:, 1:].numpy(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(after[:, 0].numpy(), tokens[:, 0].numpy(), rtol=0, atol=1e-5)


def test_tokens_norm_changes_the_patch_tokens_of_a_class_block_only():
    params, tokens = class_block_input()
    everywhere, cls_only = (class_attention_block(params, tokens, 4, tokens_norm) for tokens_norm in (True, False))
    np.testing.assert_array_equal(everywhere[:, 0].numpy(), cls_only[:, 0].numpy())
    assert (everywhere[:, 1:] - cls_only[:, 1:]).abs().min(axis=-1).max().item() > 0.01


def test_norm2_by_concatenation_is_the_references_norm2_in_place():
    """With gamma1 = gamma2 = 0 the block is x <- norm2 in place, then x + [0, patches]."""
    params, tokens = class_block_input()
    params.update({"gamma1": paddle.zeros([32], "float64"), "gamma2": paddle.zeros([32], "float64")})
    x = tokens.numpy().copy()
    x[:, 0:1] = layer_norm(below(params, "norm2"), tokens[:, 0:1]).numpy()
    x[:, 1:] += x[:, 1:]
    np.testing.assert_array_equal(class_attention_block(params, tokens, 4, tokens_norm=False).numpy(), x)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_half_of_the_fourier_features_sees_the_row_and_half_the_column(height, width):
    features = fourier_features(height, width).numpy()
    rows, columns = features[:32], features[32:]
    assert features.shape == (64, height, width)
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :, :1], rows.shape))
    np.testing.assert_array_equal(columns, np.broadcast_to(columns[:, :1, :], columns.shape))
    np.testing.assert_array_equal(fourier_features(width, height).numpy()[:32].swapaxes(1, 2), columns)


@pytest.mark.parametrize("height", [1, 3, 14, 28])
def test_fourier_features_end_a_full_turn_with_their_first_pair(height):
    features = fourier_features(height, 2).numpy()
    angle = 2 * np.pi * height / (height + 1e-6)
    assert features[0, -1, 0] == pytest.approx(np.sin(angle), abs=1e-12) == pytest.approx(0, abs=1e-5)
    assert features[1, -1, 0] == pytest.approx(np.cos(angle), abs=1e-12) == pytest.approx(1, abs=1e-9)


def test_pair_j_of_the_fourier_features_turns_slower_by_a_power_of_10000():
    features = fourier_features(7, 5).numpy()
    angles = 2 * np.pi / (7 + 1e-6) / 10000.0 ** (np.arange(16) / 16)
    np.testing.assert_allclose(features[0:32:2, 0, 0], np.sin(angles), rtol=1e-12)
    np.testing.assert_allclose(features[1:32:2, 0, 0], np.cos(angles), rtol=1e-12)


def test_positional_encoding_of_no_weights_is_the_bias_everywhere():
    bias = paddle.arange(6, dtype="float64")
    params = {"token_projection.weight": paddle.zeros([6, 64, 1, 1], "float64"), "token_projection.bias": bias}
    encoding = positional_encoding(params, 2, 3).numpy()
    np.testing.assert_array_equal(encoding, np.broadcast_to(bias.numpy()[None, :, None, None], (1, 6, 2, 3)))


# XCiT, timm and the textbook.


@pytest.mark.parametrize("name", GOLDEN)
def test_xcit_has_the_names_and_shapes_of_the_published_weights(name):
    case = GOLDEN[name]
    expected = {key: list(value.shape) for key, value in golden_weights(case).items()}
    assert {key: value.shape for key, value in XCiT(**case["model"]).state_dict().items()} == expected


@pytest.mark.parametrize("name, mode", CASES_AND_MODES)
def test_xcit_computes_timms_features(name, mode):
    case = GOLDEN[name]
    model, _ = filled_xcit(case["model"], golden_weights(case))
    set_training(model, mode == "train")
    images = paddle.to_tensor(formula_images(*case["images"]).astype("float32"))
    with paddle.no_grad():
        np.testing.assert_allclose(model(images).numpy(), case[mode], rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_xcit_computes_the_textbooks_features_and_gradients(name, training):
    config, size = MODELS[name]
    model, weights = filled_xcit(config)
    images = formula_images(2, *size, channels=config.get("in_chans", 3))
    params = tensors(weights, "float64")
    expected = textbook(config, params, images, training)
    set_training(model, training)
    features = model(paddle.to_tensor(images.astype("float32")))
    np.testing.assert_allclose(features.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    backward(features)
    backward(expected)
    assert_same_gradients(model, params)


def assert_same_gradients(model, params):
    """Every learned parameter's gradient is the textbook's, to 2e-5 of that gradient's largest element."""
    learned = {key: value for key, value in model.named_parameters() if not value.stop_gradient}
    assert learned.keys() == {key for key in params if not key.endswith(BUFFERS)}
    for key, value in learned.items():
        gradient = params[key].grad.numpy()
        error = np.abs(value.grad.numpy() - gradient).max() / np.abs(gradient).max()
        assert error < 2e-5, f"{key}: {error:.1e} of the largest gradient"


@pytest.mark.parametrize("part", ["q", "k"])
def test_a_silent_channel_of_q_or_k_gives_the_textbooks_gradients_and_no_nan(part):
    config, size = MODELS["p8"]
    weights = filled_xcit(config)[1]
    channel = {"q": 3, "k": 32 + 3}[part]
    weights["blocks.1.attn.qkv.weight"][:, channel] = 0
    weights["blocks.1.attn.qkv.bias"][channel] = 0
    model, _ = filled_xcit(config, weights)
    images, params = formula_images(2, *size), tensors(weights, "float64")
    backward(model(paddle.to_tensor(images.astype("float32"))))
    backward(textbook(config, params, images, training=True))
    assert_same_gradients(model, params)


@pytest.mark.parametrize("name", ["p16", "p8, cls norm", "p4, grey images"])
def test_evaluating_with_the_statistics_of_a_batch_is_training_on_that_batch(name):
    """One training step moves each running statistic a tenth of the way to the batch's, which can be solved for."""
    config, size = MODELS[name]
    model, weights = filled_xcit(config)
    images = formula_images(2, *size, channels=config.get("in_chans", 3))
    model.train()
    trained = model(paddle.to_tensor(images.astype("float32"))).numpy()
    moved = {key: value.numpy().astype("float64") for key, value in model.state_dict().items()}
    of_batch = {key: (moved[key] - 0.9 * weights[key]) / 0.1 for key in weights if key.endswith(BUFFERS)}
    features = textbook(config, {**weights, **of_batch}, images, training=False)
    np.testing.assert_allclose(features.numpy(), trained, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size, eager_first", [((88, 104), True), ((104, 88), False)])
def test_saving_the_traced_xcit_before_or_after_an_eager_run_changes_nothing(tmp_path, size, eager_first):
    """What is kept between forwards may belong neither to an eager run nor to a program; the sizes are used once."""
    config = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "cls_attn_layers": 1}
    model, twin = (filled_xcit(config)[0].eval() for _ in range(2))
    images = paddle.to_tensor(formula_images(2, *size).astype("float32"))
    if eager_first:
        model(images)
    spec = [paddle.static.InputSpec([None, 3, *size], "float32")]
    paddle.jit.save(paddle.jit.to_static(twin, input_spec=spec, full_graph=True), str(tmp_path / "xcit"))
    saved = paddle.jit.load(str(tmp_path / "xcit"))
    np.testing.assert_allclose(saved(images).numpy(), model(images).numpy(), rtol=0, atol=1e-5)


FEATURES = np.load(Path(__file__).resolve().parents[1] / "golden" / "xcit_timm_features.npz", allow_pickle=False)
LARGE = ("small", "medium", "large")
ARCHITECTURES = [
    pytest.param(name, marks=[pytest.mark.slow] if any(size in name for size in LARGE) else [])
    for name in dict.fromkeys(key.split("/")[0] for key in FEATURES.files)
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_computes_what_timms_computes_at_both_sizes(name):
    model = filled_xcit(VARIANTS[name])[0]
    model.eval()
    for key in (key for key in FEATURES.files if key.startswith(f"{name}/")):
        height, width = map(int, key.partition("/")[2].split("x"))
        images = paddle.to_tensor(formula_images(1, height, width).astype("float32"))
        with paddle.no_grad():
            features = model(images).numpy()[0]
        assert np.abs(features - FEATURES[key]).max() <= 1e-4 * np.abs(FEATURES[key]).max(), key


def test_the_goldens_have_every_architecture():
    assert {key.split("/")[0] for key in FEATURES.files} == set(VARIANTS)
    assert {key.split("/")[1] for key in FEATURES.files} == {"224x224", "96x160"}
