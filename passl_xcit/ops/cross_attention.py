"""CrossViT's fusion in C++, in evaluation and in training: what CrossAttentionBlock's own `forward` says, faster.

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
PARAMETERS = (*affine("norm1", "attn.wq"), "attn.wk.weight", *affine("attn.wv", "attn.proj"))
KEYS_BIAS = "attn.wk.bias"  # it adds the same to all scores of a head, so that nothing depends on it


class CrossAttention(ctypes.Structure):
    _fields_ = [
        *integers("batch", "tokens", "channels", "heads"),
        ("epsilon", ctypes.c_double),
        *pointers("x", "y", *PARAMETERS),
    ]


class CrossTraining(ctypes.Structure):
    _fields_ = [("block", CrossAttention), *pointers("keep", "saved")]


class CrossBackward(ctypes.Structure):
    _fields_ = [("forward", CrossTraining), *pointers("dy", "dx", *PARAMETERS)]


def cross_attention(block, x):
    """A CrossAttentionBlock in evaluation: x [B, M, C], class token first -> [B, 1, C]"""
    y = _class_tokens(x)
    library().run("cross_attention", _cross_attention(block, x, y))
    return y


def _class_tokens(x):
    return paddle.empty([x.shape[0], 1, x.shape[2]], dtype="float32")


def _cross_attention(block, x, y):
    sizes = (*x.shape, block.attn.num_heads, block.norm1.epsilon)
    return CrossAttention(*sizes, *addresses(x, y), *addresses_in(block, PARAMETERS))


def train_cross_attention(block, x):
    """A CrossAttentionBlock in training, with gradients: x [B, M, C], class token first -> [B, 1, C]"""
    call = _Call(block, block.drop_path.draw(x))
    return _TrainedFusion.apply(x, call, *(attrgetter(name)(block) for name in (*PARAMETERS, KEYS_BIAS)))


@dataclass
class _Call:
    """What no gradient is taken of; PyLayer looks for tensors in lists and tuples."""

    block: nn.Layer
    keep: object


class _TrainedFusion(PyLayer):
    @staticmethod
    def forward(ctx, x, call, *parameters):
        y = _class_tokens(x)
        operator = _cross_training(call, x, y)
        saved = paddle.empty([library().size_of("cross_saved", operator) // 4 + 1], dtype="float32")
        operator.saved = address(saved)
        library().run("cross_training", operator)
        ctx.save_for_backward(saved, x, *(tensor for tensor in parameters if tensor is not None))
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        saved, *inputs = ctx.saved_tensor()
        forward, dy = _cross_training(ctx.call, inputs[0], dy), dy.contiguous()
        forward.saved = address(saved)
        gradients = [paddle.empty_like(tensor) for tensor in inputs]
        there = [name for name in (*PARAMETERS, KEYS_BIAS) if attrgetter(name)(ctx.call.block) is not None]
        of_name = dict(zip(there, gradients[1:]))
        if KEYS_BIAS in of_name:
            of_name.pop(KEYS_BIAS).zero_()
        operator = CrossBackward(forward, *addresses(dy, gradients[0]))
        for name, gradient in of_name.items():
            setattr(operator, name, address(gradient))
        library().run("cross_backward", operator)
        return tuple(None if tensor.stop_gradient else gradient for tensor, gradient in zip(inputs, gradients))


def _cross_training(call, x, y):
    return CrossTraining(_cross_attention(call.block, x, y), address(call.keep))
