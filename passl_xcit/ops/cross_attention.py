"""CrossViT's fusion in C++: what CrossAttentionBlock's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes

import paddle

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, addresses_in, affine, integers, pointers

# In the order of the struct in native/operators.h.
PARAMETERS = (*affine("norm1", "attn.wq"), "attn.wk.weight", *affine("attn.wv", "attn.proj"))


class CrossAttention(ctypes.Structure):
    _fields_ = [
        *integers("batch", "tokens", "channels", "heads"),
        ("epsilon", ctypes.c_double),
        *pointers("x", "y", *PARAMETERS),
    ]


def cross_attention(block, x):
    """A CrossAttentionBlock in evaluation: x [B, M, C], class token first -> [B, 1, C]"""
    batch, _, channels = x.shape
    y = paddle.empty([batch, 1, channels], dtype="float32")
    sizes = (*x.shape, block.attn.num_heads, block.norm1.epsilon)
    library().run("cross_attention", CrossAttention(*sizes, *addresses(x, y), *addresses_in(block, PARAMETERS)))
    return y
