"""CrossViT's sizes, names, first weights, inputs, stages, configs and errors.

What it computes is in test_crossvit_reference.py.
"""

import functools
import math
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from passl_xcit.engine.builder import build_model, check_config
from passl_xcit.modeling.architectures import Classification
from passl_xcit.modeling.backbones.crossvit import VARIANTS, CrossViT
from passl_xcit.modeling.heads import SwinTransformerClsHead
from passl_xcit.modeling.resize import scale_images
from passl_xcit.utils.config import load_config
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import BACKBONES, MODELS, TRANSFORMS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "crossvit"
SIZES = {  # IBM/CrossViT's and timm's models with heads of 1000 classes
    "crossvit_tiny_240": 7_014_800,
    "crossvit_small_240": 26_856_272,
    "crossvit_base_240": 105_025_232,
    "crossvit_9_240": 8_553_296,
    "crossvit_15_240": 27_528_464,
    "crossvit_18_240": 43_271_408,
    "crossvit_9_dagger_240": 8_776_592,
    "crossvit_15_dagger_240": 28_209_008,
    "crossvit_18_dagger_240": 44_266_976,
    "crossvit_15_dagger_408": 28_500_080,
    "crossvit_18_dagger_408": 44_606_560,
}
TINY = {
    "img_size": [24, 32],
    "embed_dim": [8, 16],
    "depth": [[1, 2], [2, 1]],
    "num_heads": [2, 4],
    "mlp_ratio": [2, 3],
}


def crossvit(**config):
    return CrossViT(**{**TINY, **config})


def trainable(layer):
    return {name: value for name, value in layer.named_parameters() if not value.stop_gradient}


def noise(*shape):
    return paddle.to_tensor(np.random.default_rng(0).normal(size=shape), dtype="float32")


def count(layer):
    return sum(math.prod(value.shape) for value in trainable(layer).values())


@functools.cache
def shapes_of(name):
    """The variant with a head of 1000 classes: shapes without values."""
    with paddle.LazyGuard():
        backbone = BACKBONES.build({"name": name})
        return Classification(SwinTransformerClsHead(backbone.num_features), backbone)


# Sizes and names.


@pytest.mark.parametrize("name", SIZES)
def test_the_eleven_variants_have_their_published_sizes(name):
    assert count(shapes_of(name)) == SIZES[name]


def test_there_are_eleven():
    assert VARIANTS.keys() == SIZES.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_name_tells_its_image_size_and_its_patch_embedding(name):
    backbone = shapes_of(name).backbone
    assert backbone.img_size == {"240": (240, 224), "408": (408, 384)}[name.split("_")[-1]]
    assert [embed.shape[1] for embed in backbone.pos_embed] == {"240": [401, 197], "408": [1157, 577]}[name[-3:]]
    assert isinstance(backbone.patch_embed[0].proj, paddle.nn.Sequential) == ("dagger" in name)


def published_names(depth, dagger):
    """Names in IBM's weight files, under PASSL's prefixes."""
    both = ("weight", "bias")
    patch = [f"{place}." for place in (0, 2, 4)] if dagger else [""]
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    fusion = ("norm1", "attn.wq", "attn.wk", "attn.wv", "attn.proj")
    names = []
    for r in (0, 1):
        names += [f"cls_token.{r}", f"pos_embed.{r}"]
        layers = [f"norm.{r}"] + [f"patch_embed.{r}.proj.{place}".rstrip(".") for place in patch]
        for b, blocks in enumerate(depth):
            layers += [f"blocks.{b}.blocks.{r}.{number}.{layer}" for number in range(blocks[r]) for layer in block]
            layers += [f"blocks.{b}.{projs}.{r}.{place}" for projs in ("projs", "revert_projs") for place in (0, 2)]
            layers += [f"blocks.{b}.fusion.{r}.{layer}" for layer in fusion]
        names += [f"{layer}.{part}" for layer in layers for part in both]
    return {f"backbone.{name}" for name in names} | {f"head.fc_cls.{r}.{part}" for r in (0, 1) for part in both}


@pytest.mark.parametrize(
    ("name", "depth", "entries"),
    [
        ("crossvit_9_240", [[1, 3]] * 3, 268),
        ("crossvit_15_dagger_408", [[1, 5]] * 3, 348),
        ("CrossViT", [[1, 4]] * 3, 304),
    ],
)
def test_parameters_have_ibms_names_under_passls_prefixes(name, depth, entries):
    state = shapes_of(name).state_dict()
    assert state.keys() == published_names(depth, "dagger" in name)
    assert len(state) == entries


def test_branches_of_uneven_depth_have_as_many_blocks_as_they_ask_for():
    model = Classification(SwinTransformerClsHead([8, 16]), crossvit())
    assert model.state_dict().keys() == published_names(TINY["depth"], dagger=False)


@pytest.mark.parametrize("config", [{}, {"multi_conv": True}])
def test_what_is_not_to_be_decayed_exists_and_is_what_ibm_meant(config):
    model = crossvit(**config)
    undecayed = {"cls_token.0", "cls_token.1", "pos_embed.0", "pos_embed.1"}
    assert model.no_weight_decay() == undecayed
    assert undecayed == {name for name, value in trainable(model).items() if value.ndim == 3}


def test_ibms_third_values_of_depth_and_mlp_ratio_change_nothing():
    with paddle.LazyGuard():
        short, long = crossvit(), crossvit(depth=[[1, 2, 0], [2, 1, 0]], mlp_ratio=[2, 3, 1])
    shapes = [{name: value.shape for name, value in trainable(model).items()} for model in (short, long)]
    assert shapes[0] == shapes[1]


# Stochastic depth: linear over the longer branch of all stages.


def test_stochastic_depth_grows_linearly_and_fusion_has_the_last_rate_of_its_stage():
    model = CrossViT(**{**TINY, "depth": [[1, 3], [1, 3], [1, 3]]}, drop_path_rate=0.4)
    for stage, block in enumerate(model.blocks):
        expected = [0.4 * step / 8 for step in range(3 * stage, 3 * stage + 3)]
        small, large = ([layer.drop_path.rate for layer in branch] for branch in block.blocks)
        assert large == pytest.approx(expected)
        assert small == pytest.approx(expected[:1])
        assert [fusion.drop_path.rate for fusion in block.fusion] == pytest.approx([expected[-1]] * 2)


def test_stochastic_depth_follows_the_longer_branch_whichever_it_is():
    model = crossvit(drop_path_rate=0.3)
    rates = [[[layer.drop_path.rate for layer in branch] for branch in block.blocks] for block in model.blocks]
    assert rates[0] == [pytest.approx([0.0]), pytest.approx([0.0, 0.1])]
    assert rates[1] == [pytest.approx([0.2, 0.3]), pytest.approx([0.2])]


# First weights. The numbers are torch's defaults and IBM's _init_weights.


@pytest.fixture(scope="module")
def fresh():
    paddle.seed(0)
    config = {"embed_dim": [64, 128], "depth": [[1, 1]], "img_size": [48, 32]}
    weights = {}
    for multi_conv in (False, True):
        model = CrossViT(**{**TINY, **config}, multi_conv=multi_conv)
        weights.update({name: value.numpy() for name, value in model.state_dict().items()})
    return weights


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("patch_embed.0.proj.weight", 1 / math.sqrt(3 * 3 * 144)),
        ("patch_embed.1.proj.weight", 1 / math.sqrt(3 * 3 * 256)),
        ("patch_embed.0.proj.0.weight", 1 / math.sqrt(3 * 3 * 49)),
        ("patch_embed.1.proj.4.weight", 1 / math.sqrt(3 * 64 * 9)),
        ("patch_embed.1.proj.bias", 1 / math.sqrt(3 * 3 * 256)),
        ("blocks.0.blocks.0.0.attn.qkv.weight", 0.02),
        ("blocks.0.fusion.1.attn.wk.weight", 0.02),
        ("blocks.0.revert_projs.0.2.weight", 0.02),
        ("pos_embed.0", 0.02),
        ("pos_embed.1", 0.02),
        ("cls_token.0", 0.02),
        ("cls_token.1", 0.02),
    ],
)
def test_first_weights_have_the_references_deviation(fresh, name, deviation):
    values = fresh[name]
    assert values.std() == pytest.approx(deviation, rel=0.03 if values.size > 2000 else 0.25)
    assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)


@pytest.mark.parametrize(
    ("part", "value"),
    [("norm1.weight", 1), ("norm.0.weight", 1), ("norm2.bias", 0), ("qkv.bias", 0), ("wq.bias", 0), ("fc2.bias", 0)]
    + [("projs.1.0.weight", 1), ("revert_projs.0.0.bias", 0), ("projs.0.2.bias", 0)],
)
def test_first_weights_of_norms_and_biases(fresh, part, value):
    found = [values for name, values in fresh.items() if f".{name}".endswith(f"{part}")]
    assert found and all((values == value).all() for values in found)


# Image sizes of the model.


@given(st.integers(1, 60), st.sampled_from([2, 4, 8, 16, 32]))
@settings(max_examples=30)
def test_one_img_size_gives_the_second_branch_the_nearest_fitting_size_to_14_15ths(patches, second):
    side = 12 * patches
    with paddle.LazyGuard():
        model = crossvit(img_size=side, patch_size=[12, second], depth=[[1, 1]])
    first_side, second_side = model.img_size
    assert first_side == side and second_side % second == 0 and second_side >= second
    assert abs(second_side - side * 14 / 15) <= second / 2 or second_side == second
    assert [embed.shape[1] for embed in model.pos_embed] == [1 + patches**2, 1 + (second_side // second) ** 2]


@pytest.mark.parametrize(("side", "sizes"), [(240, (240, 224)), (408, (408, 384)), (384, (384, 352)), (12, (12, 16))])
def test_img_sizes_of_ibms_models_and_others(side, sizes):
    with paddle.LazyGuard():
        assert crossvit(img_size=side).img_size == sizes


def test_a_variant_takes_another_img_size():
    with paddle.LazyGuard():
        model = BACKBONES.build({"name": "crossvit_9_dagger_240", "img_size": [120, 64]})
    assert [embed.shape for embed in model.pos_embed] == [[1, 101, 128], [1, 17, 256]]


# Images.


@pytest.mark.parametrize("multi_conv", [False, True], ids=["conv", "multi_conv"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(24, 24), (32, 32), (24, 40), (40, 24), (1, 1), (7, 90), (100, 3)])
def test_images_of_any_size_give_two_class_tokens(size, training, multi_conv):
    model = crossvit(multi_conv=multi_conv)
    model.train() if training else model.eval()
    features = model(noise(2, 3, *size))
    assert isinstance(features, tuple)
    assert [branch.shape for branch in features] == [[2, 8], [2, 16]]
    assert model.num_features == (8, 16)
    assert all(np.isfinite(branch.numpy()).all() for branch in features)


@pytest.mark.parametrize("in_chans", [1, 2, 5])
@pytest.mark.parametrize("num_classes", [1, 7])
def test_images_have_any_channels_and_models_any_classes(in_chans, num_classes):
    model = Classification(SwinTransformerClsHead([8, 16], num_classes), crossvit(in_chans=in_chans))
    assert model(noise(2, in_chans, 24, 24)).shape == [2, num_classes]


def test_in_an_evaluation_an_image_does_not_see_its_neighbours():
    model = crossvit(drop_path_rate=0.5, drop_rate=0.5)
    model.eval()
    images = noise(3, 3, 30, 20)
    together = model(images)
    for branch in (0, 1):
        alone = paddle.concat([model(images[i : i + 1])[branch] for i in range(3)])
        np.testing.assert_allclose(together[branch].numpy(), alone.numpy(), atol=1e-5)


def test_an_image_of_another_size_leaves_no_trace():
    model = crossvit()
    model.eval()
    before = model(noise(1, 3, 24, 24))[0].numpy()
    model(noise(1, 3, 50, 24))
    np.testing.assert_array_equal(model(noise(1, 3, 24, 24))[0].numpy(), before)


@pytest.mark.parametrize("rates", [{"drop_path_rate": 0.5}, {"drop_rate": 0.5}, {"attn_drop_rate": 0.5}])
def test_training_draws_from_the_frameworks_seed(rates):
    model, images = crossvit(**rates), noise(2, 3, 24, 24)

    def forward(seed):
        paddle.seed(seed)
        return b"".join(branch.numpy().tobytes() for branch in model(images))

    assert forward(1) == forward(1) != forward(2)


@pytest.mark.parametrize("config", [{}, {"multi_conv": True}, {"qkv_bias": False}, {"in_chans": 1}, {"img_size": 36}])
def test_every_trainable_parameter_gets_a_gradient(config):
    model = Classification(SwinTransformerClsHead([8, 16], 3), crossvit(**config))
    images = noise(6, config.get("in_chans", 3), 24, 30)
    model.train_iter(images, paddle.to_tensor([0, 1, 2, 0, 1, 2]))["loss"].backward()
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, name
        gradient = np.abs(parameter.grad.numpy())
        assert np.isfinite(gradient).all(), name
        assert gradient.max() > 1e-7 or name.endswith("wk.bias"), name  # softmax does not see what all keys have


def test_the_saved_program_computes_what_the_model_computes(tmp_path):
    model = crossvit(depth=[[1, 1]])
    model.eval()
    images = noise(3, 3, 30, 26)
    expected = [branch.numpy() for branch in model(images)]
    spec = [paddle.static.InputSpec([None, 3, 30, 26], "float32")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec, full_graph=True), str(tmp_path / "crossvit"))
    for found, branch in zip(paddle.jit.load(str(tmp_path / "crossvit"))(images), expected):
        np.testing.assert_allclose(found.numpy(), branch, rtol=0, atol=1e-5)


# Scaling of the images to a branch's size.


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["bicubic", "bilinear_aligned"]))
def test_a_scaled_image_of_one_colour_keeps_it(height, width, side, scaling):
    scaled = scale_images(paddle.full([1, 2, height, width], 0.7), side, scaling)
    np.testing.assert_allclose(scaled.numpy(), np.full((1, 2, side, side), 0.7), rtol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 40), st.sampled_from(["bicubic", "bilinear_aligned"]))
def test_a_mirrored_image_is_scaled_to_the_mirrored_one(height, width, side, scaling):
    images = noise(1, 1, height, width)
    mirrored = scale_images(images.flip([2, 3]), side, scaling)
    np.testing.assert_allclose(mirrored.numpy(), scale_images(images, side, scaling).flip([2, 3]).numpy(), atol=1e-4)


@pytest.mark.parametrize(("scaling", "mode"), [("bicubic", "bicubic"), ("bilinear_aligned", "bilinear")])
@pytest.mark.parametrize("size", [(24, 24), (31, 17), (60, 90), (5, 64), (1, 1)])
def test_images_are_scaled_as_paddles_own_kernel_does(scaling, mode, size):
    images = noise(2, 3, *size)
    arguments = {"size": [24, 24], "mode": mode, "align_corners": scaling == "bilinear_aligned"}
    expected = paddle.nn.functional.interpolate(images, **arguments)
    np.testing.assert_allclose(scale_images(images, 24, scaling).numpy(), expected.numpy(), atol=2e-5)


# Stages.


def test_the_stages_are_named():
    stages = ("cls_token", "patch_tokens", "feature_map")
    assert crossvit().stages == (*stages, "block_0", "block_1")
    assert crossvit(depth=[[1, 1]]).stages == (*stages, "block_0")


def test_the_stages_have_their_shapes():
    model, images = crossvit(img_size=[36, 64]), noise(2, 3, 40, 30)
    shapes = {stage: [branch.shape for branch in model.extract(images, stage)] for stage in model.stages}
    assert shapes == {
        "cls_token": [[2, 8], [2, 16]],
        "patch_tokens": [[2, 9, 8], [2, 16, 16]],
        "feature_map": [[2, 8, 3, 3], [2, 16, 4, 4]],
        "block_0": [[2, 10, 8], [2, 17, 16]],
        "block_1": [[2, 10, 8], [2, 17, 16]],
    }


def test_the_stages_belong_together():
    model, images = crossvit(), noise(2, 3, 24, 24)
    model.eval()
    cls, patches, maps, last = (model.extract(images, stage) for stage in (*model.stages[:3], "block_1"))
    for r in (0, 1):
        np.testing.assert_array_equal(cls[r].numpy(), model(images)[r].numpy())
        normed = model.norm[r](last[r]).numpy()
        np.testing.assert_allclose(cls[r].numpy(), normed[:, 0], atol=1e-6)
        np.testing.assert_allclose(patches[r].numpy(), normed[:, 1:], atol=1e-6)
        rows = maps[r].numpy().transpose(0, 2, 3, 1).reshape(patches[r].shape)
        np.testing.assert_array_equal(rows, patches[r].numpy())


def test_an_unknown_stage_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="CrossViT has no stage 'cls_tokens'; .*cls_token"):
        crossvit().extract(noise(1, 3, 24, 24), "cls_tokens")


# Another project's maths.


def test_the_maths_are_ibms_unless_asked():
    assert crossvit().maths == {"input_scaling": "bicubic", "act": "gelu", "block_norm_eps": 1e-6}


@pytest.mark.parametrize("images", [noise(1, 3, 24, 24), noise(1, 3, 31, 50)], ids=["native", "scaled"])
def test_switching_a_built_model_is_building_it_so(images):
    options = CrossViT.MATHS["mindcv"]
    paddle.seed(3)
    switched = crossvit()
    paddle.seed(3)
    built = crossvit(**options)
    switched.set_maths(**options)
    assert switched.maths == built.maths == options
    for one, other in zip(switched(images), built(images)):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_switching_there_and_back_changes_nothing():
    model, images = crossvit(), noise(2, 3, 30, 30)
    before, parameters = model(images)[1].numpy(), {id(value) for value in model.parameters()}
    original = model.maths
    model.set_maths(**CrossViT.MATHS["mindcv"])
    assert np.abs(model(images)[1].numpy() - before).max() > 1e-5
    model.set_maths(**original)
    np.testing.assert_array_equal(model(images)[1].numpy(), before)
    assert {id(value) for value in model.parameters()} == parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "bicubic"}, "CrossViT has no other maths named 'scaling'; did you mean 'input_scaling'?"),
        ({"depth": [[1, 1]]}, "CrossViT has no other maths named 'depth'"),
        ({"input_scaling": "nearest"}, "input_scaling must be bicubic or bilinear_aligned, not 'nearest'"),
        ({"input_scaling": "bilinear_aligned", "act": "relu"}, "act must be gelu or gelu_tanh, not 'relu'"),
        ({"act": "gelu_tanh", "block_norm_eps": 0}, "block_norm_eps must lie between 0 and 1, not 0"),
    ],
)
def test_wrong_maths_are_refused_and_leave_the_model_as_it_was(options, message):
    model, images = crossvit(), noise(1, 3, 30, 30)
    maths, before = model.maths, model(images)[0].numpy()
    with pytest.raises(ValueError) as caught:
        model.set_maths(**options)
    assert str(caught.value).startswith(message)
    assert model.maths == maths
    np.testing.assert_array_equal(model(images)[0].numpy(), before)


# Errors.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 250}, "img_size 250 is not a multiple of its branch's patch_size 12, as 252 is"),
        ({"img_size": [240, 230]}, "img_size 230 is not a multiple of its branch's patch_size 16, as 224 is"),
        ({"img_size": [0, 224]}, "img_size 0 is not a multiple of its branch's patch_size 12, as 12 is"),
        ({"img_size": [240, -224]}, "img_size -224 is not a multiple of its branch's patch_size 16, as 16 is"),
        ({"img_size": [240]}, "img_size needs one value for each of the two branches, not [240]"),
        ({"patch_size": [12, 16, 20]}, "patch_size needs one value for each of the two branches, not [12, 16, 20]"),
        ({"patch_size": [12, 0]}, "patch_size must be at least 1, not 0"),
        ({"embed_dim": [8]}, "embed_dim needs one value for each of the two branches, not [8]"),
        ({"embed_dim": [0, 16]}, "embed_dim must be at least 1, not 0"),
        ({"num_heads": [3, 4]}, "embed_dim 8 is not a multiple of num_heads 3"),
        ({"num_heads": [2, 0]}, "num_heads must be at least 1, not 0"),
        ({"mlp_ratio": [2]}, "mlp_ratio needs one value for each of the two branches, not [2]"),
        ({"mlp_ratio": [2, 0]}, "mlp_ratio must be above 0, not 0"),
        ({"depth": []}, "depth has no stage: give a list such as [[1, 4], [1, 4], [1, 4]]"),
        ({"depth": [[1]]}, "depth has a stage [1]: give two numbers of blocks, 1 or more, such as [1, 4]"),
        (
            {"depth": [[1, 2], [0, 2]]},
            "depth has a stage [0, 2]: give two numbers of blocks, 1 or more, such as [1, 4]",
        ),
        ({"depth": [[1, 2, 1]]}, "depth has a stage [1, 2, 1]: give two numbers of blocks, 1 or more, such as [1, 4]"),
        ({"in_chans": 0}, "in_chans must be at least 1, not 0"),
        ({"multi_conv": True, "patch_size": [8, 16]}, "multi_conv needs patch sizes of 12 or 16, not 8"),
        ({"multi_conv": True, "embed_dim": [2, 16]}, "multi_conv needs an embed_dim of at least 4, not 2"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must lie in [0, 1), not 1.0"),
        ({"drop_rate": -0.1}, "drop_rate must lie in [0, 1), not -0.1"),
        ({"attn_drop_rate": 2}, "attn_drop_rate must lie in [0, 1), not 2"),
        ({"act": "relu"}, "act must be gelu or gelu_tanh, not 'relu'"),
        ({"input_scaling": "nearest"}, "input_scaling must be bicubic or bilinear_aligned, not 'nearest'"),
        ({"block_norm_eps": -1e-6}, "block_norm_eps must lie between 0 and 1, not -1e-06"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(ConfigError) as caught:
        BACKBONES.build({"name": "CrossViT", **TINY, **change}, "model.architecture")
    path = f"model.architecture.{message.split()[0]}"  # the message begins with the key
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("img_size", "240", "a list of int"),
        ("depth", [1, 4], "a list of a list of int"),
        ("patch_size", 16, "a list of int"),
        ("multi_conv", 1, "true/false"),
    ],
)
def test_arguments_of_another_type_are_refused(argument, value, expected):
    with pytest.raises(ConfigError, match=f"model.{argument}: crossvit_9_240 expects .*{expected}, not "):
        BACKBONES.check({"name": "crossvit_9_240", argument: value}, "model")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 24, 24), "images have 1 channels, but the model's in_chans is 3"),
        ((1, 24, 24, 3), "images have 24 channels, but the model's in_chans is 3"),
        ((1, 3, 0, 24), "images of 0 x 24 pixels have nothing to look at"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(DataError) as caught:
        crossvit()(paddle.zeros(shape))
    assert str(caught.value) == message


# Configs.


def config_of(name):
    return load_config(CONFIGS / f"{name}.yaml", [])


def test_every_variant_has_a_config():
    assert {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_ascend")} == VARIANTS.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_config_builds_its_variant_with_stochastic_depth(name):
    cfg = config_of(name)
    check_config(cfg, training=True)
    with paddle.LazyGuard():
        model = MODELS.build(cfg.to_dict()["model"], "model")
    assert count(model) == SIZES[name]
    assert model.backbone.blocks[-1].fusion[0].drop_path.rate == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "crossvit_9_dagger_240"])
def test_a_configs_model_runs(name):
    model = build_model(config_of(name))
    model.eval()
    logits = model(noise(1, 3, 240, 240))
    assert logits.shape == [1, 1000] and np.isfinite(logits.numpy()).all()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(500, 375), (300, 640), (100, 100)], ids=str)
def test_a_config_evaluates_on_squares_of_the_variants_size(name, size):
    image = Image.new("RGB", size, (255, 0, 0))
    for node in config_of(name).to_dict()["dataloader"]["val"]["dataset"]["transforms"]:
        image = TRANSFORMS.build(node)(image, None)
    assert image.shape == (3, VARIANTS[name]["img_size"], VARIANTS[name]["img_size"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_config_resizes_as_ibm_does(name):
    resize = config_of(name).to_dict()["dataloader"]["val"]["dataset"]["transforms"][0]
    assert resize == {
        "name": "Resize",
        "size": {240: 274, 408: 408}[VARIANTS[name]["img_size"]],
        "interpolation": "bicubic",
    }
