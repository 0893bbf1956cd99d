"""Write regnet_timm.json: what timm's RegNets compute with weights filled by name, and how large they are.

Needs torch and timm but no download. Run: python tests/golden/make_regnet_goldens.py
"""

import json
import re
import sys
from pathlib import Path

import timm
import torch
from timm.models.regnet import RegNet, RegNetCfg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fill_by_name import fill_by_name, formula_images

SMALL = {"w_a": 12.0, "w_0": 8, "w_m": 2.0, "d": 6, "group_w": 4, "bot_mul": 1.0, "se_on": False}
CASES = {  # arguments of our RegNet; batch, height and width of the images
    "x": {"model": SMALL, "images": [2, 64, 40]},
    "y_odd_sizes": {"model": {**SMALL, "se_on": True, "group_w": 12}, "images": [2, 51, 33]},
    "y_narrow_inside": {"model": {**SMALL, "se_on": True, "bot_mul": 0.5, "in_chans": 1}, "images": [2, 33, 64]},
    "x_wide_inside": {"model": {**SMALL, "bot_mul": 2.0, "group_w": 8, "stem_w": 16}, "images": [2, 40, 64]},
}
TEACHER_SIZES = [[1, 224, 224], [1, 131, 190]]
MEGAFLOPS = (200, 400, 600, 800, 1600, 3200, 4000, 6400, 8000, 12000, 16000, 32000)
NAMES = [f"regnet{kind}_{flops // 100:03d}" for kind in "xy" for flops in MEGAFLOPS]
SOURCE = {
    "source": "outputs of timm.models.regnet (Apache-2.0), all in float64, weights filled by tests/fill_by_name.py",
    "timm": timm.__version__,
    "torch": torch.__version__,
    "made_by": "tests/golden/make_regnet_goldens.py",
}


def network(w_a, w_0, w_m, d, group_w, bot_mul, se_on, stem_w=32, in_chans=3):
    """timm's RegNet, without a head, from the arguments of ours."""
    sizes = {"wa": w_a, "w0": w_0, "wm": w_m, "depth": d, "group_size": group_w, "bottle_ratio": bot_mul}
    config = RegNetCfg(**sizes, se_ratio=0.25 if se_on else 0.0, stem_width=stem_w)
    return RegNet(config, in_chans=in_chans, num_classes=0)


def fill(model):
    """The model in float64 with weights filled by name."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if value.ndim}
    weights = {name: torch.tensor(value) for name, value in fill_by_name(shapes).items()}
    missing, unexpected = model.double().load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    return model


def images_of(shape, channels=3):
    return torch.tensor(formula_images(*shape, channels=channels))


def rounded(tensor):
    return tensor.round(decimals=9).tolist()


def golden(model, images):
    """In evaluation the feature map, and stem and stages averaged over places; in training features and gradients."""
    net = fill(network(**model))
    inputs = images_of(images, model.get("in_chans", 3))
    with torch.no_grad():
        final, maps = net.eval().forward_intermediates(inputs)
        result = {"eval": rounded(final), "stages": [rounded(found.mean((2, 3))) for found in maps]}
    features = net.train()(inputs)
    cotangent = torch.tensor(fill_by_name({"cotangent": features.shape})["cotangent"])
    (features * cotangent).sum().backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in net.named_parameters()}
    return {**result, "train": rounded(features), "gradient_norms": norms}


def teacher():
    """Logits of DeiT's teacher for images of two sizes."""
    net = fill(timm.create_model("regnety_160")).eval()
    with torch.no_grad():
        return [{"images": shape, "logits": rounded(net(images_of(shape)))} for shape in TEACHER_SIZES]


def parameter_count(name):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def main():
    torch.set_num_threads(1)  # the order of sums depends on it, and the last digits on that order
    cases = {name: {**case, **golden(**case)} for name, case in CASES.items()}
    counts = {name: parameter_count(name) for name in NAMES}
    contents = {**SOURCE, "parameters": counts, "cases": cases, "regnety_160": teacher()}
    text = json.dumps(contents, separators=(",", ":"))
    Path(__file__).with_name("regnet_timm.json").write_text(re.sub(r'(?="[\w]+":\{"model")', "\n", text) + "\n")


if __name__ == "__main__":
    main()
