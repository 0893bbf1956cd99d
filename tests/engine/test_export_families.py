"""Exports of every kind of model, run by every engine in a process of their own, give the model's logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_xcit.engine.export import export_model
from passl_xcit.engine.runtimes import ENGINES, TOLERANCE, why_not
from passl_xcit.modeling import factory
from passl_xcit.modeling.distillation import DistillationWrapper
from passl_xcit.utils.registry import BACKBONES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
DROP = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "cls_attn_layers": 1, **DROP}
BRANCHES = {"img_size": [24, 32], "embed_dim": [16, 32], "depth": [[1, 2]], "num_heads": [2, 2], **DROP}
STAGES = {"name": "RegNet", "w_a": 16.0, "w_0": 16, "w_m": 2.0, "d": 3, "group_w": 8, "bot_mul": 1.0}
KINDS = {
    "xcit_p16": {"name": "xcit_nano_12_p16", **TINY},
    "xcit_p8": {"name": "xcit_nano_12_p8", **TINY},
    "xcit_p4_grey": {"name": "XCiT", "patch_size": 4, "in_chans": 1, **TINY},
    "xcit_tokens_norm": {"name": "xcit_tiny_24_p8", **TINY},
    "xcit_mindcv": {"name": "xcit_tiny_12_p16", "qk_norm": False, "act": "gelu_tanh", **TINY},
    "crossvit": {"name": "crossvit_9_240", **BRANCHES},
    "crossvit_dagger": {"name": "crossvit_9_dagger_240", **BRANCHES},
    "crossvit_mindcv": {"name": "crossvit_9_240", **BRANCHES, **factory.crossvit.CrossViT.MATHS["mindcv"]},
    "regnetx": STAGES,
    "regnety": {**STAGES, "se_on": True},
}
REAL = {
    "xcit_nano_12_p16": 64,
    "xcit_nano_12_p8": 64,
    "crossvit_9_240": 64,
    "crossvit_9_dagger_240": 64,
    "regnety_002": 64,
}


def node(backbone):
    built = BACKBONES.build(backbone, "backbone")
    head = {"name": built.HEAD, "in_channels": built.num_features, "num_classes": 7}
    return {"name": "SwinWrapper", "architecture": backbone, "head": head}


def model_of(backbone):
    paddle.seed(3)
    return awake(factory.build(node(backbone), training=False))


def awake(model):
    """In evaluation mode, with statistics and logits that are not those of a new model, which are nearly all alike."""
    rng = np.random.default_rng(5)
    for name, tensor in model.state_dict().items():
        if name.endswith("_mean"):
            tensor.set_value(0.1 * rng.standard_normal(tensor.shape).astype("float32"))
        elif name.startswith("head."):
            tensor.set_value(0.3 * rng.standard_normal(tensor.shape).astype("float32"))
    model.eval()
    return model


def student():
    """Of a distillation: what its training wrapper leaves to be evaluated."""
    models = [{"Teacher": node(KINDS["regnety"])}, {"Student": node(KINDS["xcit_p16"])}]
    distillation = {"name": "DistillationWrapper", "models": models}
    paddle.seed(4)
    wrapper = factory.build(distillation)
    assert isinstance(wrapper, DistillationWrapper)
    model = factory.build(distillation, training=False)
    model.set_state_dict(wrapper.state_dict())
    return awake(model)


def trials(model, size):
    """Images of two numbers and, where the model's program takes them, two sizes."""
    rng, backbone = np.random.default_rng(6), model.backbone
    sizes = [(size, size)] + [(size + 16, 2 * size)] * backbone.TRACED_FOR_ANY_SIZE
    shapes = [(count, backbone.in_chans, *sides) for sides in sizes for count in (1, 4)]
    return [rng.standard_normal(shape, "float32") for shape in shapes]


def run_apart(models, size, folder, precision="float32"):
    """[(kind, engine, outputs, the model's logits)] of exports that a new process runs."""
    expected, images = {}, {}
    for kind, model in models.items():
        export_model(model, folder / kind, (size, size), formats=("paddle", "onnx"), precision=precision)
        images[kind] = []
        for number, batch in enumerate(trials(model, size)):
            images[kind].append(str(folder / f"{kind}.{number}.npy"))
            np.save(images[kind][-1], batch)
            with paddle.no_grad():
                expected[kind, number] = model(paddle.to_tensor(batch)).numpy()
    task = {"folders": [str(folder / kind) for kind in models], "images": images, "precision": precision}
    (folder / "task.json").write_text(json.dumps({**task, "out": str(folder / "out.npz")}))
    loaded = run(folder / "task.json")
    assert not [name for name in loaded if name.startswith("passl_xcit.modeling.backbones.xcit")], "a clean process"
    with np.load(folder / "out.npz") as file:
        names = [(name, *name.split("/")) for name in file.files]
        return [(kind, engine, file[name], expected[kind, int(number)]) for name, kind, engine, number in names]


def run(task):
    command = [sys.executable, str(Path(__file__).with_name("run_exports.py")), str(task)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)


def engines_here(precision):
    return {engine for engine in ENGINES if why_not(engine, precision) is None}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    models = {**{kind: model_of(backbone) for kind, backbone in KINDS.items()}, "student": student()}
    return run_apart(models, 32, tmp_path_factory.mktemp("exports"))


@pytest.mark.parametrize("kind", [*KINDS, "student"])
def test_every_engine_computes_the_models_logits(kind, outputs):
    found = [(engine, logits, wanted) for of, engine, logits, wanted in outputs if of == kind]
    assert (
        {engine for engine, _, _ in found} == engines_here("float32") >= {"onednn", "paddle_inference", "onnxruntime"}
    )
    assert len(found) == len(engines_here("float32")) * (2 if kind.startswith("crossvit") else 4)
    for _, logits, wanted in found:
        assert logits.dtype == np.float32 and np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)


@pytest.mark.skipif(not engines_here("bfloat16"), reason="no engine here computes in bfloat16")
def test_in_bfloat16_they_come_near(tmp_path):
    kinds = {kind: model_of(KINDS[kind]) for kind in ("xcit_p16", "crossvit_dagger", "regnetx")}
    found = run_apart(kinds, 32, tmp_path, "bfloat16")
    assert {engine for _, engine, _, _ in found} == engines_here("bfloat16")
    for _, _, logits, wanted in found:
        difference = np.abs(logits - wanted).max() / np.abs(wanted).max()
        assert 1e-5 < difference < TOLERANCE["bfloat16"], "it is not float32 that was computed"


@pytest.mark.parametrize("name", REAL)
def test_so_do_the_published_architectures(name, tmp_path):
    for _, _, logits, wanted in run_apart({name: model_of({"name": name})}, REAL[name], tmp_path):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)
