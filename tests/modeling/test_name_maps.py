"""Names and layouts of other projects' files: what their programs gave becomes ours, and goes back bit for bit."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_xcit.engine import builder  # noqa: F401  (fills the registries)
from passl_xcit.modeling.name_maps import RENAMES, recognise, written_as
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.registry import MODELS

PEERS = json.loads((Path(__file__).parents[1] / "golden" / "peer_names.json").read_text())
PEERS = {dialect: PEERS[dialect] for dialect in ("timm", "mmpretrain", "mindcv")}
FILES = [(dialect, model) for dialect, models in PEERS.items() for model in models]
PRESETS = {  # name at the peer's: our preset
    "xcit_nano_12_p16_224": "xcit_nano_12_p16",
    "xcit-nano-12-p16_3rdparty_in1k": "xcit_nano_12_p16",
    "xcit_tiny_12_p8_224": "xcit_tiny_12_p8",
    "xcit-tiny-12-p8_3rdparty_in1k": "xcit_tiny_12_p8",
    "xcit_tiny_12_p16_224": "xcit_tiny_12_p16",
    "crossvit_9": "crossvit_9_240",
}
FAMILY = {"xcit": "xcit", "cros": "crossvit", "regn": "regnet"}


def numbered(shapes):
    """An array for each name, whose every element tells where it stood."""
    arrays = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.array(index, "int64")
        else:
            size = int(np.prod(shape))
            arrays[name] = (np.arange(size, dtype="float32") + index).reshape(shape)
    return arrays


def pictured(shapes):
    """An array of the right shape for each name, without memory for its values."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def our_shapes(preset):
    with paddle.LazyGuard():
        backbone = {"name": preset}
        channels = MODELS_CHANNELS[preset]
        head = {"name": "SwinTransformerClsHead", "in_channels": channels}
        model = MODELS.build({"name": "Classification", "backbone": backbone, "head": head})
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


MODELS_CHANNELS = {
    "xcit_nano_12_p16": 128,
    "xcit_tiny_12_p8": 192,
    "xcit_tiny_12_p16": 192,
    "crossvit_9_240": [128, 256],
    "crossvit_9_dagger_240": [128, 256],
    "regnety_160": 3024,
    "regnety_002": 368,
}


@pytest.mark.parametrize(("dialect", "model"), FILES)
def test_a_file_of_a_peer_has_exactly_our_models_parameters(dialect, model):
    found = recognise(pictured(PEERS[dialect][model]))
    assert (found.family, found.dialect) == (FAMILY[model[:4]], dialect)
    assert {name: list(array.shape) for name, array in found.weights.items()} == our_shapes(PRESETS.get(model, model))


@pytest.mark.parametrize(("dialect", "model"), [file for file in FILES if file[1] != "regnety_160"])
def test_there_and_back_is_the_same_bit_for_bit(dialect, model):
    if dialect == "mindcv":
        pytest.skip("MindCV's files are read, not written")
    arrays = numbered(PEERS[dialect][model])
    assert_same(written_as(recognise(arrays), dialect), arrays)


def assert_same(have, want):
    assert have.keys() == want.keys()
    for name, array in want.items():
        assert have[name].dtype == array.dtype and have[name].shape == array.shape, name
        assert have[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("model", ["xcit_nano_12_p16_224", "crossvit_9_dagger_240", "regnety_002"])
def test_the_way_over_the_official_names_changes_nothing(model):
    timm = numbered(PEERS["timm"][model])
    official = written_as(recognise(timm), "official")
    assert_same(written_as(recognise(official), "timm"), timm)
    assert_same(written_as(recognise(official), "official"), official)


def test_official_names_of_xcit_are_facebookresearch_s():
    official = written_as(recognise(pictured(PEERS["timm"]["xcit_nano_12_p16_224"])), "official")
    assert len(official) == 383
    assert official["cls_attn_blocks.1.attn.qkv.weight"].shape == (384, 128)
    expected = ("pos_embeder.token_projection.bias", "patch_embed.proj.6.1.running_var", "head.weight", "cls_token")
    assert all(name in official for name in expected)


def test_official_names_of_crossvit_are_ibm_s():
    official = written_as(recognise(pictured(PEERS["timm"]["crossvit_9_240"])), "official")
    assert len(official) == 268
    expected = ("cls_token.1", "pos_embed.0", "blocks.2.revert_projs.1.2.weight", "blocks.0.fusion.0.attn.wq.bias")
    assert all(name in official for name in expected)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "_layers.",
        "backbone.",
        "module.backbone.",
        "Student.",
        "Teacher.",
        "module.module.",
        "_layers.Student.",
    ],
)
@pytest.mark.parametrize("model", ["xcit_nano_12_p16_224", "crossvit_9_240"])
def test_wrappers_of_the_whole_model_are_taken_off(prefix, model):
    shapes = PEERS["timm"][model]
    plain, wrapped = recognise(pictured(shapes)), recognise(pictured({prefix + name: s for name, s in shapes.items()}))
    assert wrapped.weights.keys() == plain.weights.keys() and wrapped.dialect == "timm"


def test_of_a_distillation_the_student_is_taken():
    student, teacher = PEERS["timm"]["xcit_nano_12_p16_224"], PEERS["timm"]["regnety_002"]
    both = {**{f"Teacher.{name}": s for name, s in teacher.items()}, **{f"Student.{n}": s for n, s in student.items()}}
    assert recognise(pictured(both)).weights.keys() == recognise(pictured(student)).weights.keys()


def ours(model, dialect="timm"):
    return recognise(numbered(PEERS[dialect][model]))


@pytest.mark.parametrize("model", ["xcit_nano_12_p16_224", "crossvit_9_240", "regnety_002"])
def test_our_own_files_are_recognised_and_unchanged(model):
    found = ours(model)
    again = recognise(found.weights)
    assert again.dialect == "paddle" and again.family == found.family
    assert_same(again.weights, found.weights)


@pytest.mark.parametrize("model", ["xcit_nano_12_p16_224", "crossvit_9_240"])
def test_paddle_files_with_official_names_are_not_transposed(model):
    """PaddleViT's and XCiT-PaddlePaddle's: no `backbone.`, the head is `head`, CrossViT's projection `out`."""
    found = ours(model)
    theirs = {
        name.replace("backbone.", "").replace("head.fc_cls.", "head."): array for name, array in found.weights.items()
    }
    if model.startswith("crossvit"):
        theirs = {
            name.replace("attn.proj.", "attn.out.") if ".blocks." in name else name: array
            for name, array in theirs.items()
        }
    again = recognise(theirs)
    assert again.dialect == "paddle"
    assert_same(again.weights, found.weights)


def test_square_matrices_are_transposed_too():
    found = ours("xcit_nano_12_p16_224")
    theirs = numbered(PEERS["timm"]["xcit_nano_12_p16_224"])["blocks.0.attn.proj.weight"]
    np.testing.assert_array_equal(found.weights["backbone.blocks.0.attn.proj.weight"], theirs.T)


def test_class_attentions_q_k_and_v_become_the_rows_of_qkv():
    arrays = numbered(PEERS["timm"]["xcit_nano_12_p16_224"])
    found = recognise(arrays).weights["backbone.cls_attn_blocks.0.attn.qkv.weight"]
    rows = [arrays[f"cls_attn_blocks.0.attn.{letter}.weight"] for letter in "qkv"]
    np.testing.assert_array_equal(found.T, np.concatenate(rows))


def test_a_convolutions_bias_before_batchnorm_becomes_part_of_its_mean():
    weights = dict(ours("regnety_002").weights)
    mean = weights["backbone.s1_b1.conv0._batch_norm._mean"]
    weights["backbone.s1_b1.conv0._conv.bias"] = np.full(mean.shape, 2.0, "float32")
    found = recognise(weights)
    np.testing.assert_array_equal(found.weights["backbone.s1_b1.conv0._batch_norm._mean"], mean - 2)
    assert "backbone.s1_b1.conv0._conv.bias" not in found.weights


def test_both_forms_of_mindspore_s_names_of_crossvit_mean_the_same():
    shapes = PEERS["mindcv"]["crossvit_9"]
    other = {}
    for name, shape in shapes.items():
        if name.startswith("0.blocks.0.") and name.split(".")[4] in ("blocks", "projs", "fusion", "revert_projs"):
            name = "blocks." + name[len("0.blocks.0.") :]
        elif name.startswith("0."):
            name = "blocks." + name
        other[name] = shape
    assert other.keys() != shapes.keys()
    have, want = (recognise(numbered(case)).weights for case in (other, shapes))
    assert_same(have, want)


def test_names_of_no_known_model_are_not_recognised():
    assert recognise({"conv1.weight": np.zeros((2, 3, 3, 3)), "fc.weight": np.zeros((2, 2))}) is None
    assert recognise({}) is None


def test_two_names_for_one_parameter_are_refused():
    arrays = pictured({**PEERS["timm"]["xcit_nano_12_p16_224"], "backbone.cls_token": [1, 1, 128]})
    with pytest.raises(CheckpointError, match="two of its names mean the same parameter"):
        recognise(arrays)


@pytest.mark.parametrize("shape", [(), (3,), (5, 2), (0,), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("model", ["xcit_nano_12_p16_224", "crossvit_9_240", "regnety_002"])
def test_absurd_shapes_are_carried_along_for_the_loader_to_refuse(model, shape):
    arrays = {name: np.zeros(shape, "float32") for name in PEERS["timm"][model]}
    found = recognise(arrays)
    assert found.weights
    written_as(found, "timm")


@pytest.mark.parametrize(
    ("model", "dialect", "message"),
    [
        ("crossvit_9_240", "mmpretrain", "mmpretrain has no crossvit; it can be written as official or timm"),
        ("regnety_002", "mmpretrain", "mmpretrain has no regnet; it can be written as official or timm"),
        ("crossvit_9_240", "mindcv", "mindcv has no crossvit; it can be written as official or timm"),
    ],
)
def test_what_a_project_does_not_have_is_not_written_for_it(model, dialect, message):
    with pytest.raises(CheckpointError, match=message):
        written_as(recognise(pictured(PEERS["timm"][model])), dialect)


def test_every_family_can_be_written_in_its_torch_dialects():
    assert {family: sorted(RENAMES[family]) for family in RENAMES} == {
        "xcit": ["mindcv", "mmpretrain", "official", "paddle", "timm"],
        "crossvit": ["mindcv", "official", "paddle", "timm"],
        "regnet": ["official", "paddle", "timm"],
    }
