"""The XCA block in C++, in evaluation and in training: what XCABlock's own `forward` says, faster.

The layer stays the only holder of its parameters: nothing is kept from one call to the next, so that weights that were
loaded, or trained in between, count at once; but for frozen models, see frozen.py. Shapes as in native/operators.h.
"""

import ctypes
from functools import partial

import paddle

from passl_xcit.ops.batch_norm import move_statistics
from passl_xcit.ops.frozen import Evaluation
from passl_xcit.ops.library import library
from passl_xcit.ops.structures import NO_TENSORS, addresses, affine, check_tokens, integers, parameters_of, pointers
from passl_xcit.ops.training import Training

# In the order of the structs in native/operators.h.
PARAMETERS = (
    *affine("norm1"),
    "attn.temperature",
    *affine("attn.qkv", "attn.proj"),
    "gamma1",
    *affine("norm3", "local_mp.conv1", "local_mp.bn"),
    "local_mp.bn._mean",
    "local_mp.bn._variance",
    *affine("local_mp.conv2"),
    "gamma3",
    *affine("norm2", "mlp.fc1", "mlp.fc2"),
    "gamma2",
)
TRAINED = tuple(name for name in PARAMETERS if "._" not in name)


class XcaBlock(ctypes.Structure):
    _fields_ = [
        *integers("batch", "height", "width", "channels", "heads", "hidden"),
        *pointers("x", "y", "packed", *PARAMETERS),
    ]


class XcaTraining(ctypes.Structure):
    _fields_ = [
        ("block", XcaBlock),
        *pointers("keep1", "keep3", "keep2", "mean", "variance", "saved"),
    ]


class XcaBackward(ctypes.Structure):
    _fields_ = [
        ("forward", XcaTraining),
        *pointers("dy", "dx", *TRAINED),
    ]


def xca_block(block, x, height, width):
    """An XCABlock in evaluation: x [B, N, C] -> [B, N, C], N = height * width"""
    y = paddle.empty_like(x)
    EVALUATION.run(block, x, y, height, width)
    return y


def _xca_block(block, parameters):
    sizes = (block.gamma1.shape[0], block.attn.num_heads, block.mlp.fc1.weight.shape[1])
    return XcaBlock(1, 1, 1, *sizes, *NO_TENSORS, *addresses(*parameters))


def _with_tokens(operator, x, y, height, width):
    check_tokens(x, height * width, operator.channels)
    operator.batch, operator.height, operator.width = x.shape[0], height, width
    operator.x, operator.y = addresses(x, y)
    return operator


def _fits_bfloat16(block):
    """Heads must not share a pair of bfloat16."""
    return block.gamma1.shape[0] // block.attn.num_heads % 2 == 0


EVALUATION = Evaluation("xca_block", partial(parameters_of, names=PARAMETERS), _xca_block, _with_tokens, _fits_bfloat16)


def train_xca_block(block, x, height, width):
    """An XCABlock in training, with gradients: x [B, N, C] -> [B, N, C]. It moves BatchNorm's running statistics."""
    return _Training(block, height, width, [block.drop_path.draw(x) for _ in range(3)]).apply(x)


class _Training(Training):
    name, parameters, Backward = "xca", TRAINED, XcaBackward

    def __init__(self, block, height, width, keeps):
        super().__init__(block)
        self.grid, self.keeps, self.half = (height, width), keeps, EVALUATION.half(block, library())

    def forward_struct(self, x, y):
        return XcaTraining(EVALUATION.of_now(self.layer, x, y, *self.grid), *addresses(*self.keeps))

    def run_forward(self, operator):
        bn = self.layer.local_mp.bn
        mean, variance = (paddle.empty_like(bn._mean) for _ in range(2))
        operator.mean, operator.variance = addresses(mean, variance)
        super().run_forward(operator)
        move_statistics(bn, mean, variance)
