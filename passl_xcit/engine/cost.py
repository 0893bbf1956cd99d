"""What large images will take, told before they run, and what they took, told after.

Before a batch of large images runs, two small images do, and are measured: one of a quarter of the height and width,
and a tiny one for the time that no pixels take. From there time and memory grow with the pixels, as XCiT's and RegNet's
do; CrossViT scales images to its own size, and stays as it is.

Memory follows from the shapes that go through the layers, or through native operators: the largest one's input, output
and, of a convolution on a CPU, the matrix that its patches are copied to; with the images, and half as much again for
what is freed late.
"""

import contextlib
import math
import statistics
import time

import paddle
import psutil
from paddle import nn

from passl_xcit.modeling.backbones.backbone import check_sides
from passl_xcit.modeling.backbones.xcit import ClassAttentionBlock, ConvPatchEmbed, XCABlock
from passl_xcit.ops.conditions import applies
from passl_xcit.utils.device import peak_memory
from passl_xcit.utils.errors import DeviceError
from passl_xcit.utils.logger import TRAINER, get_logger

LARGE = 512 * 512  # pixels; of smaller images nothing is told
SHRUNK = 4  # so many times smaller is each side of the image that is measured
TINY = 32  # pixels; sides of measured images are multiples of it, and of the patches
RUNS = 3
ALLOWANCE = 1.5
BYTES = 4  # of a float32
GIB = 2**30
NATIVE = (ConvPatchEmbed, XCABlock, ClassAttentionBlock)  # each of which a native operator may compute

logger = get_logger(TRAINER)


class CostEstimate:
    """What a forward pass of a model takes at any size of images, from two small measured ones.

    Args:
        model: in evaluation mode: images [B, in_chans, H, W] -> a tensor.
        height, width: of the images that are meant.
    """

    def __init__(self, model, height, width):
        self.channels, self.grows = model.backbone.in_chans, model.backbone.TRACED_FOR_ANY_SIZE
        unit = math.lcm(TINY, model.backbone.size_divisor)
        sides = [max(1, side // SHRUNK // unit) * unit for side in (height, width)]
        self.pixels, self.layers = math.prod(sides), []
        with _layers_noted(model, self.layers):
            self._seconds(model, sides, runs=1)
        self._seconds(model, [unit, unit], runs=1)  # the first run is slower
        self.of_tiny, self.of_measured = self._seconds(model, [unit, unit]), self._seconds(model, sides)
        self.tiny_pixels = unit * unit

    @paddle.no_grad()
    def _seconds(self, model, sides, runs=RUNS):
        image = paddle.zeros([1, self.channels, *sides])
        times = []
        for _ in range(runs):
            begun = time.perf_counter()
            model(image).numpy()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def seconds(self, count, height, width):
        """Of `count` images together."""
        if not self.grows:
            return count * self.of_measured
        more = max(self.of_measured - self.of_tiny, 0.0) / max(self.pixels - self.tiny_pixels, 1)  # of each pixel
        return self.of_tiny + more * max(count * height * width - self.tiny_pixels, 0)

    def memory(self, count, height, width):
        """Bytes at the peak for `count` images together, beside what the process has."""
        growth = height * width / self.pixels if self.grows else 1.0
        largest = max(growth * (count * floats + copied) for floats, copied in self.layers)
        return BYTES * ALLOWANCE * (largest + count * self.channels * height * width)


@contextlib.contextmanager
def _layers_noted(model, found):
    """Inside, `found` gets (floats in and out, floats of copied patches) of each layer that runs."""

    def note(layer, inputs, output):
        copied = math.prod([*layer.weight.shape[1:], *output.shape[2:]]) if isinstance(layer, nn.Conv2D) else 0
        found.append((_size(inputs[0]) + _size(output), copied))

    hooks = [layer.register_forward_post_hook(note) for layer in _layers_with_tensors(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@paddle.no_grad()
def _layers_with_tensors(model):
    """The layers whose inputs and outputs are whole tensors: without layers in them, or one native operator."""
    example = paddle.zeros([1])
    native = [layer for layer in model.sublayers() if isinstance(layer, NATIVE) and applies(layer, example)]
    inside = {id(inner) for layer in native for inner in layer.sublayers()}
    leaves = [layer for layer in model.sublayers() if not layer.sublayers() and id(layer) not in inside]
    return native + leaves


def _size(tensor):
    return math.prod(tensor.shape) if isinstance(tensor, paddle.Tensor) else 0


class CostWatch:
    """Around forward passes: tells what the largest batch so far will take and has taken, if its images are large.

    Args:
        model: see CostEstimate.
    """

    def __init__(self, model):
        self.model, self.estimate, self.largest = model, None, 0

    @contextlib.contextmanager
    def watched(self, shape, batches=None):
        """Around the forward pass of a batch of the shape [B, C, H, W], one of `batches` if that is known.

        Raises:
            DataError: the model takes no images of this size.
            DeviceError: on a CPU, the batch is estimated to need more memory than is free; what fits is said.
        """
        count, _, height, width = shape
        if height * width <= LARGE or count * height * width <= self.largest:
            yield
            return
        check_sides(height, width, self.model.backbone.size_divisor)
        self.largest = count * height * width
        self.estimate = self.estimate or CostEstimate(self.model, height, width)
        what = f"{count} image{'s' if count > 1 else ''} of {width} x {height} pixels"
        self._tell_before(what, count, height, width, batches)
        held, peak, begun = _held(), peak_memory(), time.perf_counter()
        yield
        if held is None:
            paddle.device.synchronize()
        seconds, risen = time.perf_counter() - begun, (peak_memory() or 0) - (peak or 0)
        memory = f" and {_gib(peak_memory() - held)}" if held is not None and risen > 0 else ""
        logger.info(f"{what} took {_duration(seconds)}{memory}")

    def _tell_before(self, what, count, height, width, batches):
        memory, seconds = (find(count, height, width) for find in (self.estimate.memory, self.estimate.seconds))
        whole = f", {_duration(batches * seconds)} for {batches:,} batches" if batches else ""
        patch = self.model.backbone.size_divisor  # 1 for models whose tokens are as many for any image
        tokens = f", {height * width // patch**2:,} tokens each" if patch > 1 else ""
        logger.info(f"{what}{tokens}: about {_gib(memory)} and {_duration(seconds)} on {paddle.get_device()}{whole}")
        free = psutil.virtual_memory().available
        if paddle.get_device() == "cpu" and memory > free:
            one = self.estimate.memory(1, height, width)
            raise DeviceError(
                f"{what} need about {_gib(memory)} of memory, and {_gib(free)} are free: "
                + (_fewer(count, free / memory) if one <= free else _smaller(height, width, free / one))
            )


def _fewer(count, share):
    return f"take a batch size of {max(1, int(count * share))}"


def _smaller(height, width, share):
    height, width = (max(1, int(side * share**0.5) // TINY) * TINY for side in (height, width))
    return f"take images of at most {width} x {height} pixels"


def _held():
    """Bytes that this process has; None on a device other than the CPU."""
    return psutil.Process().memory_info().rss if paddle.get_device() == "cpu" else None


def _gib(size):
    return f"{size / GIB:.2f} GiB"


def _duration(seconds):
    return f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
