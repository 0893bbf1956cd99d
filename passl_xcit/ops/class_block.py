"""The class-attention block in C++: what ClassAttentionBlock's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes

import paddle

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, addresses_in, affine, integers, pointers

# In the order of the struct in native/operators.h.
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


def class_block(block, x):
    """A ClassAttentionBlock in evaluation: x [B, M, C] -> [B, M, C]"""
    y = paddle.empty_like(x)
    sizes = (*x.shape, block.attn.num_heads, block.mlp.fc1.weight.shape[1], block.tokens_norm)
    library().run("class_block", ClassBlock(*sizes, *addresses(x, y), *addresses_in(block, PARAMETERS)))
    return y
