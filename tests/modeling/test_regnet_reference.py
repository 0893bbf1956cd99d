"""The textbook RegNet computes what timm's computes, and the package's RegNet computes what the textbook says."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from fill_by_name import fill_by_name, formula_images
from reference_regnet import from_timm, reference_stages, timm_name, timm_shape

from passl_xcit.modeling.architectures import Classification
from passl_xcit.modeling.backbones.regnet import VARIANTS, RegNet
from passl_xcit.modeling.heads import ClasHead

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "regnet_timm.json").read_text())
CASES = GOLDEN["cases"]
MODES = [pytest.param(False, id="eval"), pytest.param(True, id="train")]
BUFFERS = ("._mean", "._variance")

SMALL = {"w_a": 12.0, "w_0": 8, "w_m": 2.0, "d": 6, "group_w": 4, "bot_mul": 1.0}
MODELS = {  # arguments of RegNet, and the size of its images
    "x": (SMALL, (40, 64)),
    "y": ({**SMALL, "se_on": True}, (64, 40)),
    "odd sizes": ({**SMALL, "se_on": True, "group_w": 16}, (51, 37)),
    "one group": ({**SMALL, "group_w": 1000}, (33, 32)),
    "groups of one": ({**SMALL, "se_on": True, "group_w": 1}, (32, 33)),
    "narrow inside": ({**SMALL, "se_on": True, "bot_mul": 0.5}, (40, 40)),
    "wide inside": ({**SMALL, "se_on": True, "bot_mul": 2.0}, (40, 40)),
    "grey images": ({**SMALL, "se_on": True, "in_chans": 1, "stem_w": 12}, (48, 32)),
    "one stage": ({**SMALL, "se_on": True, "d": 3, "w_a": 0.0}, (9, 14)),
    "two stages": ({**SMALL, "se_on": True, "d": 2}, (17, 14)),
    "six stages": ({**SMALL, "se_on": True, "w_m": 1.2, "w_a": 16.0}, (80, 70)),
}


def weights_for(backbone):
    """{our name: float64 array}, drawn by timm's names."""
    shapes = {name: value.shape for name, value in backbone.state_dict().items()}
    drawn = fill_by_name({timm_name(name): timm_shape(shape) for name, shape in shapes.items()})
    values = {name: drawn[timm_name(name)] for name in shapes}
    return {name: from_timm(value) if len(shapes[name]) == 2 else value for name, value in values.items()}


def load(layer, weights):
    state = {name: paddle.to_tensor(value.astype("float32")) for name, value in weights.items()}
    missing, unexpected = layer.set_state_dict(state)
    assert not missing and not unexpected


def filled_regnet(config):
    """A RegNet with weights filled by name, and these weights."""
    model = RegNet(**config)
    weights = weights_for(model)
    load(model, weights)
    return model, weights


def tensors(weights):
    """Leaf tensors that take gradients."""
    return {name: paddle.to_tensor(value, stop_gradient=False) for name, value in weights.items()}


def images_of(shape, config):
    return formula_images(*shape, channels=config.get("in_chans", 3))


def as_float32(array):
    return paddle.to_tensor(array.astype("float32"))


def backward(features):
    """Gradients of a fixed random projection of the features."""
    cotangent = fill_by_name({"cotangent": features.shape})["cotangent"]
    (features * paddle.to_tensor(cotangent.astype(features.numpy().dtype))).sum().backward()


def set_training(model, training):
    model.train() if training else model.eval()


def assert_close(found, expected, tolerance):
    """No element is off by more than `tolerance` of the largest expected one."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error, largest = np.abs(found - expected).max(), np.abs(expected).max()
    assert error <= tolerance * largest, f"off by {error:.1e}, where the largest element is {largest:.1e}"


# The textbook and timm.


@pytest.mark.parametrize("name", CASES)
def test_the_textbook_computes_timms_features(name):
    case = CASES[name]
    _, weights = filled_regnet(case["model"])
    images = images_of(case["images"], case["model"])
    found = reference_stages(weights, images)
    assert_close(found["stage_4"], case["eval"], 1e-8)
    for stage, expected in zip(["stem", "stage_1", "stage_2", "stage_3", "stage_4"], case["stages"]):
        assert_close(found[stage].mean(axis=[2, 3]), expected, 1e-8)
    found = reference_stages(weights, images, training=True)
    assert_close(found["stage_4"].mean(axis=[2, 3]), case["train"], 1e-8)


@pytest.mark.parametrize("name", CASES)
def test_the_textbook_has_timms_gradients(name):
    case = CASES[name]
    params = tensors(filled_regnet(case["model"])[1])
    found = reference_stages(params, images_of(case["images"], case["model"]), training=True)
    backward(found["stage_4"].mean(axis=[2, 3]))
    learned = {timm_name(key): value.grad.numpy() for key, value in params.items() if not key.endswith(BUFFERS)}
    assert learned.keys() == case["gradient_norms"].keys()
    for key, norm in case["gradient_norms"].items():
        assert np.linalg.norm(learned[key]) == pytest.approx(norm, rel=1e-9), key


# The package's RegNet.


@pytest.mark.parametrize("name", CASES)
def test_regnet_computes_timms_features(name):
    case = CASES[name]
    model, _ = filled_regnet(case["model"])
    images = as_float32(images_of(case["images"], case["model"]))
    model.eval()
    assert_close(model(images), case["eval"], 1e-4)
    for stage, expected in zip(["stem", "stage_1", "stage_2", "stage_3", "stage_4"], case["stages"]):
        assert_close(model.extract(images, stage).mean(axis=[2, 3]), expected, 1e-4)
    model.train()
    assert_close(model.extract(images, "pooled"), case["train"], 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_regnet_has_timms_gradients(name):
    case = CASES[name]
    model, _ = filled_regnet(case["model"])
    backward(model.extract(as_float32(images_of(case["images"], case["model"])), "pooled"))
    for key, value in model.named_parameters():
        if not value.stop_gradient:
            norm = np.linalg.norm(value.grad.numpy())
            assert norm == pytest.approx(case["gradient_norms"][timm_name(key)], rel=1e-3), key


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_regnet_computes_the_textbooks_stages_and_gradients(name, training):
    config, size = MODELS[name]
    model, weights = filled_regnet(config)
    images, params = images_of((2, *size), config), tensors(weights)
    expected = reference_stages(params, images, training)
    set_training(model, training)
    for stage in expected:
        with paddle.no_grad():
            assert_close(model.extract(as_float32(images), stage), expected[stage], 1e-4)
    features = model(as_float32(images))
    last = expected[f"block_{config['d'] - 1}"]
    assert_close(features, last, 1e-4)
    backward(features)
    backward(last)
    for key, value in model.named_parameters():
        if not value.stop_gradient:
            assert_close(value.grad, params[key].grad, 1e-3)


@pytest.mark.parametrize("name", ["x", "y", "one stage"])
def test_evaluating_with_the_statistics_of_a_batch_is_training_on_that_batch(name):
    """One training step moves each running statistic a tenth of the way to the batch's, which can be solved for."""
    config, size = MODELS[name]
    model, weights = filled_regnet(config)
    images = images_of((2, *size), config)
    trained = model(as_float32(images))
    moved = {key: value.numpy().astype("float64") for key, value in model.state_dict().items()}
    of_batch = {key: (moved[key] - 0.9 * weights[key]) / 0.1 for key in weights if key.endswith(BUFFERS)}
    found = reference_stages({**weights, **of_batch}, images)
    assert_close(trained, found[f"block_{config['d'] - 1}"], 1e-3)


def test_the_traced_regnet_computes_the_same_for_any_size(tmp_path):
    model, _ = filled_regnet({**SMALL, "se_on": True})
    model.eval()
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec, full_graph=True), str(tmp_path / "regnet"))
    saved, (twin, _) = paddle.jit.load(str(tmp_path / "regnet")), filled_regnet({**SMALL, "se_on": True})
    twin.eval()
    for size in ((32, 64), (51, 40)):
        images = as_float32(formula_images(2, *size))
        assert_close(saved(images), twin(images), 1e-4)


# DeiT's teacher.


@pytest.fixture(scope="module")
def teacher():
    """RegNetY-160 with 1000 classes and weights filled by the names of DeiT's file."""
    model = Classification(head=ClasHead(3024, 1000), backbone=RegNet(**VARIANTS["regnety_160"]))
    head = fill_by_name({"head.fc.weight": (1000, 3024), "head.fc.bias": (1000,)})
    weights = {f"backbone.{name}": value for name, value in weights_for(model.backbone).items()}
    weights["head.fc_cls.weight"], weights["head.fc_cls.bias"] = head["head.fc.weight"].T, head["head.fc.bias"]
    load(model, weights)
    model.eval()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["regnety_160"], ids=lambda case: "x".join(map(str, case["images"])))
def test_regnety_160_gives_the_logits_of_timms(teacher, case):
    with paddle.no_grad():
        logits = teacher(as_float32(formula_images(*case["images"])))
    assert_close(logits, case["logits"], 1e-4)
