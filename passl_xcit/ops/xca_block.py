"""The XCA block in C++, in evaluation and in training: what XCABlock's own `forward` says, faster.

The layer stays the only holder of its parameters: nothing is kept from one call to the next, so that weights that were
loaded, or trained in between, count at once. Shapes as in native/operators.h.
"""

import ctypes
from dataclasses import dataclass
from operator import attrgetter

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from passl_xcit.ops.batch_norm import move_statistics
from passl_xcit.ops.library import library
from passl_xcit.ops.structures import address, addresses, addresses_in, affine, integers, pointers

# In the order of the structs in native/operators.h.
PARAMETERS = (
    *affine("norm1"),
    "attn.temperature",
    *affine("attn.qkv", "attn.proj"),
    "gamma1",
    *affine("norm3", "local_mp.conv1", "local_mp.bn"),
    "local_mp.bn._mean",
    "local_mp.bn._variance",
    *affine("local_mp.conv2"),
    "gamma3",
    *affine("norm2", "mlp.fc1", "mlp.fc2"),
    "gamma2",
)
TRAINED = tuple(name for name in PARAMETERS if "._" not in name)


class XcaBlock(ctypes.Structure):
    _fields_ = [
        *integers("batch", "height", "width", "channels", "heads", "hidden"),
        *pointers("x", "y", *PARAMETERS),
    ]


class XcaTraining(ctypes.Structure):
    _fields_ = [
        ("block", XcaBlock),
        *pointers("keep1", "keep3", "keep2", "mean", "variance", "saved"),
    ]


class XcaBackward(ctypes.Structure):
    _fields_ = [
        ("forward", XcaTraining),
        *pointers("dy", "dx", *TRAINED),
    ]


def xca_block(block, x, height, width):
    """An XCABlock in evaluation: x [B, N, C] -> [B, N, C], N = height * width"""
    y = paddle.empty_like(x)
    library().run("xca_block", _xca_block(block, x, y, height, width), half=_in_bfloat16(block))
    return y


def _in_bfloat16(block):
    """Heads must not share a pair of bfloat16."""
    return library().in_bfloat16() and len(block.gamma1) // block.attn.num_heads % 2 == 0


def _xca_block(block, x, y, height, width):
    batch, _, channels = x.shape
    sizes = (batch, height, width, channels, block.attn.num_heads, block.mlp.fc1.weight.shape[1])
    return XcaBlock(*sizes, *addresses(x, y), *addresses_in(block, PARAMETERS))


def train_xca_block(block, x, height, width):
    """An XCABlock in training, with gradients: x [B, N, C] -> [B, N, C]. It moves BatchNorm's running statistics."""
    keeps = [block.drop_path.draw(x) for _ in range(3)]
    parameters = [attrgetter(name)(block) for name in TRAINED]
    return _TrainedXcaBlock.apply(x, _Call(block, height, width, keeps, _in_bfloat16(block)), *parameters)


@dataclass
class _Call:
    """What no gradient is taken of; PyLayer looks for tensors in lists and tuples."""

    block: nn.Layer
    height: int
    width: int
    keeps: list
    half: bool


class _TrainedXcaBlock(PyLayer):
    @staticmethod
    def forward(ctx, x, call, *parameters):
        y, bn = paddle.empty_like(x), call.block.local_mp.bn
        operator, half = _xca_training(call, x, y), call.half
        mean, variance = (paddle.empty(bn._mean.shape, dtype="float32") for _ in range(2))
        saved = paddle.empty([library().size_of("xca_saved", operator, half) // 4 + 1], dtype="float32")
        operator.mean, operator.variance, operator.saved = addresses(mean, variance, saved)
        library().run("xca_training", operator, half)
        move_statistics(bn, mean, variance)
        ctx.save_for_backward(x, saved, *(tensor for tensor in parameters if tensor is not None))
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        x, saved, *parameters = ctx.saved_tensor()
        operator, dy = _xca_training(ctx.call, x, dy), dy.contiguous()
        operator.saved = saved.data_ptr()
        gradients = [paddle.empty_like(tensor) for tensor in (x, *parameters)]
        there = [name for name in TRAINED if attrgetter(name)(ctx.call.block) is not None]
        of_name = dict(zip(there, gradients[1:]))
        gradient_addresses = [address(of_name.get(name)) for name in TRAINED]
        backward = XcaBackward(operator, *addresses(dy, gradients[0]), *gradient_addresses)
        library().run("xca_backward", backward, ctx.call.half)
        wanted = [not tensor.stop_gradient for tensor in (x, *parameters)]
        return tuple(gradient if want else None for gradient, want in zip(gradients, wanted))


def _xca_training(call, x, y):
    block = _xca_block(call.block, x, y, call.height, call.width)
    return XcaTraining(block, *map(address, call.keeps))
