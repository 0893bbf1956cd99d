"""CrossViT's transformer block in C++, in evaluation and in training: what Block's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes

import paddle

from passl_xcit.ops.library import library
from passl_xcit.ops.structures import addresses, addresses_in, affine, check_tokens, integers, pointers
from passl_xcit.ops.training import Training

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
    library().run("attention_block", _attention_block(block, x, y), half=library().in_bfloat16())
    return y


def _attention_block(block, x, y):
    check_tokens(x, None, block.norm1.weight.shape[0])
    sizes = (*x.shape, block.attn.num_heads, block.mlp.fc1.weight.shape[1])
    epsilons = (block.norm1.epsilon, block.norm2.epsilon)
    return AttentionBlock(*sizes, *epsilons, *addresses(x, y), *addresses_in(block, PARAMETERS))


def train_attention_block(block, x):
    """A Block of CrossViT in training, with gradients: x [B, M, C] -> [B, M, C]"""
    return _Training(block, [block.drop_path.draw(x) for _ in range(2)]).apply(x)


class _Training(Training):
    name, parameters, Backward = "attention", PARAMETERS, AttentionBackward

    def __init__(self, block, keeps):
        super().__init__(block)
        self.keeps, self.half = keeps, library().in_bfloat16()

    def forward_struct(self, x, y):
        return AttentionTraining(_attention_block(self.layer, x, y), *addresses(*self.keeps))
