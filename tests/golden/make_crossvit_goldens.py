"""Write crossvit_timm.json or crossvit_mindcv.json: what other programs' CrossViT computes with weights filled by name.

Run: python tests/golden/make_crossvit_goldens.py timm     (needs torch and timm, but no download)
     python tests/golden/make_crossvit_goldens.py mindcv   (needs mindspore, mindcv and numpy < 2, but no download)
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fill_by_name import fill_by_name, formula_images
from reference_crossvit import crossvit_weights, with_small_tokens

SMALL = {
    "img_size": [48, 32],
    "patch_size": [12, 16],
    "embed_dim": [16, 24],
    "depth": [[1, 2, 0], [2, 2, 0]],
    "num_heads": [2, 4],
    "mlp_ratio": [2, 3, 1],
}
CASES = {  # arguments of the model, and the shapes of the image batches it sees
    "plain": {"model": SMALL, "images": [[2, 3, 48, 48], [2, 3, 40, 56]]},
    "dagger": {"model": {**SMALL, "multi_conv": True}, "images": [[2, 3, 48, 48], [2, 3, 61, 48]]},
    "no_qkv_bias": {"model": {**SMALL, "qkv_bias": False, "num_heads": [1, 1]}, "images": [[2, 3, 48, 48]]},
    "grey": {"model": {**SMALL, "in_chans": 1, "embed_dim": [32, 16]}, "images": [[3, 1, 32, 32]]},
    "larger": {"model": {**SMALL, "img_size": [72, 96], "depth": [[1, 1, 0]]}, "images": [[2, 3, 72, 72]]},
}
OTHER_SIZE = [1, 3, 200, 260]
VARIANTS = {  # timm's model: the image batches
    "crossvit_tiny_240": [[1, 3, 240, 240], OTHER_SIZE],
    "crossvit_small_240": [[1, 3, 240, 240], OTHER_SIZE],
    "crossvit_base_240": [[1, 3, 240, 240]],
    "crossvit_9_240": [[1, 3, 240, 240], OTHER_SIZE],
    "crossvit_15_240": [[1, 3, 240, 240], OTHER_SIZE],
    "crossvit_18_240": [[1, 3, 240, 240]],
    "crossvit_9_dagger_240": [[1, 3, 240, 240], OTHER_SIZE],
    "crossvit_15_dagger_240": [[1, 3, 240, 240], OTHER_SIZE],
    "crossvit_18_dagger_240": [[1, 3, 240, 240]],
    "crossvit_15_dagger_408": [[1, 3, 408, 408]],
    "crossvit_18_dagger_408": [[1, 3, 408, 408]],
}
WITH_GRADIENTS = {*CASES, "crossvit_tiny_240", "crossvit_9_dagger_240"}
MINDCV_IMAGES = [[1, 3, 240, 240], [1, 3, 224, 224], OTHER_SIZE]
CLASSES = 10


def batch_of(shape):
    batch, channels, height, width = shape
    return formula_images(batch, height, width, channels)


def rounded(values, digits):
    return np.round(np.asarray(values, "float64"), digits).tolist()


# timm


def timm_model(name):
    """timm's model in float64, filled by IBM's names."""
    import timm
    import torch
    from timm.models.crossvit import CrossVit

    if name in VARIANTS:
        model = timm.create_model(name, num_classes=CLASSES)
    else:
        arguments = dict(CASES[name]["model"])
        sides = arguments.pop("img_size")
        arguments.update(img_size=sides[0], img_scale=(1.0, sides[1] / sides[0]))
        model = CrossVit(num_classes=CLASSES, **arguments)
    shapes = {ibm_name(key): tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {timm_name(key): torch.tensor(value) for key, value in crossvit_weights(shapes).items()}
    model.double().load_state_dict(weights)
    return model


def ibm_name(name):
    return re.sub(r"^(cls_token|pos_embed)_", r"\1.", name)


def timm_name(name):
    return re.sub(r"^(cls_token|pos_embed)\.", r"\1_", name)


def timm_golden(name, shapes):
    """Logits in evaluation for every batch; for some models the gradients' norms in training with the first batch."""
    import torch

    model = timm_model(name)
    with torch.no_grad():
        model.eval()
        result = {"logits": [rounded(model(torch.tensor(batch_of(shape))), 9) for shape in shapes]}
    if name in WITH_GRADIENTS:
        logits = model.train()(torch.tensor(batch_of(shapes[0])))
        (logits * torch.tensor(fill_by_name({"cotangent": logits.shape})["cotangent"])).sum().backward()
        norms = {ibm_name(key): value.grad.norm().item() for key, value in model.named_parameters()}
        result["gradient_norms"] = {key: float(f"{norm:.12g}") for key, norm in norms.items()}
    return result


def write_timm():
    import timm
    import torch

    torch.set_num_threads(1)  # the order of sums depends on it, and the last digits on that order
    inputs = {**CASES, **{name: {"images": images} for name, images in VARIANTS.items()}}
    source = {
        "source": "timm.models.crossvit (Apache-2.0), all in float64, weights by tests/reference_crossvit.py",
        "timm": timm.__version__,
        "torch": torch.__version__,
    }
    write("timm", source, {name: {**case, **timm_golden(name, case["images"])} for name, case in inputs.items()})


# MindCV


def mindcv_logits(change, shape):
    """What MindCV's crossvit_9 in float32, with the `change` of weights filled by IBM's names, makes of a batch."""
    import mindcv
    import mindspore

    model = mindcv.create_model("crossvit_9", num_classes=CLASSES).set_train(False)
    parameters = dict(model.parameters_and_names())
    shapes = {name_of_mindcv(key): value.shape for key, value in parameters.items()}
    assert len(shapes) == len(parameters)
    weights = change(crossvit_weights(shapes))
    for key, parameter in parameters.items():
        parameter.set_data(mindspore.Tensor(weights[name_of_mindcv(key)].astype("float32")))
    return rounded(model(mindspore.Tensor(batch_of(shape).astype("float32"))).asnumpy(), 6)


def name_of_mindcv(name):
    """IBM's name of a parameter, from the place where MindCV's model holds it."""
    name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return re.sub(r"(\.fusion\.\d)\.0\.", r"\1.", name)


def write_mindcv():
    import mindcv
    import mindspore

    cases = {"crossvit_9_240": (dict, MINDCV_IMAGES), "small_tokens": (with_small_tokens, MINDCV_IMAGES[:1])}
    source = {
        "source": "mindcv.models.crossvit (Apache-2.0), in float32, weights by tests/reference_crossvit.py",
        "mindcv": mindcv.__version__,
        "mindspore": mindspore.__version__,
    }
    goldens = {
        name: {"images": images, "logits": [mindcv_logits(change, shape) for shape in images]}
        for name, (change, images) in cases.items()
    }
    write("mindcv", source, goldens)


def write(program, source, cases):
    source["made_by"] = f"tests/golden/make_crossvit_goldens.py {program}"
    text = json.dumps({**source, "cases": cases}, separators=(",", ":"))
    text = re.sub(r'(?="\w+":\{"(model|images)":)', "\n", text)
    Path(__file__).with_name(f"crossvit_{program}.json").write_text(text + "\n")


if __name__ == "__main__":
    {"timm": write_timm, "mindcv": write_mindcv}[sys.argv[1]]()
