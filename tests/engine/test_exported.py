"""An export is refused in one line unless it is what was written; then it predicts what its weights predict."""

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_run import tiny_run

from passl_xcit.datasets.imagenet import open_image
from passl_xcit.engine import exported, runtimes
from passl_xcit.engine.export import export_model
from passl_xcit.engine.exported import ExportedModel
from passl_xcit.engine.predictor import Predictor
from passl_xcit.engine.runtimes import ENGINES, TOLERANCE, OneDnn, why_not
from passl_xcit.modeling.factory import create_model
from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError
from tools.export import main as export

pytestmark = pytest.mark.slow
FILES = ("model.json", "model.pdiparams", "model.onnx", "export.json")
TRANSFORMS = (
    "dataloader.val.dataset.transforms=[{name: Resize, size: 20}, {name: CenterCrop, size: 16}, {name: Transpose}, "
    "{name: Normalize, mean: [110, 100, 90], std: [50, 60, 70]}]"
)
CROP = "dataloader.train.dataset.transforms.0={name: RandomResizedCrop, size: 16}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(weights, export of them, export with softmax, paths of images) of a tiny run."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run(folder, "epochs=3", "seed=3", TRANSFORMS, CROP)
    weights = folder / "out" / "latest.pdparams"
    for name, *options in (("plain",), ("softmax", "--softmax")):
        export([str(weights), "--output_dir", str(folder / name), "--format", "paddle,onnx", *options])
    images = sorted(str(path) for path in (folder / "val").rglob("*.png"))
    return weights, folder / "plain", folder / "softmax", images


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained[1], tmp_path / "copy"))


@pytest.fixture
def nothing_runs(monkeypatch):
    def fail(*arguments):
        raise AssertionError("an engine was given the export")

    monkeypatch.setattr(exported, "open_runtime", fail)


def seal(folder, change=lambda entries: entries):
    """Write a sidecar as somebody would who knows its form, with the right digests."""
    path = folder / "export.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    del entries["seal"]
    entries["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in entries["sha256"]}
    change(entries)
    text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    entries["seal"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def engines_of(precision):
    return [engine for engine in ENGINES if why_not(engine, precision) is None]


# The same predictions.


@pytest.mark.parametrize("engine", [None, *ENGINES])
@pytest.mark.parametrize("softmax", [False, True])
def test_the_predictions_are_those_of_the_weights(engine, softmax, trained):
    if engine and why_not(engine, "float32"):
        pytest.skip(why_not(engine, "float32"))
    weights, plain, with_softmax, images = trained
    eager, found = Predictor(weights, topk=3), Predictor(with_softmax if softmax else plain, topk=3, engine=engine)
    for path in images:
        prepared = [predictor.preprocess(open_image(path), path) for predictor in (eager, found)]
        assert prepared[0].tobytes() == prepared[1].tobytes()
    assert found.class_names == eager.class_names == ["class0", "class1", "class2"]
    expected = {prediction.image: prediction.top for prediction in eager(images)}
    assert len({top[0].index for top in expected.values()}) > 1
    for image, top, error in found(images):
        assert error is None and [guess.name for guess in top] == [guess.name for guess in expected[image]]
        probabilities = [[guess.probability for guess in guesses] for guesses in (top, expected[image])]
        np.testing.assert_allclose(*probabilities, atol=1e-5)


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if "bfloat16" in ENGINES[engine].PRECISIONS])
def test_in_bfloat16_logits_stay_within_the_bound(engine, trained):
    if why_not(engine, "bfloat16"):
        pytest.skip(why_not(engine, "bfloat16"))
    images = np.random.default_rng(2).standard_normal((5, 3, 16, 16), "float32")
    expected = Predictor(trained[0]).logits(images)
    difference = np.abs(Predictor(trained[1], engine=engine, precision="bfloat16").logits(images) - expected).max()
    assert 1e-5 < difference / np.abs(expected).max() < TOLERANCE["bfloat16"]


def test_what_an_engine_says_by_itself_is_not_for_the_user(trained, capfd):
    for engine in engines_of("float32"):
        Predictor(trained[1], engine=engine)(trained[3])
    assert capfd.readouterr() == ("", "")


# What is not as it was written.


@pytest.mark.usefixtures("nothing_runs")
@settings(max_examples=60)
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_any_other_byte_is_noticed(tampered, file, place, change):
    data = bytearray((tampered / file).read_bytes())
    data[int(place * len(data))] ^= change
    changed = tampered.with_name("changed")
    shutil.copytree(tampered, changed, dirs_exist_ok=True)
    (changed / file).write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        ExportedModel(changed)
    assert file in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tampered(trained):
    return trained[1]


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", ["missing", "cut", "longer", "empty"])
def test_files_that_are_not_whole_are_refused(file, what, copy):
    data = (copy / file).read_bytes()
    (copy / file).unlink()
    if what != "missing":
        (copy / file).write_bytes({"cut": data[:-1], "longer": data + b"\n", "empty": b""}[what])
    with pytest.raises(CheckpointError, match=rf"{file}: (is missing|is not the file|cannot be read|is damaged).*"):
        Predictor(copy)


@pytest.mark.usefixtures("nothing_runs")
def test_a_sidecar_of_another_export_is_refused(trained, copy):
    shutil.copy(trained[2] / "export.json", copy)
    with pytest.raises(CheckpointError, match="model.*: is not the file that export.json tells of: another SHA-256"):
        ExportedModel(copy)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (
            "num_classes",
            2,
            r"is not one export: the program gives outputs of shape \[-1, 3\], export.json says \[-1, 2\]",
        ),
        ("channels", 1, r"takes images of shape \[-1, 3, -1, -1\], export.json says \[-1, 1, -1, -1\]"),
        ("any_size", False, r"export.json says \[-1, 3, 16, 16\]"),
    ],
)
@pytest.mark.parametrize("engine", ["onednn", "onnxruntime", "openvino"])
def test_a_sidecar_that_tells_of_another_model_is_refused(engine, entry, value, message, copy):
    if why_not(engine, "float32"):
        pytest.skip(why_not(engine, "float32"))
    trial = {"trial": [[1] * 2] * 2} if entry == "num_classes" else {}
    seal(copy, lambda entries: entries.update({entry: value, "class_names": None, **trial}))
    with pytest.raises(CheckpointError, match=message):
        ExportedModel(copy, engine)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"version": 2}, "is of version 2, and 1 is read here; export the weights again"),
        ({"version": None}, "is of version None, and 1 is read here"),
        ({"softmax": "no"}, "its entry softmax should be true/false, not 'no'"),
        ({"image_size": [16]}, "its numbers fit no model"),
        ({"size_divisor": 0}, "its numbers fit no model"),
        ({"class_names": ["a", "b"]}, "there are not as many names as classes"),
        ({"preprocess": {"transforms": [{"name": "X"}], "channels": 3}}, "its entry preprocess: .*no transform 'X'"),
        ({"preprocess": {}}, "its entry preprocess: expected a mapping with 'transforms'"),
        ({"trial": [[0.1, 0.2, 0.3]]}, "its entry trial holds no outputs of 2 images"),
        ({"trial": [[1, 2, 3], [1, 2]]}, "its entry trial holds no outputs of 2 images"),
        ({"trial": [[0, 0, 0]] * 2}, "its entry trial holds no outputs of 2 images"),
        ({"sha256": {}}, r"tells of the files \[\], which make no export"),
        ({"sha256": {"../../etc/passwd": "0"}}, "which make no export"),
    ],
)
def test_a_sidecar_that_makes_no_sense_is_refused(entries, message, copy):
    seal(copy, lambda found: found.update(entries))
    with pytest.raises(CheckpointError, match=message):
        ExportedModel(copy)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, '{"version": 1}', "x", "1" * 5000])
def test_what_is_no_sidecar_is_refused(text, copy):
    (copy / "export.json").write_text(text)
    with pytest.raises(CheckpointError, match="export.json: is damaged|is of version"):
        ExportedModel(copy)


def test_an_export_from_before_sidecars_had_versions_is_refused(copy):
    (copy / "export.json").write_text('{"softmax": false, "image_size": [16, 16]}')
    with pytest.raises(CheckpointError, match="is of version None, and 1 is read here; export the weights again"):
        Predictor(copy)


# Programs.


def first_block(tree):
    return tree["program"]["regions"][0]["blocks"][0]["ops"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: first_block(tree)[-2].update({"#": "1.save_combine"}),
            "has the operator '1.save_combine', which",
        ),
        (lambda tree: first_block(tree)[-2].update({"regions": []}), "has the operator 'with a block', which no model"),
        (lambda tree: tree["program"]["regions"].append(tree["program"]["regions"][0]), "is no program of Paddle 3"),
        (lambda tree: first_block(tree).append(first_block(tree)[-1]), "with one input and one output"),
        (lambda tree: tree.clear(), "is no program of Paddle 3"),
    ],
)
def test_a_program_that_would_do_more_than_compute_is_refused(change, message, copy):
    tree = json.loads((copy / "model.json").read_text())
    change(tree)
    (copy / "model.json").write_text(json.dumps(tree))
    seal(copy)
    with pytest.raises(CheckpointError, match=message):
        ExportedModel(copy, "onednn")


def test_a_program_that_two_parsers_read_differently_is_refused(copy):
    text = (copy / "model.json").read_text()
    (copy / "model.json").write_text('{"program": {},' + text.strip()[1:])
    seal(copy)
    with pytest.raises(CheckpointError, match="is no program of Paddle 3 with one input and one output"):
        ExportedModel(copy, "onednn")


@pytest.mark.parametrize(("file", "engine"), [("model.onnx", "onnxruntime"), ("model.onnx", "openvino")])
def test_what_an_engine_cannot_read_is_refused_in_one_line(file, engine, copy):
    if why_not(engine, "float32"):
        pytest.skip(why_not(engine, "float32"))
    (copy / file).write_bytes(b"no program")
    seal(copy)
    with pytest.raises(CheckpointError, match=f"engine {engine} cannot read it: .+") as error:
        ExportedModel(copy, engine)
    assert "\n" not in str(error.value)


# Sizes.


def test_an_xcits_program_refuses_sides_that_its_patches_do_not_divide(trained):
    """It would compute something: its convolutions round up."""
    with pytest.raises(DataError, match="images of 18 x 16 pixels do not divide into patches of 4: let CenterCrop"):
        ExportedModel(trained[1])(np.zeros([1, 3, 18, 16], "float32"))
    with pytest.raises(DataError, match="images have 1 channels, but the export takes 3"):
        ExportedModel(trained[1])(np.zeros([1, 1, 16, 16], "float32"))


def test_a_crossvits_program_takes_one_size_and_says_so(tmp_path):
    paddle.seed(1)
    small = {"img_size": [24, 32], "embed_dim": [8, 16], "depth": [[1, 1]], "num_heads": [2, 2]}
    model = create_model("crossvit_9_240", num_classes=5, **small)
    model.eval()
    sidecar = export_model(model, tmp_path / "out", (32, 40))
    assert sidecar.any_size is False and sidecar.image_size == [32, 40]
    run = ExportedModel(tmp_path / "out")
    assert run(np.zeros([2, 3, 32, 40], "float32")).shape == (2, 5)
    with pytest.raises(DataError, match="images of 40 x 40 pixels: this export takes 32 x 40 only, as CrossViT's do"):
        run(np.zeros([1, 3, 40, 40], "float32"))
    with pytest.raises(CheckpointError, match="does not say how images are preprocessed; export with tools/export.py"):
        Predictor(tmp_path / "out")


# Engines.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "tensorrt"},
            "there is no engine 'tensorrt'; known: onednn, onnxruntime, openvino, paddle, paddle_inf",
        ),
        ({"precision": "int8"}, "precision must be float32 or bfloat16, not 'int8'"),
        ({"engine": "paddle"}, "is an export, which engine paddle does not run; give the weights"),
        (
            {"engine": "onnxruntime", "precision": "bfloat16"},
            "in bfloat16 here: it computes in float32 only; onednn and op",
        ),
        (
            {"engine": "paddle_inference", "precision": "bfloat16"},
            "it computes in float32 only; onednn and openvino can",
        ),
        ({"device": "gpu:0"}, "is an export, which runs on the CPU here, not on gpu:0"),
        ({"config": "x.yaml"}, "is an export, which says its own model and preprocessing: leave out the config"),
    ],
)
def test_what_an_export_cannot_do_is_one_line(options, message, trained):
    with pytest.raises(ConfigError, match=message):
        Predictor(trained[1], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "onednn"},
            "engine onednn runs the folder of an export, and .* is none: write one with python tools/exp",
        ),
    ],
)
def test_what_weights_cannot_do_is_one_line(options, message, trained):
    with pytest.raises(ConfigError, match=message):
        Predictor(trained[0], **options)


@pytest.mark.parametrize(("engine", "extra"), [("onnxruntime", "export"), ("openvino", "openvino")])
def test_an_absent_package_is_one_line(engine, extra, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(
        ConfigError, match=rf"its package is not installed or too old: pip install -U 'passl_xcit\[{extra}\]'"
    ):
        Predictor(trained[1], engine=engine)


def test_an_openvino_that_cannot_read_these_files_counts_as_absent(monkeypatch):
    old = types.SimpleNamespace(__version__="2025.3.0-19807-44526285f24-releases/2025/3")
    monkeypatch.setitem(sys.modules, "openvino", old)
    assert why_not("openvino", "float32").startswith("its package is not installed or too old")


def test_a_processor_without_bfloat16_is_one_line(trained, monkeypatch):
    monkeypatch.setattr(paddle.amp, "is_bfloat16_supported", lambda device: False)
    with pytest.raises(
        ConfigError, match="onednn cannot run in bfloat16 here: this processor has no bfloat16 instruct"
    ):
        Predictor(trained[1], engine="onednn", precision="bfloat16")


def test_an_engine_without_its_file_says_how_to_export(trained, tmp_path):
    export([str(trained[0]), "--output_dir", str(tmp_path / "out"), "--format", "onnx"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "model.onnx"]
    assert isinstance(Predictor(tmp_path / "out").model._run, runtimes.OnnxRuntime)
    with pytest.raises(ConfigError, match="has no model.json, which engine onednn reads: export with --format paddle"):
        Predictor(tmp_path / "out", engine="onednn")


@pytest.mark.parametrize("wrong", [None, 0.3, np.nan])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_engine_that_computes_something_else_on_this_machine_is_refused(
    precision, wrong, trained, tmp_path, monkeypatch
):
    """As oneDNN does with XCiT in Paddle 3.0.0 and, with a batch, with RegNetY in bfloat16 in 3.3.1."""

    def computed(run, images, compute=OneDnn.__call__):
        if run.precision != precision:
            return compute(run, images)
        if wrong is None:
            raise DataError("std::exception")
        return compute(run, images) + wrong

    monkeypatch.setattr(OneDnn, "has_bfloat16", staticmethod(lambda: True))
    monkeypatch.setattr(OneDnn, "__call__", computed)
    what = "fails" if wrong is None else "differs from the model by (0.|nan)"
    with pytest.raises(ConfigError, match=f"engine onednn in {precision} {what}.*: take another engine"):
        ExportedModel(trained[1], "onednn", precision)
    if precision == "float32":
        sidecar = export_model(Predictor(trained[0]).model, tmp_path / "out", (16, 16))
        assert sidecar.difference["paddle_inference"] < 1e-4
        assert sidecar.difference["onednn"] is None or not sidecar.difference["onednn"] < 1e-4
    else:
        with pytest.raises(ConfigError, match="no engine here can compute these formats in bfloat16"):
            export_model(Predictor(trained[0]).model, tmp_path / "out", (16, 16), precision="bfloat16")
