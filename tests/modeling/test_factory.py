"""Any of a model's names builds it, any file of its weights loads into it, and what cannot be is said."""

import functools
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import paddle
import pytest

import passl_xcit
from passl_xcit import CheckpointError, ConfigError, create_model, get_config, get_model, list_models
from passl_xcit.modeling import factory
from passl_xcit.modeling.checkpoint_formats import write_file, write_weights
from passl_xcit.modeling.name_maps import recognise, written_as
from passl_xcit.modeling.zoo import WeightFile, entries

TINY = {"embed_dim": 32, "depth": 1, "num_heads": 4}


def tiny(name="xcit_nano_12_p16", seed=0, **options):
    paddle.seed(seed)
    return create_model(name, **{**TINY, "num_classes": 3, **options})


def arrays_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_same_weights(model, other):
    for name, array in arrays_of(other).items():
        np.testing.assert_array_equal(arrays_of(model)[name], array, err_msg=name)


# Names.


@pytest.mark.parametrize(
    ("name", "preset", "weights"),
    [
        ("xcit-nano-12-p16_3rdparty-dist_in1k-384px", "xcit_nano_12_p16", "xcit_nano_12_p16_384_dist"),
        ("xcit_nano_12_p16_384_dist", "xcit_nano_12_p16", "xcit_nano_12_p16_384_dist"),
        ("xcit_nano_12_p16_384.fb_dist_in1k", "xcit_nano_12_p16", "xcit_nano_12_p16_384_dist"),
        ("xcit-tiny-24-p8_3rdparty_in1k", "xcit_tiny_24_p8", "xcit_tiny_24_p8_224"),
        ("xcit_tiny_12_p16_224", "xcit_tiny_12_p16", "xcit_tiny_12_p16_224"),
        ("xcit_large_24_p8_224.fb_in1k", "xcit_large_24_p8", "xcit_large_24_p8_224"),
        ("XCiT_Nano_12_P8", "xcit_nano_12_p8", None),
        ("xcit-nano-12-p8", "xcit_nano_12_p8", None),
        ("crossvit_9", "crossvit_9_240", "crossvit_9_240"),
        ("crossvit_15_dagger_240", "crossvit_15_dagger_240", "crossvit_15_dagger_240"),
        ("crossvit_15_dagger_384", "crossvit_15_dagger_408", "crossvit_15_dagger_408"),
        ("crossvit_base_240.in1k", "crossvit_base_240", "crossvit_base_240"),
        ("regnety_160.deit_in1k", "regnety_160", "regnety_160"),
        ("RegNetY-160", "regnety_160", "regnety_160"),
        ("regnetx_032", "regnetx_032", None),
    ],
)
def test_every_naming_scheme_resolves(name, preset, weights):
    found, entry = factory._resolve(name)
    assert found == preset and (entry and entry.name) == weights


@pytest.mark.parametrize("change", [str, str.upper, lambda name: name.replace("_", "-")])
def test_every_name_in_the_zoo_means_its_own_entry(change):
    for entry in entries():
        for name in entry.names:
            assert factory._resolve(change(name)) == (entry.backbone, entry)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xcit_nano_12_p61", "no model 'xcit_nano_12_p61'; did you mean 'xcit_nano_12_p16' or "),
        ("crosvit_9", "no model 'crosvit_9'; did you mean 'crossvit_9'"),
        ("", "no model ''; passl_xcit.list_models() gives all names"),
        ("resnet50", "no model 'resnet50'"),
        (None, "no model 'None'"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name, message):
    with pytest.raises(ConfigError) as caught:
        create_model(name)
    assert str(caught.value).startswith(message)


def test_list_models_gives_weights_and_architectures():
    names = list_models()
    assert names == sorted(names) and len(names) == len(set(names))
    assert {entry.name for entry in entries()} | set(factory.PRESETS) == set(names)
    assert list_models(pretrained=True) == sorted(entry.name for entry in entries())
    assert len(list_models(pretrained=True)) == 54


def test_list_models_takes_patterns_in_any_scheme():
    assert list_models("xcit_nano*384*") == ["xcit_nano_12_p16_384_dist", "xcit_nano_12_p8_384_dist"]
    assert list_models("XCiT-Nano*384*") == list_models("xcit_nano*384*")
    assert "xcit-nano-12-p16_3rdparty_in1k" in list_models("*3rdparty*")
    assert list_models("nothing*") == []


# Building.


@pytest.mark.parametrize("preset", factory.PRESETS)
def test_every_architecture_is_built_by_its_name(preset):
    with paddle.LazyGuard():
        model = create_model(preset, num_classes=7)
    assert model.num_classes == 7 and model.training


def test_arguments_reach_the_backbone_and_the_head():
    model = tiny(in_chans=1, drop_path_rate=0.1, num_classes=5)
    assert model(paddle.rand([2, 1, 32, 48])).shape == [2, 5]
    assert model.backbone.blocks[0].drop_path.rate == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depht": 3}, "xcit_nano_12_p16.depht: xcit_nano_12_p16 takes no 'depht'; did you mean 'depth'?"),
        ({"depth": "3"}, "xcit_nano_12_p16.depth: xcit_nano_12_p16 expects int, not '3'"),
        ({"embed_dim": 30}, "xcit_nano_12_p16.embed_dim: embed_dim 30 is not a multiple of num_heads 4"),
        ({"in_chans": 0}, "xcit_nano_12_p16.in_chans: in_chans must be at least 1, not 0"),
        ({"num_classes": 0}, "xcit_nano_12_p16.num_classes: num_classes must lie between 1 and 10,000,000, not 0"),
        ({"num_classes": "ten"}, "xcit_nano_12_p16.num_classes: SwinTransformerClsHead expects int, not 'ten'"),
        ({"act": "relu"}, "xcit_nano_12_p16.act: act must be gelu or gelu_tanh, not 'relu'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ConfigError) as caught:
        create_model("xcit_nano_12_p16", **options)
    assert str(caught.value).startswith(message)


def test_get_config_tells_what_is_published():
    config = get_config("xcit-nano-12-p16_3rdparty-dist_in1k-384px")
    assert config["backbone"] == "xcit_nano_12_p16" and config["evaluation"]["size"] == 384
    with pytest.raises(
        ConfigError, match="'xcit_nano_12_p8' is an architecture, not the name of weights: it has xcit_"
    ):
        get_config("xcit_nano_12_p8")


# mmpretrain's get_model, and features.


def test_get_model_is_ready_to_evaluate_and_its_features_are_a_tuple():
    model = get_model("xcit-nano-12-p16_3rdparty_in1k", backbone=TINY, head={"num_classes": 3})
    images = paddle.rand([2, 3, 32, 32])
    features = model.extract_feat(images)
    assert not model.training and model(images).shape == [2, 3]
    assert isinstance(features, tuple) and [feature.shape for feature in features] == [[2, 32]]
    np.testing.assert_array_equal(model.extract_feat(images, stage="pre_logits").numpy(), features[0].numpy())
    np.testing.assert_array_equal(model.extract_feat(images, stage="backbone")[0].numpy(), features[0].numpy())


def test_get_model_takes_a_config_of_ours():
    config = Path(__file__).parents[2] / "configs/xcit/xcit_nano_12_p16_224.yaml"
    model = get_model(config, backbone=TINY, head={"in_channels": 32, "num_classes": 3})
    assert model(paddle.rand([1, 3, 32, 32])).shape == [1, 3] and not model.training
    with pytest.raises(ConfigError, match="pretrained=True needs the name of published weights"):
        get_model(config, pretrained=True)


def test_get_model_puts_the_model_on_a_device():
    assert get_model("xcit_nano_12_p16", device="cpu", backbone=TINY).head.fc_cls.weight.place.is_cpu_place()


FEATURES = {
    ("xcit_nano_12_p16", "cls_token"): [2, 32],
    ("xcit_nano_12_p16", "patch_tokens"): [2, 6, 32],
    ("xcit_nano_12_p16", "feature_map"): [2, 32, 2, 3],
    ("xcit_nano_12_p16", "block_0"): [2, 6, 32],
}


@pytest.mark.parametrize(("case", "shape"), FEATURES.items())
def test_features_of_every_stage_have_their_shape(case, shape):
    name, stage = case
    model = tiny(name)
    model.eval()
    assert model.extract_feat(paddle.rand([2, 3, 32, 48]), stage=stage).shape == shape


def test_the_feature_map_is_the_patch_tokens_row_by_row():
    model, images = tiny(), paddle.rand([1, 3, 32, 48])
    model.eval()
    tokens, maps = (model.extract_feat(images, stage=stage).numpy() for stage in ("patch_tokens", "feature_map"))
    np.testing.assert_array_equal(maps[0, :, 1, 2], tokens[0, 5])


def test_the_class_token_is_what_the_backbone_gives():
    model, images = tiny(), paddle.rand([2, 3, 32, 48])
    model.eval()
    token = model.extract_feat(images, stage="cls_token").numpy()
    np.testing.assert_allclose(token, model.backbone(images).numpy(), atol=1e-6)
    np.testing.assert_allclose(model.head(paddle.to_tensor(token)).numpy(), model(images).numpy(), atol=1e-6)


def test_the_last_block_is_what_class_attention_starts_from():
    model, images = tiny(depth=2), paddle.rand([2, 3, 32, 48])
    model.eval()
    last = model.extract_feat(images, stage="block_1")
    first = model.extract_feat(images, stage="block_0")
    np.testing.assert_allclose(model.backbone.blocks[1](first, 2, 3).numpy(), last.numpy(), atol=1e-6)


@pytest.mark.parametrize("stage", ["block_1", "block_-1", "cls", "", "feature_maps"])
def test_an_unknown_stage_is_refused_with_the_known_ones(stage):
    with pytest.raises(ConfigError) as caught:
        tiny().extract_feat(paddle.rand([1, 3, 32, 32]), stage=stage)
    known = "known: cls_token, patch_tokens, feature_map, block_0, backbone, neck, pre_logits"
    assert str(caught.value) == f"XCiT has no stage '{stage}'; {known}"


# Weights.


@pytest.mark.parametrize("dialect", ["official", "timm", "mmpretrain"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_any_dialect_and_format_loads_whatever_it_is_called(dialect, suffix, tmp_path):
    source = tiny(seed=1)
    found = recognise(arrays_of(source))
    wrapper = {"official": "model", "mmpretrain": "state_dict"}.get(dialect) if suffix == ".pth" else None
    path = tmp_path / f"w{suffix}"
    write_weights(path, written_as(found, dialect), wrapper=wrapper)
    path = path.rename(tmp_path / "weights.bin.part")
    assert_same_weights(tiny(seed=2, pretrained=str(path)), source)


def test_weights_of_another_number_of_classes_load_but_for_the_head(tmp_path):
    source = tiny(seed=1)
    write_file(tmp_path / "w.pdparams", arrays_of(source))
    model = tiny(seed=2, num_classes=9, pretrained=tmp_path / "w.pdparams")
    assert_same_weights(model.backbone, source.backbone)
    assert model.head.fc_cls.weight.shape == [32, 9]


def test_weights_of_another_model_are_refused_and_named(tmp_path):
    with paddle.LazyGuard():
        shapes = {name: tensor.shape for name, tensor in create_model("xcit_small_12_p16").state_dict().items()}
    small = {name: np.zeros(shape, "float16") for name, shape in shapes.items()}
    write_file(tmp_path / "w.pdparams", small)
    expected = r"\(this looks like xcit_small_12_p16, the model is xcit_nano_12_p16\)"
    with pytest.raises(CheckpointError, match=expected):
        create_model("xcit_nano_12_p16", pretrained=tmp_path / "w.pdparams")


def test_an_architecture_has_no_weights_of_its_own():
    expected = (
        "'xcit_nano_12_p16' is an architecture, not the name of weights: it has "
        "xcit_nano_12_p16_224, xcit_nano_12_p16_224_dist, xcit_nano_12_p16_384_dist"
    )
    with pytest.raises(ConfigError) as caught:
        tiny(pretrained=True)
    assert str(caught.value) == expected
    with pytest.raises(ConfigError, match="none are published for it here; give a path"):
        create_model("regnetx_002", pretrained=True)


@pytest.fixture
def server(tmp_path):
    """(address, list of the paths that were asked for) of a server of the folder `tmp_path / "served"`."""
    (tmp_path / "served").mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", asked
    running.shutdown()


def test_pretrained_weights_are_downloaded_once_and_then_work_offline(server, tmp_path, monkeypatch):
    address, asked = server
    monkeypatch.setenv("PASSL_XCIT_HOME", str(tmp_path / "home"))
    source = tiny(seed=1)
    found = written_as(recognise(arrays_of(source)), "mmpretrain")
    write_weights(tmp_path / "served" / "nano.pth", found, wrapper="state_dict")
    entry = factory.find("xcit_nano_12_p16_224")
    file = WeightFile(f"{address}/nano.pth", "mmpretrain", "torch")
    published = type(entry)(**{**vars(entry), "weights": (file,)})
    monkeypatch.setattr(factory, "find", lambda name: published)
    assert_same_weights(tiny("xcit_nano_12_p16_224", seed=2, pretrained=True), source)
    monkeypatch.setenv("PASSL_XCIT_OFFLINE", "1")
    assert_same_weights(tiny("xcit_nano_12_p16_224", seed=3, pretrained=True), source)
    assert asked == ["/nano.pth"]


def test_an_address_is_as_good_as_a_path(server, tmp_path, monkeypatch):
    address, _ = server
    monkeypatch.setenv("PASSL_XCIT_HOME", str(tmp_path / "home"))
    source = tiny(seed=1)
    write_file(tmp_path / "served" / "mine.pdparams", arrays_of(source))
    assert_same_weights(tiny(seed=2, pretrained=f"{address}/mine.pdparams"), source)


# MindCV's maths.

MINDCV = json.loads((Path(__file__).parents[1] / "golden" / "peer_names.json").read_text())["mindcv"]


def mindcv_named(official):
    """Official names of an XCiT -> MindCV's."""
    named = {}
    for name, array in official.items():
        stem, _, leaf = name.rpartition(".")
        is_norm = "norm" in stem or stem.endswith((".bn", ".1"))
        buffers = {"running_mean": "moving_mean", "running_var": "moving_variance"}
        affine = {"weight": "gamma", "bias": "beta"} if is_norm else {}
        if leaf != "num_batches_tracked":
            named[f"{stem}.{ {**buffers, **affine}.get(leaf, leaf) }" if stem else name] = array
    return named


def mindcv_arrays(model):
    return mindcv_named(written_as(recognise(arrays_of(model)), "official"))


def test_the_names_made_here_are_mindcv_s():
    with paddle.LazyGuard():
        shapes = {name: tensor.shape for name, tensor in create_model("xcit_tiny_12_p16").state_dict().items()}
    found = recognise({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    named = mindcv_named(written_as(found, "official"))
    assert {name: list(array.shape) for name, array in named.items()} == MINDCV["xcit_tiny_12_p16_224"]


def test_a_mindcv_file_switches_the_models_maths_and_a_converted_one_too(tmp_path):
    source = tiny(seed=1)
    write_weights(tmp_path / "w.safetensors", mindcv_arrays(source))
    model = tiny(seed=2, pretrained=tmp_path / "w.safetensors")
    assert model.backbone.maths == {"qk_norm": False, "act": "gelu_tanh"}
    assert_same_weights(model, source)
    passl_xcit.convert_weights(tmp_path / "w.safetensors", tmp_path / "w.pdparams", "paddle")
    assert tiny(seed=3, pretrained=tmp_path / "w.pdparams").backbone.maths == model.backbone.maths


def test_a_model_that_does_not_take_the_weights_keeps_its_maths(tmp_path):
    write_weights(tmp_path / "w.safetensors", mindcv_arrays(tiny(seed=1)))
    model = tiny(depth=2)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        passl_xcit.load_weights(model, tmp_path / "w.safetensors")
    assert model.backbone.maths == {"qk_norm": True, "act": "gelu"}


@pytest.mark.parametrize("dialect", ["official", "timm", "paddle"])
def test_other_weights_bring_the_model_back_to_the_maths_it_was_built_with(dialect, tmp_path):
    source, model = tiny(seed=1), tiny(seed=2)
    write_weights(tmp_path / "m.safetensors", mindcv_arrays(source))
    arrays = arrays_of(source) if dialect == "paddle" else written_as(recognise(arrays_of(source)), dialect)
    write_weights(tmp_path / "w.safetensors", arrays)
    passl_xcit.load_weights(model, tmp_path / "m.safetensors")
    assert model.backbone.maths == {"qk_norm": False, "act": "gelu_tanh"}
    passl_xcit.load_weights(model, tmp_path / "w.safetensors")
    assert model.backbone.maths == {"qk_norm": True, "act": "gelu"}


def test_what_a_model_was_built_with_stays(tmp_path):
    write_weights(tmp_path / "w.safetensors", written_as(recognise(arrays_of(tiny(seed=1))), "timm"))
    assert tiny(qk_norm=False, pretrained=tmp_path / "w.safetensors").backbone.qk_norm is False


def test_weights_of_another_family_are_named_although_they_bring_their_maths(tmp_path):
    source = tiny(seed=1)
    write_file(tmp_path / "w.pdparams", {**arrays_of(source), "maths": source.backbone.maths})
    with pytest.raises(CheckpointError, match="this looks like an XCiT of .*, the model is regnetx_002"):
        create_model("regnetx_002", pretrained=tmp_path / "w.pdparams")


@pytest.mark.parametrize("maths", ["text", [1], 5, None, {5: 6}])
def test_damaged_maths_are_refused(maths, tmp_path):
    write_file(tmp_path / "w.pdparams", {**arrays_of(tiny(seed=1)), "maths": maths})
    with pytest.raises(CheckpointError, match="what it says of its own weights"):
        passl_xcit.load_weights(tiny(), tmp_path / "w.pdparams")


# Bad arguments.


@pytest.mark.parametrize("pretrained", ["", 0, [], {}, 5, b"x"])
def test_pretrained_is_a_bool_a_path_or_an_address(pretrained):
    with pytest.raises(ConfigError, match="pretrained must be True, False, a path or an address, not "):
        tiny(pretrained=pretrained)


@pytest.mark.parametrize("path", [None, [], b"x", 5, "", "a\0b"])
def test_what_is_no_path_is_refused_as_a_file(path):
    with pytest.raises(CheckpointError, match="is not the path of a weight file"):
        passl_xcit.read_checkpoint(path)
    with pytest.raises(CheckpointError, match="is not the path of a weight file"):
        passl_xcit.load_weights(tiny(), path)
    with pytest.raises(CheckpointError, match="is not the path of a weight file"):
        passl_xcit.convert_weights(path, "b.pdparams", "paddle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device: no device 'tpu'; this Paddle has: cpu"),
        ({"device": "cpu:x"}, "device: 'cpu:x': expected a device such as cpu, gpu, gpu:1 or npu:0"),
        ({"head": 5}, "head must be a dict of arguments, not 5"),
        ({"backbone": "a"}, "backbone must be a dict of arguments, not 'a'"),
    ],
)
def test_get_model_names_what_is_wrong(options, message):
    with pytest.raises(ConfigError, match=message):
        get_model("xcit_nano_12_p16", **options)


@pytest.mark.parametrize("name", ["xcit\n\x1b[31m", "x" * 10_000])
def test_odd_names_make_one_short_line(name):
    with pytest.raises(ConfigError) as caught:
        create_model(name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("options", [{"num_classes": 2**40}, {"num_classes": 10**9}, {"num_classes": -1}])
def test_absurd_numbers_of_classes_are_refused(options):
    with pytest.raises(ConfigError, match="num_classes must lie between 1 and 10,000,000, not"):
        create_model("xcit_nano_12_p16", **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            paddle.zeros([3, 32, 32]),
            r"images have the shape \[3, 32, 32\], expected \[batch, channels, height, width\]",
        ),
        (paddle.zeros([1, 3, 32, 32], "uint8"), "images hold uint8, expected float32 after normalisation"),
        (paddle.zeros([1, 4, 32, 32]), "images have 4 channels, but the model's in_chans is 3"),
    ],
)
@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "crossvit_tiny_240", "regnetx_002"])
def test_images_that_cannot_be_right_are_named(name, images, message):
    model = create_model(name)
    with pytest.raises(passl_xcit.DataError, match=message):
        model(images)
    with pytest.raises(passl_xcit.DataError, match=message):
        model.extract_feat(images, stage=model.backbone.stages[0])
