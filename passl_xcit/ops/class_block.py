"""The class-attention block in C++, in evaluation and in training: ClassAttentionBlock's own `forward`, faster.

Shapes as in native/operators.h.
"""

import ctypes
from dataclasses import dataclass
from operator import attrgetter

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import address, addresses, addresses_in, affine, integers, pointers

# In the order of the structs in native/operators.h.
PARAMETERS = (
    *affine("norm1", "attn.qkv", "attn.proj"),
    "gamma1",
    *affine("norm2", "mlp.fc1", "mlp.fc2"),
    "gamma2",
)


class ClassBlock(ctypes.Structure):
    _fields_ = [
        *integers("batch", "tokens", "channels", "heads", "hidden", "tokens_norm"),
        *pointers("x", "y", *PARAMETERS),
    ]


class ClassTraining(ctypes.Structure):
    _fields_ = [("block", ClassBlock), *pointers("saved")]


class ClassBackward(ctypes.Structure):
    _fields_ = [("forward", ClassTraining), *pointers("dy", "dx", *PARAMETERS)]


def class_block(block, x):
    """A ClassAttentionBlock in evaluation: x [B, M, C] -> [B, M, C]"""
    y = paddle.empty_like(x)
    library().run("class_block", _class_block(block, x, y))
    return y


def _class_block(block, x, y):
    sizes = (*x.shape, block.attn.num_heads, block.mlp.fc1.weight.shape[1], block.tokens_norm)
    return ClassBlock(*sizes, *addresses(x, y), *addresses_in(block, PARAMETERS))


def train_class_block(block, x):
    """A ClassAttentionBlock in training, with gradients: x [B, M, C] -> [B, M, C]"""
    return _TrainedClassBlock.apply(x, _Call(block), *(attrgetter(name)(block) for name in PARAMETERS))


@dataclass
class _Call:
    """What no gradient is taken of; PyLayer looks for tensors in lists and tuples."""

    block: nn.Layer


class _TrainedClassBlock(PyLayer):
    @staticmethod
    def forward(ctx, x, call, *parameters):
        y = paddle.empty_like(x)
        operator = ClassTraining(_class_block(call.block, x, y))
        saved = paddle.empty([library().size_of("class_saved", operator) // 4 + 1], dtype="float32")
        operator.saved = address(saved)
        library().run("class_training", operator)
        ctx.save_for_backward(x, saved, *(tensor for tensor in parameters if tensor is not None))
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        x, saved, *parameters = ctx.saved_tensor()
        dy = dy.contiguous()
        forward = ClassTraining(_class_block(ctx.call.block, x, dy), address(saved))
        gradients = [paddle.empty_like(tensor) for tensor in (x, *parameters)]
        there = [name for name in PARAMETERS if attrgetter(name)(ctx.call.block) is not None]
        of_name = dict(zip(there, gradients[1:]))
        gradient_addresses = [address(of_name.get(name)) for name in PARAMETERS]
        library().run("class_backward", ClassBackward(forward, *addresses(dy, gradients[0]), *gradient_addresses))
        wanted = [not tensor.stop_gradient for tensor in (x, *parameters)]
        return tuple(gradient if want else None for gradient, want in zip(gradients, wanted))
