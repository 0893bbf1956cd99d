"""CrossViT's transformer block in C++, in evaluation and in training: what Block's own `forward` says, faster.

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
PARAMETERS = affine("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class AttentionBlock(ctypes.Structure):
    _fields_ = [
        *integers("batch", "tokens", "channels", "heads", "hidden"),
        ("epsilon1", ctypes.c_double),
        ("epsilon2", ctypes.c_double),
        *pointers("x", "y", *PARAMETERS),
    ]


class AttentionTraining(ctypes.Structure):
    _fields_ = [("block", AttentionBlock), *pointers("keep1", "keep2", "saved")]


class AttentionBackward(ctypes.Structure):
    _fields_ = [("forward", AttentionTraining), *pointers("dy", "dx", *PARAMETERS)]


def attention_block(block, x):
    """A Block of CrossViT in evaluation: x [B, M, C] -> [B, M, C]"""
    y = paddle.empty_like(x)
    library().run("attention_block", _attention_block(block, x, y))
    return y


def _attention_block(block, x, y):
    sizes = (*x.shape, block.attn.num_heads, block.mlp.fc1.weight.shape[1])
    epsilons = (block.norm1.epsilon, block.norm2.epsilon)
    return AttentionBlock(*sizes, *epsilons, *addresses(x, y), *addresses_in(block, PARAMETERS))


def train_attention_block(block, x):
    """A Block of CrossViT in training, with gradients: x [B, M, C] -> [B, M, C]"""
    keeps = [block.drop_path.draw(x) for _ in range(2)]
    return _TrainedBlock.apply(x, _Call(block, keeps), *(attrgetter(name)(block) for name in PARAMETERS))


@dataclass
class _Call:
    """What no gradient is taken of; PyLayer looks for tensors in lists and tuples."""

    block: nn.Layer
    keeps: list


class _TrainedBlock(PyLayer):
    @staticmethod
    def forward(ctx, x, call, *parameters):
        y = paddle.empty_like(x)
        operator = _attention_training(call, x, y)
        saved = paddle.empty([library().size_of("attention_saved", operator) // 4 + 1], dtype="float32")
        operator.saved = address(saved)
        library().run("attention_training", operator)
        ctx.save_for_backward(saved, x, *(tensor for tensor in parameters if tensor is not None))
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        saved, *inputs = ctx.saved_tensor()
        forward, dy = _attention_training(ctx.call, inputs[0], dy), dy.contiguous()
        forward.saved = address(saved)
        gradients = [paddle.empty_like(tensor) for tensor in inputs]
        there = [name for name in PARAMETERS if attrgetter(name)(ctx.call.block) is not None]
        operator = AttentionBackward(forward, *addresses(dy, gradients[0]))
        for name, gradient in zip(there, gradients[1:]):
            setattr(operator, name, address(gradient))
        library().run("attention_backward", operator)
        return tuple(None if tensor.stop_gradient else gradient for tensor, gradient in zip(inputs, gradients))


def _attention_training(call, x, y):
    return AttentionTraining(_attention_block(call.block, x, y), *addresses(*call.keeps))
