"""The textbook CrossViT computes what timm's and MindCV's compute, and the package's what the textbook says."""

import json
import math
from pathlib import Path

import numpy as np
import paddle
import pytest
from fill_by_name import fill_by_name, formula_images
from reference_crossvit import crossvit_weights, reference_logits, reference_stages, with_small_tokens

from passl_xcit.modeling.architectures import Classification
from passl_xcit.modeling.backbones.crossvit import CrossViT
from passl_xcit.modeling.heads import SwinTransformerClsHead
from passl_xcit.utils.registry import BACKBONES

GOLDEN_DIR = Path(__file__).resolve().parents[1] / "golden"
TIMM = json.loads((GOLDEN_DIR / "crossvit_timm.json").read_text())["cases"]
MINDCV = json.loads((GOLDEN_DIR / "crossvit_mindcv.json").read_text())["cases"]
OUTPUTS, GRADIENTS = 1e-5, 1e-4  # largest relative errors in float32
NO_GRADIENT = 1e-6  # of the largest gradient's norm; a key's bias has none, for softmax does not see what all keys have
CLASSES = 10
SMALL_CASES = [name for name, case in TIMM.items() if "model" in case]
VARIANTS = [name for name in TIMM if name not in SMALL_CASES]
WITH_GRADIENTS = [name for name, case in TIMM.items() if "gradient_norms" in case]


def marked(names, quick):
    """Parameters of a test, those not in `quick` marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


SMALL = {
    "img_size": [36, 32],
    "patch_size": [12, 16],
    "embed_dim": [8, 12],
    "depth": [[1, 2], [2, 1]],
    "num_heads": [2, 3],
    "mlp_ratio": [2, 3],
}
MODELS = {  # arguments of CrossViT, and the shape of its images
    "native size": (SMALL, (2, 3, 36, 36)),
    "size of the other branch": (SMALL, (2, 3, 32, 32)),
    "wide images": (SMALL, (2, 3, 30, 45)),
    "large images": (SMALL, (1, 3, 100, 36)),
    "dagger": ({**SMALL, "multi_conv": True}, (2, 3, 36, 50)),
    "no qkv bias": ({**SMALL, "qkv_bias": False, "num_heads": [1, 12]}, (2, 3, 36, 36)),
    "grey images": ({**SMALL, "in_chans": 1, "embed_dim": [16, 8], "num_heads": [4, 2]}, (2, 1, 20, 36)),
    "other patches": ({**SMALL, "patch_size": [6, 8], "img_size": [12, 40]}, (2, 3, 24, 16)),
    "mindcv's maths": ({**SMALL, **CrossViT.MATHS["mindcv"]}, (2, 3, 30, 45)),
}


def ibm_name(name):
    """Our name -> IBM's."""
    return name.replace("backbone.", "").replace("head.fc_cls.", "head.")


def classification(backbone):
    return Classification(SwinTransformerClsHead(backbone.num_features, CLASSES), backbone)


def filled(backbone, weights=None):
    """A model of 10 classes in evaluation mode with weights filled by IBM's names, and these in torch's layout."""
    model = classification(backbone)
    state = model.state_dict()
    if weights is None:
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        weights = crossvit_weights(
            {ibm_name(n): shape[::-1] if len(shape) == 2 else shape for n, shape in shapes.items()}
        )
    for name, value in state.items():
        array = weights[ibm_name(name)]
        value.set_value((array.T if array.ndim == 2 else array).astype("float32"))
    model.eval()
    return model, weights


def textbook_config(config):
    names = ("img_size", "patch_size", "depth", "num_heads", *CrossViT.MATHS["mindcv"])
    return {name: config[name] for name in names if name in config}


def float_images(shape):
    batch, channels, height, width = shape
    return formula_images(batch, height, width, channels)


def as_float32(images):
    return paddle.to_tensor(images.astype("float32"))


def assert_close(found, expected, tolerance):
    """Equal to `tolerance` of the largest expected number."""
    found = found.numpy() if isinstance(found, paddle.Tensor) else found
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"off by {error:.1e} of the largest"


def cotangent_of(shape):
    return fill_by_name({"cotangent": shape})["cotangent"]


def gradients(model, images):
    """{IBM's name: float64 array in torch's layout} of a fixed projection of the logits, in training mode."""
    model.train()
    logits = model(as_float32(images))
    (logits * paddle.to_tensor(cotangent_of(logits.shape).astype("float32"))).sum().backward()
    found = {ibm_name(name): value.grad.numpy().astype("float64") for name, value in model.named_parameters()}
    return {name: array.T if array.ndim == 2 else array for name, array in found.items()}


# The textbook, timm and MindCV.


@pytest.mark.parametrize("name", SMALL_CASES)
def test_the_textbook_computes_timms_logits(name):
    case = TIMM[name]
    weights = filled(CrossViT(**case["model"]))[1]
    for shape, expected in zip(case["images"], case["logits"]):
        found = reference_logits(weights, float_images(shape), **textbook_config(case["model"]))
        assert_close(found, expected, 2e-9)  # the golden numbers are rounded to nine places


@pytest.mark.slow
def test_the_textbook_with_mindcvs_maths_computes_mindcvs_logits():
    """MindCV computes in float32."""
    weights = filled(BACKBONES.build({"name": "crossvit_9_240"}))[1]
    config = {"img_size": (240, 224), "patch_size": (12, 16), "depth": [[1, 3]] * 3, "num_heads": (4, 4)}
    case = MINDCV["crossvit_9_240"]
    found = reference_logits(weights, float_images(case["images"][1]), **config, **CrossViT.MATHS["mindcv"])
    assert_close(found, case["logits"][1], 1e-5)


# CrossViT and the programs.


@pytest.mark.parametrize("name", SMALL_CASES)
def test_crossvit_computes_timms_logits(name):
    case = TIMM[name]
    model, _ = filled(CrossViT(**case["model"]))
    for shape, expected in zip(case["images"], case["logits"]):
        assert_close(model(as_float32(float_images(shape))), expected, OUTPUTS)


@pytest.mark.parametrize("name", marked(VARIANTS, quick=("crossvit_tiny_240", "crossvit_9_dagger_240")))
def test_the_variants_compute_timms_logits(name):
    case = TIMM[name]
    model, _ = filled(BACKBONES.build({"name": name}))
    for shape, expected in zip(case["images"], case["logits"]):
        with paddle.no_grad():
            assert_close(model(as_float32(float_images(shape))), expected, OUTPUTS)


@pytest.mark.parametrize("name", marked(WITH_GRADIENTS, quick=(*SMALL_CASES, "crossvit_9_dagger_240")))
def test_crossvit_has_timms_gradients_in_training(name):
    case = TIMM[name]
    backbone = CrossViT(**case["model"]) if name in SMALL_CASES else BACKBONES.build({"name": name})
    found = gradients(filled(backbone)[0], float_images(case["images"][0]))
    assert found.keys() == case["gradient_norms"].keys()
    none = NO_GRADIENT * max(case["gradient_norms"].values())
    for key, norm in case["gradient_norms"].items():
        assert np.linalg.norm(found[key]) == pytest.approx(norm, rel=GRADIENTS, abs=none), key


@pytest.fixture(scope="module")
def crossvit_9(request):
    """A crossvit_9_240 with one of the two sets of weights that MindCV's got, and MindCV's results."""
    model, weights = filled(BACKBONES.build({"name": "crossvit_9_240"}))
    if request.param == "small_tokens":
        model, _ = filled(model.backbone, with_small_tokens(weights))
    return model, MINDCV[request.param]


def logits_with_maths(crossvit_9, number, **options):
    model, case = crossvit_9
    model.backbone.set_maths(**{**CrossViT.MATHS["mindcv"], **options})
    with paddle.no_grad():
        return model(as_float32(float_images(case["images"][number])))


@pytest.mark.parametrize(
    ("crossvit_9", "number"),
    [(name, number) for name, case in MINDCV.items() for number in range(len(case["images"]))],
    indirect=["crossvit_9"],
)
def test_crossvit_with_mindcvs_maths_computes_mindcvs_logits(crossvit_9, number):
    assert_close(logits_with_maths(crossvit_9, number), crossvit_9[1]["logits"][number], OUTPUTS)


@pytest.mark.parametrize(
    ("crossvit_9", "option", "ibms"),
    [
        ("crossvit_9_240", "input_scaling", "bicubic"),
        ("crossvit_9_240", "act", "gelu"),
        ("small_tokens", "block_norm_eps", 1e-6),
    ],
    indirect=["crossvit_9"],
)
def test_mindcvs_logits_need_each_of_its_maths(crossvit_9, option, ibms):
    error = logits_with_maths(crossvit_9, 0, **{option: ibms}).numpy() - crossvit_9[1]["logits"][0]
    assert np.abs(error).max() > 10 * OUTPUTS * np.abs(crossvit_9[1]["logits"][0]).max()


# CrossViT and the textbook.


@pytest.mark.parametrize("name", MODELS)
def test_crossvit_computes_the_textbooks_stages(name):
    config, shape = MODELS[name]
    model, weights = filled(CrossViT(**config))
    images = float_images(shape)
    expected = reference_stages(weights, images, **textbook_config(config))
    assert set(model.backbone.stages) == expected.keys()
    for stage in model.backbone.stages:
        for found, branch in zip(model.backbone.extract(as_float32(images), stage), expected[stage]):
            assert_close(found, branch, OUTPUTS)


@pytest.mark.parametrize("name", ["dagger", "mindcv's maths"])
def test_crossvit_has_the_textbooks_gradients(name):
    """Along a random direction of every layer's parameters; the textbook's by central differences."""
    config, shape = MODELS[name]
    images = float_images(shape)[:1]
    model, weights = filled(CrossViT(**config))
    cotangent = cotangent_of((1, CLASSES))

    def objective(steps, factor):
        changed = {**weights, **{name: weights[name] + factor * step for name, step in steps.items()}}
        return (reference_logits(changed, images, **textbook_config(config)) * cotangent).sum()

    found = gradients(model, images)
    none = NO_GRADIENT * max(np.linalg.norm(gradient) for gradient in found.values())
    random = np.random.default_rng(1)
    for layer in sorted({name.rpartition(".")[0] for name in found}):
        steps = {name: random.normal(size=found[name].shape) for name in found if name.rpartition(".")[0] == layer}
        expected = (objective(steps, 1e-5) - objective(steps, -1e-5)) / 2e-5
        error = abs(sum((found[name] * step).sum() for name, step in steps.items()) - expected)
        norm = math.hypot(*(np.linalg.norm(found[name]) for name in steps))
        assert error < GRADIENTS * norm + none, f"{layer}: off by {error:.1e}, where the gradient's norm is {norm:.1e}"


@pytest.mark.parametrize(("eps", "wrong"), [(1e-6, 1e-7), (1e-7, 1e-6)])
def test_block_norm_eps_is_that_of_the_norms_in_the_blocks_and_in_the_fusion_only(eps, wrong):
    config = {**SMALL, "block_norm_eps": eps}
    weights = with_small_tokens(filled(CrossViT(**config))[1])
    model, _ = filled(CrossViT(**config), weights)
    images = float_images((2, 3, 36, 36))
    right, other = (
        reference_stages(weights, images, **{**textbook_config(config), "block_norm_eps": value})["block_0"]
        for value in (eps, wrong)
    )
    for found, expected, unlike in zip(model.backbone.extract(as_float32(images), "block_0"), right, other):
        assert_close(found, expected, OUTPUTS)
        assert np.abs(unlike - expected).max() > 1e-2 * np.abs(expected).max()


# Laws of the model on which the published weights depend.


def test_the_returning_class_token_replaces_the_old_one():
    """A constant returns where the last projection's weight is 0: nothing of the old class token is left."""
    model, _ = filled(CrossViT(**{**SMALL, "depth": [[1, 2]]}))
    for projection in model.backbone.blocks[0].revert_projs:
        projection[2].weight.set_value(paddle.zeros_like(projection[2].weight))
    tokens = model.backbone.extract(as_float32(float_images((2, 3, 36, 36))), "block_0")
    for projection, x in zip(model.backbone.blocks[0].revert_projs, tokens):
        np.testing.assert_array_equal(x[:, 0].numpy(), np.tile(projection[2].bias.numpy(), (2, 1)))


@pytest.mark.parametrize("branch", [0, 1])
def test_both_class_tokens_set_out_at_the_same_time(branch):
    """A branch's fusion changes its own class token, and nothing else of its stage."""
    model, _ = filled(CrossViT(**{**SMALL, "depth": [[1, 2]]}))
    images = as_float32(float_images((2, 3, 36, 36)))
    before = model.backbone.extract(images, "block_0")
    bias = model.backbone.blocks[0].fusion[branch].attn.proj.bias
    bias.set_value(bias + paddle.arange(bias.shape[0], dtype="float32"))
    after = model.backbone.extract(images, "block_0")
    assert np.abs(after[branch][:, 0].numpy() - before[branch][:, 0].numpy()).max() > 1e-2
    np.testing.assert_array_equal(after[branch][:, 1:].numpy(), before[branch][:, 1:].numpy())
    np.testing.assert_array_equal(after[1 - branch].numpy(), before[1 - branch].numpy())


ALL = 1 - 1e-9  # a rate at which everything is dropped


def test_stochastic_depth_skips_both_halves_of_a_block_and_the_visit():
    config = {**SMALL, "depth": [[1, 2]]}
    model, weights = filled(CrossViT(**config, drop_path_rate=ALL))
    model.train()
    shorter, _ = filled(CrossViT(**{**SMALL, "depth": [[1, 1]]}), weights)
    attended = [fusion.attn.proj for fusion in shorter.backbone.blocks[0].fusion]
    for layer in attended:
        layer.weight.set_value(paddle.zeros_like(layer.weight))
        layer.bias.set_value(paddle.zeros_like(layer.bias))
    images = as_float32(float_images((2, 3, 36, 36)))
    for found, branch in zip(model.backbone.extract(images, "block_0"), shorter.backbone.extract(images, "block_0")):
        np.testing.assert_allclose(found.numpy(), branch.numpy(), rtol=0, atol=1e-5)  # native operators may take one


def test_dropout_drops_the_embedded_tokens_and_what_the_blocks_add():
    model, _ = filled(CrossViT(**SMALL, drop_rate=ALL))
    model.train()
    for tokens in model.backbone.extract(as_float32(float_images((2, 3, 36, 36))), "block_0"):
        np.testing.assert_array_equal(tokens[:, 1:].numpy(), np.zeros(tokens[:, 1:].shape))


def test_the_order_of_the_patches_is_in_the_position_embeddings_alone():
    """Patches and their positions rotated together give the same class tokens."""
    config = {**SMALL, "img_size": [36, 48]}
    model, weights = filled(CrossViT(**config))
    images = float_images((2, 3, 36, 36)).astype("float32")
    before = [branch.numpy() for branch in model.backbone(as_float32(images))]
    turned = {name: array.copy() for name, array in weights.items()}
    for branch in (0, 1):  # 3 x 3 patches in both branches; the scaled image of the second turns with the first
        grid = weights[f"pos_embed.{branch}"][:, 1:].reshape(1, 3, 3, -1)
        turned[f"pos_embed.{branch}"][:, 1:] = np.rot90(grid, axes=(1, 2)).reshape(1, 9, -1)
        turned[f"patch_embed.{branch}.proj.weight"] = np.rot90(
            weights[f"patch_embed.{branch}.proj.weight"], axes=(2, 3)
        )
    model, _ = filled(CrossViT(**config), turned)
    after = model.backbone(as_float32(np.ascontiguousarray(np.rot90(images, axes=(2, 3)))))
    for found, branch in zip(after, before):
        assert_close(found, branch, OUTPUTS)
