"""XCiT's blocks in C++ for float32 tensors on a CPU, without gradients: what the layers' own `forward` says, faster.

A layer of modeling/backbones/xcit.py asks `applies` and then calls its function here. It stays the only holder of its
parameters: nothing is kept from one call to the next, so that weights that were loaded or trained in between count at
once.

Shapes as in native/operators.h.
"""

import ctypes
from operator import attrgetter

import paddle

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
STAGE_PARAMETERS = ("0.weight", "1.weight", "1.bias", "1._mean", "1._variance")


class XcaBlock(ctypes.Structure):
    _fields_ = [
        *_integers("batch", "height", "width", "channels", "heads", "hidden"),
        *_pointers("x", "y", *XCA_PARAMETERS),
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
    """Whether the native function of `layer` computes what its `forward` would, for the input `x`.

    It does not where a program is traced or a gradient wanted, on other devices and dtypes, while training, and where
    something was hung into the layer: a hook, or a sublayer of another kind.
    """
    if not paddle.in_dynamic_mode() or layer.training or library() is None or not _is_plain(x):
        return False
    parameters = [*layer.parameters(), *layer.buffers()]
    if paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in (x, *parameters)):
        return False
    return all(map(_is_plain, parameters)) and all(map(_is_known, layer.sublayers(include_self=True)))


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
    batch, _, channels = x.shape
    y = paddle.empty_like(x)
    heads = block.attn.num_heads
    sizes = (batch, height, width, channels, heads, block.mlp.fc1.weight.shape[1])
    operator = XcaBlock(*sizes, *_addresses(x, y), *_parameters(block, XCA_PARAMETERS))
    library().run("xca_block", operator, half=channels // heads % 2 == 0)  # heads must not share a pair of bfloat16
    return y


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
    tensors = [attrgetter(name)(layer) for name in names]
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _addresses(*tensors):
    return [tensor.data_ptr() for tensor in tensors]
