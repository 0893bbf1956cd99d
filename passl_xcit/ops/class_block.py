"""The class-attention block in C++, in evaluation and in training: ClassAttentionBlock's own `forward`, faster.

Shapes as in native/operators.h.
"""

import ctypes

import paddle

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, addresses_in, affine, check_tokens, integers, pointers
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
    check_tokens(x, None, block.gamma1.shape[0])
    sizes = (*x.shape, block.attn.num_heads, block.mlp.fc1.weight.shape[1], block.tokens_norm)
    return ClassBlock(*sizes, *addresses(x, y), *addresses_in(block, PARAMETERS))


def train_class_block(block, x):
    """A ClassAttentionBlock in training, with gradients: x [B, M, C] -> [B, M, C]"""
    return _Training(block).apply(x)


class _Training(Training):
    name, parameters, Backward = "class", PARAMETERS, ClassBackward

    def forward_struct(self, x, y):
        return ClassTraining(_class_block(self.layer, x, y))
