"""The class-attention block in C++, in evaluation and in training: ClassAttentionBlock's own `forward`, faster.

Shapes as in native/operators.h.
"""

import ctypes
from functools import partial

import paddle

from passl_xcit.ops.frozen import Evaluation
from passl_xcit.ops.structures import NO_TENSORS, addresses, affine, integers, parameters_of, pointers, with_tokens
from passl_xcit.ops.training import Training

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
        *pointers("x", "y", "packed", *PARAMETERS),
    ]


class ClassTraining(ctypes.Structure):
    _fields_ = [("block", ClassBlock), *pointers("saved")]


class ClassBackward(ctypes.Structure):
    _fields_ = [("forward", ClassTraining), *pointers("dy", "dx", *PARAMETERS)]


def class_block(block, x):
    """A ClassAttentionBlock in evaluation: x [B, M, C] -> [B, M, C]"""
    y = paddle.empty_like(x)
    EVALUATION.run(block, x, y)
    return y


def _class_block(block, parameters):
    sizes = (block.gamma1.shape[0], block.attn.num_heads, block.mlp.fc1.weight.shape[1], block.tokens_norm)
    return ClassBlock(1, 1, *sizes, *NO_TENSORS, *addresses(*parameters))


EVALUATION = Evaluation("class_block", partial(parameters_of, names=PARAMETERS), _class_block, with_tokens)


def train_class_block(block, x):
    """A ClassAttentionBlock in training, with gradients: x [B, M, C] -> [B, M, C]"""
    return _Training(block).apply(x)


class _Training(Training):
    name, parameters, Backward = "class", PARAMETERS, ClassBackward

    def forward_struct(self, x, y):
        return ClassTraining(EVALUATION.of_now(self.layer, x, y))
