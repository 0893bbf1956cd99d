"""One training step of a model on a device and on the CPU, layer by layer: does the device compute the same numbers?

In float32, with the same weights, images and labels. Dropout and stochastic depth are off, for devices draw other
numbers; all else is in training mode. Noise is added to the weights, so that no branch is as good as switched off:
XCiT's deep models begin with branches scaled by 1e-5, RegNet's with 0.

A layer's output and a parameter's gradient are compared by their largest difference, relative to the CPU's largest
value. Some gradients cannot be compared: that of a key's bias is zero but for rounding, and what lies before a ReLU
jumps when a value close to 0 changes its sign. So the CPU computes a second time, with images changed a little; what
changes by more than is tolerated then (most gradients of RegNet, for its ReLUs) judges no device.
"""

import contextlib
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn

from passl_xcit.modeling.layers import DropPath
from passl_xcit.utils.device import select_device
from passl_xcit.utils.errors import TrainingError

BATCH = 2
NOISE = 0.02
CHANGE = 1e-5  # of the images; ten times what float32 rounds by
# Measured with XCiT, CrossViT and RegNet of random weights: float32 rounds outputs by 3e-6 of the largest value and
# gradients by 6e-5 (against float64); factors rounded to float16's 11 bits change some output by 1e-3 or more.
TOLERANCE = 5e-4


class Difference(NamedTuple):
    """How far a device is off.

    Attributes:
        part: "output" or "gradient".
        name: of the layer or parameter; further outputs and later calls of a layer have their number.
        absolute: largest difference; NaN where one of the two is not finite.
        relative: the same divided by the CPU's largest value.
        unsteadiness: the relative difference that changed images make on the CPU.
    """

    part: str
    name: str
    absolute: float
    relative: float
    unsteadiness: float

    def is_judged(self, tolerance):
        return not self.unsteadiness > tolerance or math.isnan(self.relative)

    def is_beyond(self, tolerance):
        return self.is_judged(tolerance) and not self.relative <= tolerance


def compare_devices(make_model, size, device, reference="cpu", seed=0):
    """Differences of a forward and backward pass on `device` from one on `reference`.

    Args:
        make_model: returns a new classification on the current device.
        size: (height, width) of the images.
        device, reference: Paddle's names, such as "npu:0".

    Returns:
        A list of Difference: of outputs, in the order in which they are computed, then of gradients, in theirs.

    Raises:
        ConfigError: one of the devices is not there.
        TrainingError: `device` cannot run what `reference` can.
    """
    before = paddle.get_device()
    try:
        paddle.seed(seed)
        select_device(reference)
        model = make_model()
        weights = _noisy_weights(model, seed)
        images, labels = _batch(model, size, seed)
        expected = _step(model, weights, images, labels)
        changed = _step(model, weights, _changed(images, seed), labels)
        select_device(device)
        found = _tried(device, _step, make_model(), weights, images, labels)
    finally:
        paddle.set_device(before)
    return _differences(expected, changed, found)


def _tried(device, step, *arguments):
    try:
        return step(*arguments)
    except Exception as error:  # Paddle's are of a dozen kinds, and the same step has just run elsewhere
        reason = str(error).strip().splitlines()[-1]
        raise TrainingError(f"{device} cannot run a training step: {reason}") from error


def _noisy_weights(model, seed):
    """{name: array} of the state of `model`, with noise in what is trained."""
    rng = np.random.default_rng(seed)
    trained = {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    return {
        name: tensor.numpy() + NOISE * rng.standard_normal(tensor.shape).astype("float32") * (name in trained)
        for name, tensor in model.state_dict().items()
    }


def _batch(model, size, seed):
    """Random (images float32 [B, C, H, W], labels int64 [B]) as arrays."""
    rng = np.random.default_rng([seed, 1])
    images = rng.standard_normal([BATCH, model.backbone.in_chans, *size]).astype("float32")
    return images, rng.integers(0, model.num_classes, [BATCH])


def _changed(images, seed):
    noise = np.random.default_rng([seed, 2]).standard_normal(images.shape)
    return (images * (1 + CHANGE * noise)).astype("float32")


def _step(model, weights, images, labels):
    """{("output", layer): array, ("gradient", parameter): array} of a forward and backward pass of `model`."""
    for name, tensor in model.state_dict().items():
        tensor.set_value(weights[name])
    model.train()
    for layer in model.sublayers():
        if isinstance(layer, (nn.Dropout, DropPath)):
            layer.eval()
    model.clear_gradients()
    with _outputs_kept(model) as arrays:
        loss = model.train_iter(paddle.to_tensor(images), paddle.to_tensor(labels))["loss"]
        loss.backward()
    arrays["output", "loss"] = loss.numpy()
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None:
            arrays["gradient", name] = parameter.grad.numpy()
    return arrays


@contextlib.contextmanager
def _outputs_kept(model):
    """Inside, the layers' outputs go into the dict that this yields."""
    arrays, calls = {}, Counter()

    def keep(name, outputs):
        calls[name] += 1
        many = isinstance(outputs, (tuple, list))
        for index, output in enumerate(outputs if many else [outputs]):
            suffix = f" [{index}]" if many else ""
            suffix += f" (call {calls[name]})" if calls[name] > 1 else ""
            if isinstance(output, paddle.Tensor):
                arrays["output", f"{name}{suffix}"] = output.numpy()

    hooks = [
        layer.register_forward_post_hook(lambda layer, inputs, outputs, name=name: keep(name, outputs))
        for name, layer in model.named_sublayers()
    ]
    try:
        yield arrays
    finally:
        for hook in hooks:
            hook.remove()


def _differences(expected, changed, found):
    """Differences of `found` from `expected`, {(part, name): array}, in their order."""
    differences = []
    for key, array in expected.items():
        (_, unsteadiness), off = (_compared(array, other[key]) for other in (changed, found))
        differences.append(Difference(*key, *off, unsteadiness))
    return differences


def _compared(expected, found):
    """(absolute, relative) difference."""
    scale = _largest(expected)
    with np.errstate(invalid="ignore"):
        absolute = _largest(found - expected)
    if not np.isfinite(absolute):
        return np.nan, np.nan
    return absolute, absolute / scale if scale else (np.inf if absolute else 0.0)


def _largest(array):
    return float(np.abs(array).max())
