"""When a layer is computed by a native operator, and when by its own `forward`."""

from functools import cache

import paddle
from paddle import nn

from passl_xcit.ops.library import library

OWN_OR_PADDLES = ("passl_xcit.", "paddle.nn.")


def applies(layer, x):
    """Whether the native function of `layer` computes what its `forward` would, for the input `x` and no gradient.

    It does not where a program is traced or a gradient wanted, on other devices and dtypes, while training, and where
    something was hung into the layer: a hook, or a sublayer of another kind.
    """
    return not layer.training and _fits(layer, x) and not _wants_gradients(layer, x)


def applies_in_training(layer, x):
    """Whether a native function of `layer` does so for gradients: as `applies`, without dropout.

    All of its BatchNorm layers have to be training, too.
    """
    return layer.training and _fits(layer, x) and _wants_gradients(layer, x) and _trains_plainly(layer)


def _trains_plainly(layer):
    layers = layer.sublayers()
    norms = [each for each in layers if isinstance(each, (nn.BatchNorm2D, nn.SyncBatchNorm))]
    drops = any(isinstance(each, nn.Dropout) and each.p for each in layers)
    return not drops and all(type(norm) is nn.BatchNorm2D and norm.training for norm in norms)


def _fits(layer, x):
    if not paddle.in_dynamic_mode() or library() is None or not is_plain(x):
        return False
    return all(map(_is_known, layer.sublayers(include_self=True))) and all(map(is_plain, layer.parameters()))


def _wants_gradients(layer, x):
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in (x, *layer.parameters()))


def is_plain(tensor):
    """Whether C++ may read the tensor's memory as float32 without gaps."""
    return tensor.dtype == paddle.float32 and tensor.place.is_cpu_place() and tensor.is_contiguous()


def _is_known(layer):
    if layer._forward_pre_hooks or layer._forward_post_hooks:  # Paddle has no public way to ask for them
        return False
    options = vars(layer)  # `getattr` of what is not there takes Paddle's layers long
    plain = options.get("act", "gelu") != "gelu_tanh" and options.get("qk_norm", True)
    return plain and _is_own_or_paddles(type(layer))


@cache
def _is_own_or_paddles(kind):
    return kind.__module__.startswith(OWN_OR_PADDLES)
