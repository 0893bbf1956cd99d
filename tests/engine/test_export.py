"""Exported programs compute what the model computes, or are not kept."""

import errno
import json
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from passl_xcit.engine import export
from passl_xcit.engine.export import export_model
from passl_xcit.engine.runtimes import PaddleInference, runtimes
from passl_xcit.modeling.factory import create_model
from passl_xcit.ops.library import library
from passl_xcit.utils.errors import ConfigError, UserError
from passl_xcit.utils.kernels import recorded_calls

pytestmark = pytest.mark.slow


def small():
    paddle.seed(1)
    model = create_model("xcit_nano_12_p8_224", num_classes=5, embed_dim=16, depth=2, num_heads=2)
    model.eval()
    return model


def noise(*shape):
    return np.random.default_rng(3).standard_normal(shape, "float32")


def logits(model, images):
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def test_it_is_quiet_and_says_how_far_the_engines_are_from_the_model(tmp_path, capfd):
    sidecar = export_model(small(), tmp_path / "out", (32, 32), formats=("paddle", "onnx"))
    assert capfd.readouterr() == ("", "")  # what the engines print is not for the user
    assert set(sidecar.difference) == set(runtimes(tmp_path / "out")) >= {"paddle_inference", "onednn", "onnxruntime"}
    assert all(0 <= difference < 1e-4 for difference in sidecar.difference.values())


def test_paddle_logs_its_kernels_afterwards_as_before(tmp_path):
    """The pre-flight reads them."""
    export_model(small(), tmp_path / "out", (32, 32))
    PaddleInference(tmp_path / "out")(noise(1, 3, 32, 32))
    with recorded_calls() as calls:
        paddle.ones([2])
    assert [call.operator for call in calls] == ["full"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_what_it_was(training, tmp_path):
    model, images = small(), noise(2, 3, 24, 24)
    before = logits(model, images)
    model.train() if training else model.eval()
    export_model(model, tmp_path / "out", (32, 32))
    assert model.training is training
    model.eval()
    assert np.array_equal(logits(model, images), before)
    model.train()
    model.train_iter(paddle.to_tensor(images), paddle.to_tensor([0, 1]))["loss"].backward()
    assert model.backbone.blocks[0].attn.qkv.weight.grad is not None


def test_probabilities_class_names_and_preprocessing_go_with_the_program(tmp_path):
    model = small()
    model.class_names = ["雪", "b", "c", "d", "e"]
    export_model(model, tmp_path / "out", (32, 24), softmax=True, preprocess={"mean": [1, 2, 3]})
    sidecar = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert sidecar["class_names"] == model.class_names and sidecar["preprocess"] == {"mean": [1, 2, 3]}
    assert sidecar["image_size"] == [32, 24] and sidecar["softmax"] and sidecar["num_classes"] == 5
    found = PaddleInference(tmp_path / "out")(noise(3, 3, 32, 24))
    powers = np.exp(logits(model, noise(3, 3, 32, 24)))
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.skipif(library() is None, reason="only the native operators tell how many threads there are")
def test_the_process_keeps_its_threads(tmp_path):
    before = library().threads()
    export_model(small(), tmp_path / "out", (32, 32))
    assert library().threads() == before


def test_a_program_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    def other(folder, precision):
        return {"paddle_inference": lambda images: np.full([len(images), 5], 7.0, "float32")}

    monkeypatch.setattr(export, "runtimes", other)
    with pytest.raises(
        UserError, match="no engine computes what the model computes: .*'paddle_inference': .* nothing was kept"
    ):
        export_model(small(), tmp_path / "out", (32, 32))
    assert list(tmp_path.iterdir()) == []


def test_a_program_without_numbers_is_not_kept(tmp_path, monkeypatch):
    nan = {"onednn": lambda images: np.full([len(images), 5], np.nan, "float32")}
    monkeypatch.setattr(export, "runtimes", lambda folder, precision: nan)
    with pytest.raises(UserError, match="nothing was kept"):
        export_model(small(), tmp_path / "out", (32, 32))


def test_native_operators_in_bfloat16_are_not_what_engines_are_compared_with(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSL_XCIT_NATIVE_PRECISION", "bfloat16")
    sidecar = export_model(small(), tmp_path / "out", (32, 32))
    assert all(difference < 1e-5 for difference in sidecar.difference.values())


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="is there already and not empty; give another folder"):
            export_model(small(), folder, (32, 32))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_500_000))
    with pytest.raises(ConfigError, match=r"out: needs 8\.\d MB, but 1.5 MB are free: make room there"):
        export_model(small(), tmp_path / "new" / "out", (32, 32), formats=("paddle", "onnx"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_in_the_middle_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def write(exported, folder, image_size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_write_program", write)
    with pytest.raises(ConfigError, match="out: cannot be written: No space left on device"):
        export_model(small(), tmp_path / "out", (32, 32))
    assert list(tmp_path.iterdir()) == []


def test_engines_that_cannot_read_what_was_kept_are_not_told_of(tmp_path):
    pytest.importorskip("onnxruntime")
    sidecar = export_model(small(), tmp_path / "out", (32, 32), formats=("onnx",))
    assert "onnxruntime" in sidecar.difference and not {"paddle_inference", "onednn"} & set(sidecar.difference)


def test_an_absent_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    with pytest.raises(ConfigError, match="ONNX needs paddle2onnx and onnxruntime: pip install 'passl_xcit.export.'"):
        export_model(small(), tmp_path / "out", (32, 32), formats=("onnx",))
    assert list(tmp_path.iterdir()) == []
