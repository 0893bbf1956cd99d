"""XCiT's sizes, names, first weights, inputs and errors; what it computes is in test_xcit_reference.py."""

import math

import numpy as np
import paddle
import pytest

from passl_xcit.modeling.backbones.xcit import VARIANTS, XCiT
from passl_xcit.modeling.heads import SwinTransformerClsHead
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import BACKBONES, MODELS

SIZES = {  # facebookresearch/xcit and timm, with a head of 1000 classes: p16, p8
    "nano_12": (3_053_224, 3_049_016),
    "tiny_12": (6_716_272, 6_706_504),
    "tiny_24": (12_116_896, 12_107_128),
    "small_12": (26_253_304, 26_213_032),
    "small_24": (47_671_384, 47_631_112),
    "medium_24": (84_395_752, 84_323_624),
    "large_24": (189_096_136, 188_932_648),
}
TINY = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def trainable(layer):
    return {name: value for name, value in layer.named_parameters() if not value.stop_gradient}


def noise(*shape):
    return paddle.to_tensor(np.random.default_rng(0).normal(size=shape), dtype="float32")


# Sizes and names.


@pytest.mark.parametrize(
    ("name", "parameters"),
    [(f"xcit_{size}_p{patch}", counts[patch == 8]) for size, counts in SIZES.items() for patch in (16, 8)],
)
def test_the_fourteen_architectures_have_their_published_sizes(name, parameters):
    with paddle.LazyGuard():  # shapes without values
        backbone = BACKBONES.build({"name": name})
        head = SwinTransformerClsHead(backbone.num_features)
    counted = sum(math.prod(value.shape) for layer in (backbone, head) for value in trainable(layer).values())
    assert counted == parameters


def test_there_are_fourteen():
    assert VARIANTS.keys() == {f"xcit_{size}_p{patch}" for size in SIZES for patch in (8, 16)}


@pytest.mark.parametrize("name", VARIANTS)
def test_layer_scale_and_tokens_norm_follow_depth_and_width(name):
    preset = VARIANTS[name]
    assert preset["eta"] == {12: 1.0, 24: 1e-5}[preset["depth"]]
    assert preset["tokens_norm"] == ("nano" not in name)
    assert preset["patch_size"] == int(name.split("_p")[1])


def published_names(depth, stem):
    """Names in PASSL's weight files, as the table of its conversion script has them."""
    both = ("weight", "bias")
    norm = (*both, "_mean", "_variance")
    block = ["gamma1", "gamma2", "gamma3", "attn.temperature"]
    block += [f"{layer}.{part}" for layer in ("norm1", "norm2", "norm3", "attn.qkv", "attn.proj") for part in both]
    block += [f"local_mp.{layer}.{part}" for layer in ("conv1", "conv2") for part in both]
    block += [f"local_mp.bn.{part}" for part in norm] + [f"mlp.{fc}.{part}" for fc in ("fc1", "fc2") for part in both]
    attention = ["gamma1", "gamma2"]
    attention += [f"{layer}.{part}" for layer in ("norm1", "norm2", "attn.qkv", "attn.proj") for part in both]
    attention += [f"mlp.{fc}.{part}" for fc in ("fc1", "fc2") for part in both]
    names = ["cls_token", "norm.weight", "norm.bias"]
    names += [f"pos_embeder.token_projection.{part}" for part in both]
    for place in range(0, 2 * stem, 2):
        names += [f"patch_embed.proj.{place}.0.weight", *(f"patch_embed.proj.{place}.1.{part}" for part in norm)]
    names += [f"blocks.{number}.{name}" for number in range(depth) for name in block]
    names += [f"cls_attn_blocks.{number}.{name}" for number in range(2) for name in attention]
    return {f"backbone.{name}" for name in names} | {"head.fc_cls.weight", "head.fc_cls.bias"}


@pytest.mark.parametrize(("name", "stem", "count"), [("xcit_nano_12_p8", 3, 362), ("xcit_nano_12_p16", 4, 367)])
def test_parameters_have_passls_names(name, stem, count):
    head = {"name": "SwinTransformerClsHead", "in_channels": 128}
    with paddle.LazyGuard():
        model = MODELS.build({"name": "SwinWrapper", "architecture": {"name": name}, "head": head})
    assert model.state_dict().keys() == published_names(12, stem)
    assert len(model.state_dict()) == count


@pytest.mark.parametrize("config", [TINY, {**TINY, "patch_size": 4, "tokens_norm": False}])
def test_what_is_not_to_be_decayed_exists(config):
    model = XCiT(**config)
    assert model.no_weight_decay() == {"cls_token"} <= trainable(model).keys()


def test_stochastic_depth_is_the_same_in_all_blocks_and_absent_in_class_attention():
    model = XCiT(**TINY, drop_path_rate=0.25)
    assert [block.drop_path.rate for block in model.blocks] == [0.25, 0.25]
    assert not any("drop_path" in name for block in model.cls_attn_blocks for name, _ in block.named_sublayers())


# First weights. The numbers are torch's defaults and the reference's _init_weights.


@pytest.fixture(scope="module")
def fresh():
    paddle.seed(0)
    model = XCiT(patch_size=16, embed_dim=128, depth=2, num_heads=4, eta=1e-5)
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("blocks.0.local_mp.conv1.weight", 0.192),
        ("blocks.1.local_mp.conv2.weight", 0.192),
        ("blocks.1.local_mp.conv2.bias", 0.192),
        ("patch_embed.proj.0.0.weight", 0.111),
        ("pos_embeder.token_projection.weight", 0.072),
        ("pos_embeder.token_projection.bias", 0.072),
        ("blocks.0.attn.qkv.weight", 0.02),
        ("blocks.1.mlp.fc1.weight", 0.02),
        ("cls_attn_blocks.1.attn.proj.weight", 0.02),
        ("cls_token", 0.02),
    ],
)
def test_first_weights_have_the_references_deviation(fresh, name, deviation):
    values = fresh[name]
    assert values.std() == pytest.approx(deviation, rel=0.02 if values.size > 2000 else 0.15)
    assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("attn.temperature", 1.0),
        ("gamma1", 1e-5),
        ("gamma2", 1e-5),
        ("gamma3", 1e-5),
        ("norm1.weight", 1.0),
        ("norm3.bias", 0.0),
        ("bn.weight", 1.0),
        ("bn.bias", 0.0),
        ("1._mean", 0.0),
        ("1._variance", 1.0),
        ("bn._variance", 1.0),
        ("qkv.bias", 0.0),
        ("proj.bias", 0.0),
        ("fc2.bias", 0.0),
    ],
)
def test_first_weights_of_norms_scales_and_biases(fresh, part, value):
    found = [values for name, values in fresh.items() if name.endswith(f".{part}")]
    assert found and all((values == np.float32(value)).all() for values in found)


def test_there_is_a_temperature_for_every_head(fresh):
    assert fresh["blocks.0.attn.temperature"].shape == (4, 1, 1)


def test_blocks_start_with_different_weights(fresh):
    assert not (fresh["blocks.0.attn.qkv.weight"] == fresh["blocks.1.attn.qkv.weight"]).any()


# Images.


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize("training", [False, True])
def test_any_grid_of_patches_gives_a_class_token(patch_size, grid, training):
    model = XCiT(**{**TINY, "patch_size": patch_size, "embed_dim": 32, "depth": 1})
    model.train() if training else model.eval()
    images = noise(2, 3, grid[0] * patch_size, grid[1] * patch_size)
    features = model(images)
    assert features.shape == [2, 32] == [2, model.num_features]
    assert np.isfinite(features.numpy()).all()


@pytest.mark.parametrize("in_chans", [1, 2, 3, 5])
@pytest.mark.parametrize("num_classes", [1, 2, 1000])
def test_images_have_any_channels_and_models_any_classes(tiny_model, in_chans, num_classes):
    model = tiny_model(num_classes, in_chans=in_chans)
    assert model(noise(2, in_chans, 8, 12)).shape == [2, num_classes]


def test_in_an_evaluation_an_image_does_not_see_its_neighbours():
    model = XCiT(**TINY, drop_path_rate=0.5, drop_rate=0.5)
    model.eval()
    images = noise(3, 3, 16, 24)
    together, alone = model(images), paddle.concat([model(images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-5)


def test_an_image_of_another_size_leaves_no_trace():
    model = XCiT(**TINY)
    model.eval()
    small, large = noise(1, 3, 16, 16), noise(1, 3, 32, 24)
    before = model(small).numpy()
    model(large)
    np.testing.assert_array_equal(model(small).numpy(), before)


def test_a_turned_image_is_another_image():
    model = XCiT(**TINY)
    model.eval()
    images = noise(1, 3, 16, 24)
    assert not np.allclose(model(images).numpy(), model(images.transpose([0, 1, 3, 2])).numpy(), atol=1e-3)


@pytest.mark.parametrize("rates", [{"drop_path_rate": 0.5}, {"drop_rate": 0.5}, {"attn_drop_rate": 0.5}])
def test_training_draws_from_the_frameworks_seed(rates):
    model, images = XCiT(**TINY, **rates), noise(2, 3, 16, 16)

    def forward(seed):
        paddle.seed(seed)
        return model(images).numpy().tobytes()

    assert forward(1) == forward(1) != forward(2)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tokens_norm": False},
        {"qkv_bias": False, "cls_attn_layers": 1},
        {"patch_size": 4, "in_chans": 1},
        {"patch_size": 16, "eta": 1e-5},
        {"cls_attn_layers": 3, "drop_path_rate": 0.3},
    ],
)
def test_every_trainable_parameter_gets_a_gradient(tiny_model, config):
    model = tiny_model(**{**TINY, "cls_attn_layers": 2, **config})
    paddle.seed(1)
    images = noise(6, config.get("in_chans", 3), 32, 48)
    model.train_iter(images, paddle.to_tensor([0, 1, 2, 0, 1, 2]))["loss"].backward()
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, name
        gradient = parameter.grad.numpy()
        assert np.isfinite(gradient).all() and (gradient != 0).any(), name


# Errors.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 12}, "patch_size must be a power of two, such as 4, 8 or 16, not 12"),
        ({"patch_size": 1}, "patch_size must be a power of two, such as 4, 8 or 16, not 1"),
        ({"patch_size": 0}, "patch_size must be a power of two, such as 4, 8 or 16, not 0"),
        ({"patch_size": -8}, "patch_size must be a power of two, such as 4, 8 or 16, not -8"),
        ({"embed_dim": 0}, "embed_dim must be at least 1, not 0"),
        ({"depth": -1}, "depth must be at least 0, not -1"),
        ({"num_heads": 0}, "num_heads must be at least 1, not 0"),
        ({"num_heads": 3}, "embed_dim 16 is not a multiple of num_heads 3"),
        ({"embed_dim": 18}, "embed_dim 18 is not a multiple of patch_size / 2, 4"),
        ({"cls_attn_layers": 0}, "cls_attn_layers must be at least 1, not 0"),
        ({"in_chans": 0}, "in_chans must be at least 1, not 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must lie in [0, 1), not 1.0"),
        ({"drop_rate": -0.1}, "drop_rate must lie in [0, 1), not -0.1"),
        ({"attn_drop_rate": 2}, "attn_drop_rate must lie in [0, 1), not 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError) as caught:
        BACKBONES.build({"name": "XCiT", **TINY, **change}, "model.architecture")
    path = f"model.architecture.{message.split()[0]}"  # the message begins with the key
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 16, 16), "images have 1 channels, but the model's in_chans is 3"),
        ((1, 16, 16, 3), "images have 16 channels, but the model's in_chans is 3"),
        ((1, 3, 20, 16), "images of 20 x 16 pixels do not divide into patches of 8"),
        ((1, 3, 16, 20), "images of 16 x 20 pixels do not divide into patches of 8"),
        ((1, 3, 4, 4), "images of 4 x 4 pixels do not divide into patches of 8"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(DataError) as caught:
        XCiT(**TINY)(noise(*shape))
    assert str(caught.value).startswith(message)
