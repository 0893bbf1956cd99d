"""The native operators of a model beside Paddle's, part by part, in turns in one process."""

import statistics
import time
from functools import partial

import paddle
from paddle import nn

from passl_xcit.engine.benchmark.measure import ratios
from passl_xcit.modeling import factory
from passl_xcit.modeling.backbones.crossvit import Block, CrossAttentionBlock
from passl_xcit.modeling.backbones.xcit import ClassAttentionBlock, XCABlock, XCiT
from passl_xcit.ops.frozen import Frozen
from passl_xcit.ops.library import library, native_precision, portable, why
from passl_xcit.utils.errors import ConfigError

PARTS = {
    XCABlock: "XCA block",
    ClassAttentionBlock: "class-attention block",
    Block: "transformer block",
    CrossAttentionBlock: "cross-attention block",
}
PADDLES = "Paddle's operators"
TURN_SECONDS = 0.1  # of a turn at least: shorter ones measure the clock


class Stem(nn.Layer):
    """What an XCiT does before its first block: [B, I, H, W] -> [B, N, C]"""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return self.backbone.embed(images)[0]


def measure_operators(models, batch_size, image_size, repeats, told=lambda text: None):
    """How long each part of some models takes by native operators, in each precision there is, and by Paddle's.

    Args:
        models: names, as `create_model` takes them.
        repeats: turns of each.

    Returns:
        [{"model", "part", "shape" of its input, "mode", "seconds": {contender: [of one call in each turn]}}]

    Raises:
        ConfigError: the native operators are not in use.
    """
    if library() is None:
        raise ConfigError(f"--operators: the native operators are {why()}")
    found = []
    for model in models:
        backbone = factory.create_model(model).backbone
        paddle.seed(0)
        images = paddle.randn([batch_size, backbone.in_chans, image_size, image_size])
        for part, layer, inputs in parts_of(backbone, images):
            for mode in ("inference", "train"):
                told(f"{model}: {part}, {mode}")
                seconds = _in_turns(_step(layer, inputs, mode), repeats)
                shape = inputs[0].shape
                found.append({"model": model, "part": part, "shape": shape, "mode": mode, "seconds": seconds})
    return found


def parts_of(backbone, images):
    """[(name, layer, its inputs)] of the parts that have native operators, one for each kind and shape of input."""
    parts = [("stem", Stem(backbone), (images,))] if isinstance(backbone, XCiT) else []
    seen = {}

    def remember(layer, inputs):
        seen.setdefault((PARTS[type(layer)], tuple(inputs[0].shape)), (layer, inputs))

    hooks = [each.register_forward_pre_hook(remember) for each in backbone.sublayers() if type(each) in PARTS]
    backbone.eval()
    with paddle.no_grad():
        backbone(images)
    for hook in hooks:
        hook.remove()
    return parts + [(name, layer, inputs) for (name, _), (layer, inputs) in seen.items()]


def _step(layer, inputs, mode):
    x, *rest = inputs
    layer.train() if mode == "train" else layer.eval()
    frozen = Frozen(layer)

    @paddle.no_grad()
    def inference():
        with frozen:
            layer(x, *rest)

    def train():
        given = x.detach()
        given.stop_gradient = isinstance(layer, Stem)  # nobody wants gradients of images
        y = layer(given, *rest)
        y.backward(paddle.ones_like(y))
        for parameter in layer.parameters():
            parameter.clear_gradient()

    return train if mode == "train" else inference


def _in_turns(step, repeats):
    """{contender: [seconds of a call, in each turn]}"""
    precisions = ("float32", "bfloat16") if library().bfloat16 else ("float32",)
    ways = {name: partial(native_precision, name) for name in precisions}
    ways[PADDLES] = portable
    seconds = {name: [] for name in ways}
    for way in ways.values():
        with way():
            step()
    for turn in range(repeats):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            with ways[name]():
                seconds[name].append(_of_a_call(step))
    return seconds


def _of_a_call(step):
    began, calls = time.perf_counter(), 0
    while time.perf_counter() < began + TURN_SECONDS:
        step()
        calls += 1
    return (time.perf_counter() - began) / calls


def operator_lines(found):
    """Markdown: a table of `measure_operators`."""
    first, *others = found[0]["seconds"]
    head = ["model", "part", "input", "mode", f"{first}, ms", *(f"{name}, times as long" for name in others)]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for each in found:
        own, *others = each["seconds"].values()
        shape = " x ".join(map(str, each["shape"]))
        cells = [each["model"], each["part"], shape, each["mode"], f"{statistics.median(own) * 1e3:.2f}"]
        for seconds in others:
            median, low, high = ratios(own, seconds)
            cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
