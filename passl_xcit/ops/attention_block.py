"""CrossViT's transformer block in C++, in evaluation and in training: what Block's own `forward` says, faster.

Shapes as in native/operators.h.
"""

import ctypes
from functools import partial

import paddle

from passl_xcit.ops.frozen import Evaluation
from passl_xcit.ops.library import library
from passl_xcit.ops.structures import NO_TENSORS, addresses, affine, integers, parameters_of, pointers, with_tokens
from passl_xcit.ops.training import Training

# In the order of the structs in native/operators.h.
PARAMETERS = affine("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class AttentionBlock(ctypes.Structure):
    _fields_ = [
        *integers("batch", "tokens", "channels", "heads", "hidden"),
        ("epsilon1", ctypes.c_double),
        ("epsilon2", ctypes.c_double),
        *pointers("x", "y", "packed", *PARAMETERS),
    ]


class AttentionTraining(ctypes.Structure):
    _fields_ = [("block", AttentionBlock), *pointers("keep1", "keep2", "saved")]


class AttentionBackward(ctypes.Structure):
    _fields_ = [("forward", AttentionTraining), *pointers("dy", "dx", *PARAMETERS)]


def attention_block(block, x):
    """A Block of CrossViT in evaluation: x [B, M, C] -> [B, M, C]"""
    y = paddle.empty_like(x)
    EVALUATION.run(block, x, y)
    return y


def _attention_block(block, parameters):
    sizes = (block.norm1.weight.shape[0], block.attn.num_heads, block.mlp.fc1.weight.shape[1])
    epsilons = (block.norm1.epsilon, block.norm2.epsilon)
    return AttentionBlock(1, 1, *sizes, *epsilons, *NO_TENSORS, *addresses(*parameters))


EVALUATION = Evaluation(
    "attention_block", partial(parameters_of, names=PARAMETERS), _attention_block, with_tokens, lambda block: True
)


def train_attention_block(block, x):
    """A Block of CrossViT in training, with gradients: x [B, M, C] -> [B, M, C]"""
    return _Training(block, [block.drop_path.draw(x) for _ in range(2)]).apply(x)


class _Training(Training):
    name, parameters, Backward = "attention", PARAMETERS, AttentionBackward

    def __init__(self, block, keeps):
        super().__init__(block)
        self.keeps, self.half = keeps, EVALUATION.half(block, library())

    def forward_struct(self, x, y):
        return AttentionTraining(EVALUATION.of_now(self.layer, x, y), *addresses(*self.keeps))
