"""CrossViT's transformer block in C++: what Block's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes

import paddle

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, addresses_in, affine, integers, pointers

# In the order of the struct in native/operators.h.
PARAMETERS = affine("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class AttentionBlock(ctypes.Structure):
    _fields_ = [
        *integers("batch", "tokens", "channels", "heads", "hidden"),
        ("epsilon1", ctypes.c_double),
        ("epsilon2", ctypes.c_double),
        *pointers("x", "y", *PARAMETERS),
    ]


def attention_block(block, x):
    """A Block of CrossViT in evaluation: x [B, M, C] -> [B, M, C]"""
    y = paddle.empty_like(x)
    library().run("attention_block", _attention_block(block, x, y))
    return y


def _attention_block(block, x, y):
    sizes = (*x.shape, block.attn.num_heads, block.mlp.fc1.weight.shape[1])
    epsilons = (block.norm1.epsilon, block.norm2.epsilon)
    return AttentionBlock(*sizes, *epsilons, *addresses(x, y), *addresses_in(block, PARAMETERS))
