"""XCiT's blocks in C++ for float32 tensors on a CPU: what the layers' own `forward` says, faster.

A layer of modeling/backbones/xcit.py asks `applies` or `applies_in_training` and then calls its function here. It stays
the only holder of its parameters: nothing is kept from one call to the next, so that weights that were loaded, or
trained in between, count at once.

Shapes as in native/operators.h.
"""

import ctypes
from dataclasses import dataclass
from operator import attrgetter

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from passl_xcit.ops.library import library

MAX_STAGES = 8  # of the stem
OWN_OR_PADDLES = ("passl_xcit.", "paddle.nn.")


def _affine(*layers):
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def _pointers(*names):
    return [(name, ctypes.c_void_p) for name in names]


def _integers(*names):
    return [(name, ctypes.c_int64) for name in names]


# In the order of the structs in native/operators.h.
XCA_PARAMETERS = (
    *_affine("norm1"),
    "attn.temperature",
    *_affine("attn.qkv", "attn.proj"),
    "gamma1",
    *_affine("norm3", "local_mp.conv1", "local_mp.bn"),
    "local_mp.bn._mean",
    "local_mp.bn._variance",
    *_affine("local_mp.conv2"),
    "gamma3",
    *_affine("norm2", "mlp.fc1", "mlp.fc2"),
    "gamma2",
)
CLASS_PARAMETERS = (
    *_affine("norm1", "attn.qkv", "attn.proj"),
    "gamma1",
    *_affine("norm2", "mlp.fc1", "mlp.fc2"),
    "gamma2",
)
TRAINED = tuple(name for name in XCA_PARAMETERS if "._" not in name)
STAGE_PARAMETERS = ("0.weight", "1.weight", "1.bias", "1._mean", "1._variance")


class XcaBlock(ctypes.Structure):
    _fields_ = [
        *_integers("batch", "height", "width", "channels", "heads", "hidden"),
        *_pointers("x", "y", *XCA_PARAMETERS),
    ]


class XcaTraining(ctypes.Structure):
    _fields_ = [
        ("block", XcaBlock),
        *_pointers("keep1", "keep3", "keep2", "mean", "variance", "saved"),
    ]


class XcaBackward(ctypes.Structure):
    _fields_ = [
        ("forward", XcaTraining),
        *_pointers("dy", "dx", *TRAINED),
    ]


class ClassBlock(ctypes.Structure):
    _fields_ = [
        *_integers("batch", "tokens", "channels", "heads", "hidden", "tokens_norm"),
        *_pointers("x", "y", *CLASS_PARAMETERS),
    ]


class Stem(ctypes.Structure):
    _fields_ = [
        *_integers("batch", "height", "width", "stages"),
        ("widths", ctypes.c_int64 * (MAX_STAGES + 1)),
        *_pointers("images", "positions", "y"),
        *[(name, ctypes.c_void_p * MAX_STAGES) for name in STAGE_PARAMETERS],
    ]


def applies(layer, x):
    """Whether the native function of `layer` computes what its `forward` would, for the input `x` and no gradient.

    It does not where a program is traced or a gradient wanted, on other devices and dtypes, while training, and where
    something was hung into the layer: a hook, or a sublayer of another kind.
    """
    return not layer.training and _fits(layer, x) and not _wants_gradients(layer, x)


def applies_in_training(block, x):
    """Whether `train_xca_block` does so for gradients: as `applies`, without dropout, and BatchNorm training, too."""
    return (
        block.training
        and block.local_mp.bn.training
        and _fits(block, x)
        and _wants_gradients(block, x)
        and type(block.local_mp.bn) is nn.BatchNorm2D
        and not any(isinstance(layer, nn.Dropout) and layer.p for layer in block.sublayers())
    )


def _fits(layer, x):
    if not paddle.in_dynamic_mode() or library() is None or not _is_plain(x):
        return False
    plain = all(map(_is_plain, [*layer.parameters(), *layer.buffers()]))
    return plain and all(map(_is_known, layer.sublayers(include_self=True)))


def _wants_gradients(layer, x):
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in (x, *layer.parameters()))


def _is_plain(tensor):
    """Whether C++ may read the tensor's memory as float32 without gaps."""
    return tensor.dtype == paddle.float32 and tensor.place.is_cpu_place() and tensor.is_contiguous()


def _is_known(layer):
    if layer._forward_pre_hooks or layer._forward_post_hooks:  # Paddle has no public way to ask for them
        return False
    if not type(layer).__module__.startswith(OWN_OR_PADDLES):
        return False
    return getattr(layer, "act", "gelu") != "gelu_tanh" and getattr(layer, "qk_norm", True)


def xca_block(block, x, height, width):
    """An XCABlock in evaluation: x [B, N, C] -> [B, N, C], N = height * width"""
    y = paddle.empty_like(x)
    operator = _xca_block(block, x, y, height, width)
    # Heads must not share a pair of bfloat16.
    library().run("xca_block", operator, half=operator.channels // operator.heads % 2 == 0)
    return y


def _xca_block(block, x, y, height, width):
    batch, _, channels = x.shape
    sizes = (batch, height, width, channels, block.attn.num_heads, block.mlp.fc1.weight.shape[1])
    return XcaBlock(*sizes, *_addresses(x, y), *_parameters(block, XCA_PARAMETERS))


def train_xca_block(block, x, height, width):
    """An XCABlock in training, with gradients: x [B, N, C] -> [B, N, C]. It moves BatchNorm's running statistics."""
    keeps = [block.drop_path.draw(x) for _ in range(3)]
    parameters = [attrgetter(name)(block) for name in TRAINED]
    return _TrainedXcaBlock.apply(x, _Call(block, height, width, keeps), *parameters)


@dataclass
class _Call:
    """What no gradient is taken of; PyLayer looks for tensors in lists and tuples."""

    block: nn.Layer
    height: int
    width: int
    keeps: list


class _TrainedXcaBlock(PyLayer):
    @staticmethod
    def forward(ctx, x, call, *parameters):
        y, bn = paddle.empty_like(x), call.block.local_mp.bn
        operator = _xca_training(call, x, y)
        mean, variance = (paddle.empty(bn._mean.shape, dtype="float32") for _ in range(2))
        saved = paddle.empty([library().size_of("xca_saved", operator) // 4 + 1], dtype="float32")
        operator.mean, operator.variance, operator.saved = _addresses(mean, variance, saved)
        library().run("xca_training", operator)
        for running, of_batch in ((bn._mean, mean), (bn._variance, variance)):
            running.set_value(running * bn._momentum + of_batch * (1.0 - bn._momentum))
        ctx.save_for_backward(x, saved, *(tensor for tensor in parameters if tensor is not None))
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        x, saved, *parameters = ctx.saved_tensor()
        operator, dy = _xca_training(ctx.call, x, dy), dy.contiguous()
        operator.saved = saved.data_ptr()
        gradients = [paddle.empty_like(tensor) for tensor in (x, *parameters)]
        there = [name for name in TRAINED if attrgetter(name)(ctx.call.block) is not None]
        of_name = dict(zip(there, gradients[1:]))
        addresses = [_address(of_name.get(name)) for name in TRAINED]
        library().run("xca_backward", XcaBackward(operator, *_addresses(dy, gradients[0]), *addresses))
        wanted = [not tensor.stop_gradient for tensor in (x, *parameters)]
        return tuple(gradient if want else None for gradient, want in zip(gradients, wanted))


def _xca_training(call, x, y):
    block = _xca_block(call.block, x, y, call.height, call.width)
    return XcaTraining(block, *map(_address, call.keeps))


def class_block(block, x):
    """A ClassAttentionBlock in evaluation: x [B, M, C] -> [B, M, C]"""
    y = paddle.empty_like(x)
    sizes = (*x.shape, block.attn.num_heads, block.mlp.fc1.weight.shape[1], block.tokens_norm)
    library().run("class_block", ClassBlock(*sizes, *_addresses(x, y), *_parameters(block, CLASS_PARAMETERS)))
    return y


def stem(patch_embed, images, positions):
    """A ConvPatchEmbed in evaluation and the positional encoding: images [B, I, H * p, W * p] -> tokens [B, N, C]

    Args:
        positions: [N, C]
    """
    stages = list(patch_embed.proj)[::2]  # GELU lies between them
    batch, channels, height, width = images.shape
    widths = [channels, *(stage[0].weight.shape[0] for stage in stages)]
    y = paddle.empty([batch, *positions.shape], dtype="float32")
    operator = Stem(batch, height, width, len(stages), tuple(widths), *_addresses(images, positions, y))
    for name in STAGE_PARAMETERS:
        getattr(operator, name)[: len(stages)] = [_parameters(stage, [name])[0] for stage in stages]
    library().run("stem", operator, half=True)
    return y


def _parameters(layer, names):
    """Addresses of parameters and buffers, None for those that the layer does without."""
    return [_address(attrgetter(name)(layer)) for name in names]


def _addresses(*tensors):
    return [_address(tensor) for tensor in tensors]


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()
