"""Write xcit_timm.json and xcit_timm_features.npz: what timm's XCiT computes with weights filled by name.

The first has small models with their gradients, the second the features of all 14 architectures at two sizes.

Needs torch and timm but no download. Run: python tests/golden/make_xcit_goldens.py
"""

import json
import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import timm
import torch
from timm.models.xcit import Xcit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fill_by_name import fill_by_name, formula_images

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "cls_attn_layers": 2, "eta": 1.0, "tokens_norm": True}
CASES = {
    "p16_tokens_norm": {"model": {**SMALL, "patch_size": 16}, "images": [2, 48, 64]},
    "p16_cls_norm": {"model": {**SMALL, "patch_size": 16, "tokens_norm": False}, "images": [2, 64, 48]},
    "p8_tokens_norm": {"model": {**SMALL, "patch_size": 8, "num_heads": 2}, "images": [2, 24, 40]},
    "p8_cls_norm": {"model": {**SMALL, "patch_size": 8, "num_heads": 8, "tokens_norm": False}, "images": [2, 40, 24]},
    "p8_one_head": {"model": {**SMALL, "patch_size": 8, "num_heads": 1, "depth": 1}, "images": [2, 32, 16]},
    "p16_small_eta": {"model": {**SMALL, "patch_size": 16, "depth": 3, "eta": 1e-5}, "images": [2, 48, 32]},
    "xcit_nano_12_p16": {
        "model": {**SMALL, "patch_size": 16, "embed_dim": 128, "depth": 12, "tokens_norm": False},
        "images": [1, 224, 224],
    },
}
SIZES = ((224, 224), (96, 160))
SOURCE = {
    "source": "outputs of timm.models.xcit.Xcit (Apache-2.0), all in float64, weights filled by tests/fill_by_name.py",
    "timm": timm.__version__,
    "torch": torch.__version__,
    "made_by": "tests/golden/make_xcit_goldens.py",
}
SPLIT = re.compile(r"(cls_attn_blocks\.\d+\.attn\.)(q|k|v)\.(weight|bias)")


def official_shapes(model):
    """{facebookresearch/xcit's name: shape} of a timm model, where class attention's q, k and v are one `qkv`."""
    shapes = {}
    for name, value in model.state_dict().items():
        shape = list(value.shape)
        if SPLIT.fullmatch(name):
            name, shape = SPLIT.sub(r"\1qkv.\3", name), [3 * shape[0], *shape[1:]]
        if not name.endswith("num_batches_tracked"):
            shapes[name.replace("pos_embed.", "pos_embeder.")] = shape
    return shapes


def timm_weights(official):
    """Official names -> timm's: rows [q; k; v] of class attention's `qkv` apart."""
    weights = {}
    for name, value in official.items():
        if name.startswith("cls_attn_blocks.") and ".qkv." in name:
            for letter, rows in zip("qkv", torch.tensor(value).chunk(3)):
                weights[name.replace(".qkv.", f".{letter}.")] = rows
        else:
            weights[name.replace("pos_embeder.", "pos_embed.")] = torch.tensor(value)
    return weights


def gradient_norms(model, shapes):
    """L2 norm of every parameter's gradient, which no layout changes, under the official names."""
    squares = dict.fromkeys(shapes, 0.0)
    for name, parameter in model.named_parameters():
        official = SPLIT.sub(r"\1qkv.\3", name).replace("pos_embed.", "pos_embeder.")
        squares[official] += parameter.grad.square().sum().item()
    return {name: square**0.5 for name, square in squares.items() if "running_" not in name}


def forward(network, inputs):
    """Features [B, C]. timm casts its positions to float32 in a float64 network, too: an error of 1e-7, here undone."""
    with mock.patch.object(torch, "float32", torch.float64):
        return network(inputs)


def golden(model, images):
    """Shapes of the weights, and features in evaluation; for a batch also in training, with the gradients."""
    batch, height, width = images
    network = Xcit(img_size=(height, width), num_classes=0, **model).double()
    shapes = official_shapes(network)
    missing, unexpected = network.load_state_dict(timm_weights(fill_by_name(shapes, model["eta"])), strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    inputs = torch.tensor(formula_images(batch, height, width))
    with torch.no_grad():
        result = {"shapes": shapes, "eval": forward(network.eval(), inputs).tolist()}
    if batch > 1:
        features = forward(network.train(), inputs)
        cotangent = torch.tensor(fill_by_name({"cotangent": features.shape})["cotangent"])
        (features * cotangent).sum().backward()
        result.update(train=features.tolist(), gradient_norms=gradient_norms(network, shapes))
    return result


def architecture(name):
    """timm's model without its head, float64, weights filled by name, LayerScale as trained: about 1."""
    network = timm.create_model(name, num_classes=0).double().eval()
    weights = timm_weights(fill_by_name(official_shapes(network)))
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing), (missing, unexpected)
    return network


def all_architectures():
    """{"xcit_nano_12_p16/224x224": features float32 [C], ...}"""
    features = {}
    for size in ("nano_12", "tiny_12", "tiny_24", "small_12", "small_24", "medium_24", "large_24"):
        for patch in (16, 8):
            network = architecture(f"xcit_{size}_p{patch}_224")
            for height, width in SIZES:
                with torch.no_grad():
                    found = forward(network, torch.tensor(formula_images(1, height, width)))
                features[f"xcit_{size}_p{patch}/{height}x{width}"] = found[0].numpy().astype("float32")
    return features


def main():
    torch.set_num_threads(1)  # the order of sums depends on it, and the last digits on that order
    np.savez(Path(__file__).with_name("xcit_timm_features.npz"), **all_architectures())
    cases = {name: {**case, **golden(**case)} for name, case in CASES.items()}
    text = json.dumps({**SOURCE, "cases": cases}, separators=(",", ":"))
    Path(__file__).with_name("xcit_timm.json").write_text(re.sub(r'(?="[\w]+":\{"model")', "\n", text) + "\n")


if __name__ == "__main__":
    main()
