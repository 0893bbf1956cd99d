"""The benchmark's contender `textbook`: reference_xcit.py trained and asked, as `ours.py` does it with our model."""

import sys
from pathlib import Path

from passl_xcit.engine.benchmark.protocol import serve
from passl_xcit.utils.startup import prepare_paddle

prepare_paddle()

import paddle  # noqa: E402
import paddle.nn.functional as F  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from reference_xcit import reference_forward  # noqa: E402

from passl_xcit.engine.benchmark import ours  # noqa: E402
from passl_xcit.modeling import factory  # noqa: E402
from passl_xcit.modeling.backbones.xcit import VARIANTS  # noqa: E402


def build(task):
    """See `ours`."""
    if task["mode"] not in ("inference", "train") or task["precision"] != "float32" or task["model"] not in VARIANTS:
        raise ValueError("the textbook is for XCiT in float32 only")
    model = factory.create_model(task["model"], pretrained=task["ours"])
    inputs = load_file(task["inputs"])
    images, targets = (paddle.to_tensor(inputs[name]) for name in ("images", "targets"))

    def logits(training):
        return textbook_logits(model, task["model"], images, training)

    if task["mode"] == "train":
        return ours.training_step(model.parameters(), lambda: F.cross_entropy(logits(True), targets))
    return paddle.no_grad()(lambda: logits(False).numpy())


def textbook_logits(model, name, images, training):
    """[B, 3, H, W] -> [B, K] with the parameters of `model`."""
    params = {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}
    sizes = {key: VARIANTS[name][key] for key in ("patch_size", "depth", "num_heads", "tokens_norm")}
    features = reference_forward(params, images, cls_attn_layers=2, training=training, **sizes)
    return F.linear(features, params["head.fc_cls.weight"], params["head.fc_cls.bias"])


if __name__ == "__main__":
    serve(build)
