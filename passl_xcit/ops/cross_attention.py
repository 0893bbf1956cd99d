"""CrossViT's fusion in C++, in evaluation and in training: what CrossAttentionBlock's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes
from functools import partial

import paddle

from passl_xcit.ops.frozen import Evaluation
from passl_xcit.ops.structures import (
    NO_TENSORS,
    address,
    addresses,
    affine,
    integers,
    parameters_of,
    pointers,
    with_tokens,
)
from passl_xcit.ops.training import Training

# In the order of the structs in native/operators.h.
PARAMETERS = (*affine("norm1", "attn.wq"), "attn.wk.weight", *affine("attn.wv", "attn.proj"))
KEYS_BIAS = "attn.wk.bias"  # it adds the same to all scores of a head, so that nothing depends on it


class CrossAttention(ctypes.Structure):
    _fields_ = [
        *integers("batch", "tokens", "channels", "heads"),
        ("epsilon", ctypes.c_double),
        *pointers("x", "y", "packed", *PARAMETERS),
    ]


class CrossTraining(ctypes.Structure):
    _fields_ = [("block", CrossAttention), *pointers("keep", "saved")]


class CrossBackward(ctypes.Structure):
    _fields_ = [("forward", CrossTraining), *pointers("dy", "dx", *PARAMETERS)]


def cross_attention(block, x):
    """A CrossAttentionBlock in evaluation: x [B, M, C], class token first -> [B, 1, C]"""
    y = _class_tokens(x)
    EVALUATION.run(block, x, y)
    return y


def _class_tokens(x):
    return paddle.empty([x.shape[0], 1, x.shape[2]], dtype="float32")


def _cross_attention(block, parameters):
    sizes = (block.norm1.weight.shape[0], block.attn.num_heads, block.norm1.epsilon)
    return CrossAttention(1, 1, *sizes, *NO_TENSORS, *addresses(*parameters))


EVALUATION = Evaluation("cross_attention", partial(parameters_of, names=PARAMETERS), _cross_attention, with_tokens)


def train_cross_attention(block, x):
    """A CrossAttentionBlock in training, with gradients: x [B, M, C], class token first -> [B, 1, C]"""
    return _Training(block, block.drop_path.draw(x)).apply(x)


class _Training(Training):
    name, parameters, constant, Backward = "cross", PARAMETERS, (KEYS_BIAS,), CrossBackward

    def __init__(self, block, keep):
        super().__init__(block)
        self.keep = keep

    def result_of(self, x):
        return _class_tokens(x)

    def forward_struct(self, x, y):
        return CrossTraining(EVALUATION.of_now(self.layer, x, y), address(self.keep))
