"""The convolutional stem in C++, in evaluation and in training: what ConvPatchEmbed's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes
from dataclasses import dataclass
from operator import attrgetter

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from passl_xcit.ops.batch_norm import move_statistics
from passl_xcit.ops.frozen import Evaluation
from passl_xcit.ops.library import library
from passl_xcit.ops.structures import address, addresses, integers, pointers
from passl_xcit.ops.training import saved_for, wanted_of

MAX_STAGES = 8
TRAINED = ("0.weight", "1.weight", "1.bias")  # of a stage: convolution, BatchNorm
PARAMETERS = (*TRAINED, "1._mean", "1._variance")


def of_stages(*names):
    return [(name, ctypes.c_void_p * MAX_STAGES) for name in names]


class Stem(ctypes.Structure):
    _fields_ = [
        *integers("batch", "height", "width", "stages"),
        ("widths", ctypes.c_int64 * (MAX_STAGES + 1)),
        *pointers("images", "positions", "y", "packed"),
        *of_stages(*PARAMETERS),
    ]


class StemTraining(ctypes.Structure):
    _fields_ = [("stem", Stem), *of_stages("mean", "variance"), *pointers("saved")]


class StemBackward(ctypes.Structure):
    _fields_ = [("forward", StemTraining), *pointers("dy", "images", "positions"), *of_stages(*TRAINED)]


def stem(patch_embed, images, positions):
    """A ConvPatchEmbed in evaluation and the positional encoding: images [B, I, H * p, W * p] -> tokens [B, N, C]

    Args:
        positions: [N, C]
    """
    y = paddle.empty([images.shape[0], *positions.shape], dtype="float32")
    EVALUATION.run(patch_embed, images, positions, y)
    return y


def _stages(patch_embed):
    return list(patch_embed.proj)[::2]  # GELU lies between them


def _parameters(patch_embed):
    return [attrgetter(name)(stage) for name in PARAMETERS for stage in _stages(patch_embed)]


def _stem(patch_embed, parameters):
    convolutions = [stage[0].weight for stage in _stages(patch_embed)]
    stages, widths = len(convolutions), [convolutions[0].shape[1], *(weight.shape[0] for weight in convolutions)]
    operator = Stem(1, 2**stages, 2**stages, stages, tuple(widths))
    found = addresses(*parameters)
    for index, name in enumerate(PARAMETERS):
        getattr(operator, name)[:stages] = found[index * stages :][:stages]
    return operator


def _with_images(operator, images, positions, y):
    operator.batch, _, operator.height, operator.width = images.shape
    operator.images, operator.positions, operator.y = addresses(images, positions, y)
    return operator


EVALUATION = Evaluation("stem", _parameters, _stem, _with_images, lambda patch_embed: True)


def train_stem(patch_embed, images, positions):
    """A ConvPatchEmbed in training and the positional encoding, with gradients; arguments and result as of `stem`.

    It moves BatchNorm's running statistics.
    """
    weights = [weight for stage in _stages(patch_embed) for weight in (stage[0].weight, stage[1].weight, stage[1].bias)]
    return _TrainedStem.apply(images, positions, _Call(patch_embed, EVALUATION.half(patch_embed, library())), *weights)


@dataclass
class _Call:
    """What no gradient is taken of; PyLayer looks for tensors in lists and tuples."""

    patch_embed: nn.Layer
    half: bool


class _TrainedStem(PyLayer):
    @staticmethod
    def forward(ctx, images, positions, call, *weights):
        y = paddle.empty([images.shape[0], *positions.shape], dtype="float32")
        operator = StemTraining(EVALUATION.of_now(call.patch_embed, images, positions, y))
        norms = [stage[1] for stage in _stages(call.patch_embed)]
        means, variances = ([paddle.empty_like(norm._mean) for norm in norms] for _ in range(2))
        saved = saved_for("stem", operator, call.half)
        operator.mean[: len(norms)], operator.variance[: len(norms)] = addresses(*means), addresses(*variances)
        operator.saved = address(saved)
        library().run("stem_training", operator, call.half)
        for norm, mean, variance in zip(norms, means, variances):
            move_statistics(norm, mean, variance)
        ctx.save_for_backward(saved, images, positions, *weights)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        saved, images, positions, *weights = ctx.saved_tensor()
        inputs, dy = (images, positions, *weights), dy.contiguous()
        gradients = [paddle.empty_like(tensor) for tensor in inputs]
        stem = EVALUATION.of_now(ctx.call.patch_embed, images, positions, dy)
        forward = StemTraining(stem, saved=address(saved))
        # Gradients of images and positions are computed only if somebody wants them.
        first_two = addresses(*wanted_of(gradients[:2], inputs))
        operator = StemBackward(forward, address(dy), *first_two)
        for index, name in enumerate(TRAINED):
            of_name = gradients[2 + index :: len(TRAINED)]
            getattr(operator, name)[: len(of_name)] = addresses(*of_name)
        library().run("stem_backward", operator, ctx.call.half)
        return wanted_of(gradients, inputs)
