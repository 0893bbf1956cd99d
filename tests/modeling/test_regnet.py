"""RegNet's sizes, names, first weights, stages, inputs and errors; what it computes is in test_regnet_reference.py."""

import json
import math
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.modeling.architectures import Classification
from passl_xcit.modeling.backbones.regnet import VARIANTS, RegNet, stages_of
from passl_xcit.modeling.heads import ClasHead
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import BACKBONES, MODELS

COUNTS = json.loads((Path(__file__).resolve().parents[1] / "golden" / "regnet_timm.json").read_text())["parameters"]
PUBLISHED = {  # depths, widths, group width; huggingface/transformers, convert_regnet_to_pytorch.py, and pycls's zoo
    "regnetx_002": ([1, 1, 4, 7], [24, 56, 152, 368], 8),
    "regnetx_004": ([1, 2, 7, 12], [32, 64, 160, 384], 16),
    "regnetx_006": ([1, 3, 5, 7], [48, 96, 240, 528], 24),
    "regnetx_008": ([1, 3, 7, 5], [64, 128, 288, 672], 16),
    "regnetx_016": ([2, 4, 10, 2], [72, 168, 408, 912], 24),
    "regnetx_032": ([2, 6, 15, 2], [96, 192, 432, 1008], 48),
    "regnetx_040": ([2, 5, 14, 2], [80, 240, 560, 1360], 40),
    "regnetx_064": ([2, 4, 10, 1], [168, 392, 784, 1624], 56),
    "regnetx_080": ([2, 5, 15, 1], [80, 240, 720, 1920], 120),
    "regnetx_120": ([2, 5, 11, 1], [224, 448, 896, 2240], 112),
    "regnetx_160": ([2, 6, 13, 1], [256, 512, 896, 2048], 128),
    "regnetx_320": ([2, 7, 13, 1], [336, 672, 1344, 2520], 168),
    "regnety_002": ([1, 1, 4, 7], [24, 56, 152, 368], 8),
    "regnety_004": ([1, 3, 6, 6], [48, 104, 208, 440], 8),
    "regnety_006": ([1, 3, 7, 4], [48, 112, 256, 608], 16),
    "regnety_008": ([1, 3, 8, 2], [64, 128, 320, 768], 16),
    "regnety_016": ([2, 6, 17, 2], [48, 120, 336, 888], 24),
    "regnety_032": ([2, 5, 13, 1], [72, 216, 576, 1512], 24),
    "regnety_040": ([2, 6, 12, 2], [128, 192, 512, 1088], 64),
    "regnety_064": ([2, 7, 14, 2], [144, 288, 576, 1296], 72),
    "regnety_080": ([2, 4, 10, 1], [168, 448, 896, 2016], 56),
    "regnety_120": ([2, 5, 11, 1], [224, 448, 896, 2240], 112),
    "regnety_160": ([2, 4, 11, 1], [224, 448, 1232, 3024], 112),
    "regnety_320": ([2, 5, 12, 1], [232, 696, 1392, 3712], 232),
}
TEACHER = {  # as PASSL's distillation recipes write it
    "name": "Classification",
    "backbone": {
        "name": "RegNet",
        **{"w_a": 106.23, "w_0": 200, "w_m": 2.48, "d": 18, "group_w": 112, "bot_mul": 1.0, "q": 8, "se_on": True},
    },
    "head": {"name": "ClasHead", "in_channels": 3024, "num_classes": 1000},
}
TINY = {"w_a": 12.0, "w_0": 8, "w_m": 2.0, "d": 6, "group_w": 4, "bot_mul": 1.0}
TINY_DEPTHS, TINY_WIDTHS = [1, 1, 2, 2], [8, 16, 32, 64]


def trainable(layer):
    return {name: value for name, value in layer.named_parameters() if not value.stop_gradient}


def noise(*shape):
    return paddle.to_tensor(np.random.default_rng(0).normal(size=shape), dtype="float32")


@pytest.fixture
def tiny():
    """Make a RegNet of four stages and six blocks whose branches count: fresh ones begin as their shortcuts."""

    def make(**config):
        paddle.seed(0)
        model = RegNet(**{**TINY, "se_on": True, **config})
        for name, parameter in model.named_parameters():
            if name.endswith("conv2._batch_norm.weight"):
                paddle.assign(paddle.ones_like(parameter), parameter)
        return model

    return make


# Sizes.


def test_there_are_twelve_x_and_twelve_y():
    assert VARIANTS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_line_of_widths_gives_the_published_stages(name):
    depths, widths, group_w = PUBLISHED[name]
    line = {key: value for key, value in VARIANTS[name].items() if key != "se_on"}
    stages = stages_of(**line, q=8)
    assert [stage.depth for stage in stages] == depths
    assert [stage.width for stage in stages] == [stage.inner_width for stage in stages] == widths
    assert [stage.group_w for stage in stages] == [min(group_w, width) for width in widths]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_have_timms_sizes(name):
    with paddle.LazyGuard():  # shapes without values
        backbone = BACKBONES.build({"name": name})
        head = ClasHead(backbone.num_features)
    counted = sum(math.prod(value.shape) for layer in (backbone, head) for value in trainable(layer).values())
    assert counted == COUNTS[name]
    assert backbone.num_features == PUBLISHED[name][1][-1]


def test_passls_teacher_has_the_size_of_deits_per_stage():
    with paddle.LazyGuard():
        model = MODELS.build(TEACHER)
    sizes = dict.fromkeys(["conv", "s1", "s2", "s3", "s4", "head"], 0)
    for name, value in trainable(model).items():
        part = name.replace("backbone.", "").split(".")[0].split("_")[0]
        sizes[part] += math.prod(value.shape)
    stages = {"s1": 648_768, "s2": 3_777_032, "s3": 54_604_200, "s4": 21_534_212}
    assert sizes == {"conv": 928, **stages, "head": 3_025_000}
    assert sum(sizes.values()) == 83_590_140
    squeezed = [
        block.se_block.squeeze.weight.shape[1] for block in model.backbone.sublayers() if "se_block" in dir(block)
    ]
    assert squeezed == [8, 56, 56, 112, 112, 112, 112, *[308] * 10, 308]


def test_the_teachers_preset_has_the_numbers_of_passls_recipes():
    assert {"name": "RegNet", "q": 8, **VARIANTS["regnety_160"]} == TEACHER["backbone"]


def test_even_the_narrowest_block_squeezes_to_a_channel():
    model = RegNet(w_a=0.0, w_0=1, w_m=2.0, d=2, group_w=1, bot_mul=1.0, q=1, se_on=True, stem_w=1)
    assert [value.shape for name, value in model.named_parameters() if "squeeze.weight" in name] == [[1, 1], [1, 1]]


LINES = {
    "w_a": st.floats(0, 50),
    "w_0": st.integers(1, 20).map(lambda number: 8 * number),
    "w_m": st.floats(1.5, 3),
    "d": st.integers(1, 25),
}


@given(**LINES, group_w=st.integers(1, 200), bot_mul=st.sampled_from([0.25, 0.3, 0.5, 1.0, 1.7, 4.0]))
def test_any_line_gives_rising_widths_that_their_groups_divide(d, group_w, bot_mul, **line):
    stages = stages_of(**line, d=d, group_w=group_w, bot_mul=bot_mul, q=8)
    widths = [stage.width for stage in stages]
    assert widths == sorted(widths)
    assert sum(stage.depth for stage in stages) == d
    for stage in stages:
        assert 1 <= stage.group_w <= group_w and stage.inner_width % stage.group_w == 0
        assert stage.width == int(stage.inner_width / bot_mul) >= 1


@given(**LINES)
def test_no_width_is_farther_from_the_line_than_half_a_step_of_w_m_and_of_q(w_a, w_0, w_m, d):
    stages = stages_of(w_a, w_0, w_m, d, group_w=1, bot_mul=1.0, q=8)
    widths = [stage.width for stage in stages for _ in range(stage.depth)]
    for number, width in enumerate(widths):
        wanted, half_a_step = w_0 + w_a * number, math.sqrt(w_m) * (1 + 1e-9)
        assert width % 8 == 0
        assert (width - 4) / half_a_step <= wanted <= (width + 4) * half_a_step


# Names.


def published_names(depths, se_on):
    """Names of PASSL's layers, without the biases of its convolutions."""
    norm = ["weight", "bias", "_mean", "_variance"]
    layer = ["_conv.weight", *(f"_batch_norm.{part}" for part in norm)]
    names = {f"conv.{part}" for part in layer}
    for stage, depth in enumerate(depths, start=1):
        for position in range(1, depth + 1):
            layers = ["conv0", "conv1", "conv2", *(["short"] if position == 1 else [])]
            block = [f"{name}.{part}" for name in layers for part in layer]
            if se_on:
                block += [f"se_block.{name}.{part}" for name in ("squeeze", "excitation") for part in norm[:2]]
            names |= {f"s{stage}_b{position}.{name}" for name in block}
    return names


@pytest.mark.parametrize(("config", "se_on"), [({}, False), ({"se_on": False}, False), ({"se_on": True}, True)])
def test_parameters_have_passls_names(config, se_on):
    assert RegNet(**TINY, **config).state_dict().keys() == published_names(TINY_DEPTHS, se_on)


def test_the_teacher_has_an_entry_for_every_one_of_deits():
    with paddle.LazyGuard():
        names = MODELS.build(TEACHER).state_dict().keys()
    expected = {f"backbone.{name}" for name in published_names([2, 4, 11, 1], True)}
    assert names == expected | {"head.fc_cls.weight", "head.fc_cls.bias"}
    assert len(names) == 428 - 59  # DeiT's file counts the batches of its 59 BatchNorms


def test_batch_norm_is_that_of_the_reference():
    norms = [layer for layer in RegNet(**TINY).sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    assert len(norms) == 1 + 3 * 6 + 4
    assert {(norm._epsilon, norm._momentum) for norm in norms} == {(1e-5, 0.9)}


def test_nothing_is_exempt_from_weight_decay_by_name():
    assert RegNet(**TINY).no_weight_decay() == set()


# First weights.


@pytest.fixture(scope="module")
def fresh():
    paddle.seed(0)
    model = RegNet(w_a=96.0, w_0=64, w_m=2.0, d=6, group_w=16, bot_mul=1.0, se_on=True)
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "fan_out"),
    [
        ("conv._conv.weight", 9 * 32),
        ("s1_b1.conv0._conv.weight", 64),
        ("s3_b1.conv1._conv.weight", 9 * 256),  # 16 groups, which pycls does not count
        ("s4_b2.conv2._conv.weight", 512),
        ("s4_b1.short._conv.weight", 512),
        ("s4_b2.se_block.squeeze.weight", 128),
        ("s4_b2.se_block.excitation.weight", 512),
    ],
)
def test_first_weights_have_pyclss_deviation(fresh, name, fan_out):
    values = fresh[name]
    assert values.std() == pytest.approx(math.sqrt(2 / fan_out), rel=4 / math.sqrt(values.size))
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("conv0._batch_norm.weight", 1),
        ("conv1._batch_norm.weight", 1),
        ("conv2._batch_norm.weight", 0),
        ("short._batch_norm.weight", 1),
        ("_batch_norm.bias", 0),
        ("_batch_norm._mean", 0),
        ("_batch_norm._variance", 1),
        ("squeeze.bias", 0),
        ("excitation.bias", 0),
    ],
)
def test_first_weights_of_norms_and_biases(fresh, part, value):
    found = [values for name, values in fresh.items() if name.endswith(part)]
    assert found and all((values == value).all() for values in found)


def test_a_new_block_is_its_shortcut():
    model, images = RegNet(**TINY), noise(2, 3, 32, 32)
    model.eval()
    first, second = (model.extract(images, stage).numpy() for stage in ("block_2", "block_3"))
    np.testing.assert_array_equal(first, second)


# Images and stages.


@pytest.mark.parametrize("size", [(1, 1), (1, 65), (32, 32), (33, 64), (224, 31)])
@pytest.mark.parametrize("training", [False, True])
def test_any_image_gives_a_map_of_a_32nd_of_its_sides(tiny, size, training):
    model = tiny()
    model.train() if training else model.eval()
    maps = model(noise(2, 3, *size))
    assert maps.shape == [2, model.num_features, *(math.ceil(side / 32) for side in size)]
    assert np.isfinite(maps.numpy()).all()


@pytest.mark.parametrize("in_chans", [1, 4])
def test_images_have_any_channels(tiny, in_chans):
    assert tiny(in_chans=in_chans)(noise(1, in_chans, 32, 32)).shape == [1, 64, 1, 1]


def test_extract_knows_the_stem_every_block_every_stage_and_the_pooled_map():
    blocks, stages = [f"block_{number}" for number in range(6)], [f"stage_{number}" for number in range(1, 5)]
    assert RegNet(**TINY).stages == ("stem", *blocks, *stages, "feature_map", "pooled")


def test_what_extract_gives_has_the_sides_and_widths_of_its_stage(tiny):
    model, images = tiny(), noise(2, 3, 64, 96)
    shapes = {stage: model.extract(images, stage).shape for stage in model.stages}
    expected = {"stem": [2, 32, 32, 48], "feature_map": [2, 64, 2, 3], "pooled": [2, 64]}
    block = 0
    for number, (depth, width) in enumerate(zip(TINY_DEPTHS, TINY_WIDTHS), start=1):
        shape = [2, width, 32 // 2**number, 48 // 2**number]
        expected.update({f"block_{block + position}": shape for position in range(depth)})
        expected[f"stage_{number}"] = shape
        block += depth
    assert shapes == expected


def test_extract_and_forward_share_their_numbers(tiny):
    model, images = tiny(), noise(2, 3, 64, 96)
    model.eval()
    maps = model(images)
    for stage in ("feature_map", "stage_4", "block_5"):
        np.testing.assert_array_equal(model.extract(images, stage).numpy(), maps.numpy())
    np.testing.assert_array_equal(model.extract(images, "pooled").numpy(), maps.mean(axis=[2, 3]).numpy())
    for stage, block in (("stage_1", "block_0"), ("stage_2", "block_1"), ("stage_3", "block_3")):
        found, expected = model.extract(images, stage), model.extract(images, block)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_the_head_sees_the_pooled_map(tiny):
    backbone, images = tiny(), noise(2, 3, 40, 33)
    model = Classification(ClasHead(64, 5), backbone=backbone)
    model.eval()
    expected = model.head.fc_cls(backbone.extract(images, "pooled"))
    np.testing.assert_allclose(model(images).numpy(), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("stage", ["cls_token", "stage_0", "stage_5", "block_6", "block_-1", ""])
def test_an_unknown_stage_is_refused_with_the_known_ones(stage):
    with pytest.raises(ValueError) as caught:
        RegNet(**TINY).extract(noise(1, 3, 32, 32), stage)
    blocks = ", ".join(f"block_{number}" for number in range(6))
    known = f"stem, {blocks}, stage_1, stage_2, stage_3, stage_4, feature_map, pooled"
    assert str(caught.value) == f"RegNet has no stage '{stage}'; known: {known}"


# Training and evaluation.


def test_in_an_evaluation_an_image_does_not_see_its_neighbours_and_leaves_no_trace(tiny):
    model, images = tiny(), noise(3, 3, 48, 64)
    model.eval()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    together, alone = model(images), paddle.concat([model(images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-5)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


@pytest.mark.parametrize("config", [{}, {"se_on": False}, {"bot_mul": 0.5}, {"bot_mul": 2.0, "in_chans": 1}])
def test_every_trainable_parameter_gets_a_gradient(tiny, config):
    model = Classification(ClasHead(64, 3), backbone=tiny(**config))
    images = noise(6, config.get("in_chans", 3), 64, 64)
    model.train_iter(images, paddle.to_tensor([0, 1, 2, 0, 1, 2]))["loss"].backward()
    for name, parameter in trainable(model).items():
        gradient = parameter.grad.numpy()
        assert np.isfinite(gradient).all() and (gradient != 0).any(), name


# Options of the mathematics: XCiT has some, RegNet none.


def test_a_regnet_has_no_maths_options():
    model = RegNet(**TINY)
    model.set_maths()
    assert RegNet.MATHS == model.maths == {}
    with pytest.raises(ValueError) as caught:
        model.set_maths(gram="tokens")
    assert str(caught.value) == "RegNet has one way to compute only, no 'gram'"


# Errors.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_a": -1.0}, "w_a must not be negative, but is -1.0"),
        ({"w_0": 0}, "w_0 must be at least 1, not 0"),
        ({"w_0": 20}, "w_0 20 is not a multiple of q 8"),
        ({"w_m": 1.0}, "w_m must be above 1, not 1.0"),
        ({"d": 0}, "d must be at least 1, not 0"),
        ({"group_w": 0}, "group_w must be at least 1, not 0"),
        ({"bot_mul": 0.0}, "bot_mul must be above 0, not 0.0"),
        ({"bot_mul": 0.1}, "bot_mul 0.1 leaves nothing of a block of 8 channels"),
        ({"bot_mul": 1.9, "w_0": 1, "q": 1}, "bot_mul 1.9 leaves nothing of a block of 1 channels"),
        ({"q": 0}, "q must be at least 1, not 0"),
        ({"stem_w": 0}, "stem_w must be at least 1, not 0"),
        ({"in_chans": 0}, "in_chans must be at least 1, not 0"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError) as caught:
        BACKBONES.build({"name": "RegNet", **TINY, **change}, "model.backbone")
    path = f"model.backbone.{message.split()[0]}"  # the message begins with the key
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("channels", [1, 32])
def test_images_with_other_channels_are_refused(channels):
    with pytest.raises(DataError) as caught:
        RegNet(**TINY)(noise(1, channels, 32, 32))
    assert str(caught.value) == f"images have {channels} channels, but the model's in_chans is 3"
