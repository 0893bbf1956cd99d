"""The parity tests can fail: one change of the maths or of a weight moves the logits by more than they allow."""

import numpy as np
import paddle
import pytest
from paddle import nn
from parity import LOGITS_TOLERANCE, Files, relative_difference
from peer import needs

pytestmark = needs("timm")


def maths(**options):
    return lambda model: model.backbone.set_maths(**options)


def epsilon(kind, value):
    def change(model):
        for layer in model.sublayers():
            if isinstance(layer, kind):
                layer._epsilon = value

    return change


def constant(part, value):
    """Every parameter that has `part` in its name becomes `value`."""

    def change(model):
        chosen = [tensor for name, tensor in model.state_dict().items() if part in name]
        assert chosen
        for tensor in chosen:
            tensor.set_value(np.full(tensor.shape, value, "float32"))

    return change


CHANGES = {
    "xcit_nano_12_p16_224": {
        "GELU by tanh": maths(act="gelu_tanh"),
        "q and k as they are": maths(qk_norm=False),
        "larger eps of LayerNorm": epsilon(nn.LayerNorm, 1e-5),
        "smaller eps of LayerNorm": epsilon(nn.LayerNorm, 1e-7),
        "larger eps of BatchNorm": epsilon(nn.BatchNorm2D, 1e-4),
        "smaller eps of BatchNorm": epsilon(nn.BatchNorm2D, 1e-6),
        "no position encoding": constant("token_projection", 0),
        "temperatures of 1": constant("temperature", 1),
        "no class token": constant("cls_token", 0),
        "one block without attention": constant("blocks.5.gamma1", 0),
        "one block without LPI": constant("blocks.5.gamma3", 0),
        "gammas of LPI are 1": constant("gamma3", 1),
    },
    "crossvit_9_240": {
        "GELU by tanh": maths(act="gelu_tanh"),
        "MindCV's eps of LayerNorm": maths(block_norm_eps=1e-7),
        "MindCV's scaling of images": maths(input_scaling="bilinear_aligned"),
        "no positions in one branch": constant("pos_embed.0", 0),
        "no positions in the other": constant("pos_embed.1", 0),
        "no class tokens": constant("cls_token", 0),
    },
    "regnetx_002": {
        "larger eps of BatchNorm": epsilon(nn.BatchNorm2D, 1e-4),
        "smaller eps of BatchNorm": epsilon(nn.BatchNorm2D, 1e-6),
    },
}


@pytest.fixture(scope="module", params=CHANGES)
def files(request, tmp_path_factory):
    return Files("timm", request.param, tmp_path_factory.mktemp(request.param), ["224x224"], [])


def test_a_change_of_the_maths_or_of_a_weight_is_seen_in_the_logits(files):
    images, logits = paddle.to_tensor(files.read("images", "224x224")), files.read("logits", "224x224")
    for what, change in CHANGES[files.name].items():
        model = files.model("weights.safetensors")
        model.eval()
        change(model)
        with paddle.no_grad():
            assert relative_difference(model(images).numpy(), logits) > 2 * LOGITS_TOLERANCE, what
