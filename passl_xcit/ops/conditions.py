"""When a layer is computed by a native operator, and when by its own `forward`."""

from functools import cache

import paddle
from paddle import nn

from passl_xcit.ops.frozen import frozen_part
from passl_xcit.ops.library import library
from passl_xcit.ops.structures import is_plain

OWN_OR_PADDLES = ("passl_xcit.", "paddle.nn.")
# Attributes of Paddle's layers and of ours, and methods that somebody replaced in one object.
SETTINGS = ("num_heads", "tokens_norm", "forward", "_epsilon", "_use_global_stats", "_data_format")
SETTINGS += ("_stride", "_padding", "_padding_mode", "_dilation", "_groups")


def applies(layer, x):
    """Whether the native function of `layer` computes what its `forward` would, for the input `x` and no gradient.

    It does not where a program is traced or a gradient wanted, on other devices and dtypes, while anything in it is
    training, and where the layer is not as it was made: a hook, a sublayer of another kind, size or setting.
    """
    if layer.training or not _takes(x):
        return False
    kept = frozen_part(layer)
    if kept and not paddle.is_grad_enabled():
        changed = any(each.training or _has_hooks(each) for each in (layer, *kept.sublayers))
        return not changed and kept.is_as_made(_is_as_made, layer)
    layers, parameters = layer.sublayers(include_self=True), layer.parameters()
    changed = _wants_gradients(x, parameters) or any(each.training or _has_hooks(each) for each in layers)
    return not changed and _is_as_made(layer, layers, parameters)


def applies_in_training(layer, x):
    """Whether a native function of `layer` does so for gradients: as `applies`, without dropout.

    All of its BatchNorm layers have to be training, too, on more than one value a channel.
    """
    if not layer.training or not _takes(x):
        return False
    layers, parameters = layer.sublayers(include_self=True), layer.parameters()
    trains = _wants_gradients(x, parameters) and _trains_plainly(layers, x) and not any(map(_has_hooks, layers))
    return trains and _is_as_made(layer, layers, parameters)


def made_of(layer):
    """What decides what a layer computes, but for the values of its parameters: kinds, settings and shapes.

    A layer that has native functions keeps it as `native_parts` when it is made, to be known again.
    """
    return _made_of(layer.sublayers(include_self=True), layer.parameters())


def _made_of(layers, parameters):
    kinds = [(type(each), *map(vars(each).get, SETTINGS)) for each in layers]  # `getattr` takes Paddle's layers long
    return kinds, [parameter.shape for parameter in parameters]


def _trains_plainly(layers, x):
    norms = [each for each in layers if isinstance(each, nn.BatchNorm2D)]
    if norms and x.ndim == 3 and x.shape[0] * x.shape[1] == 1:
        return False
    drops = any(isinstance(each, nn.Dropout) and each.p for each in layers)
    return not drops and all(norm.training for norm in norms)


def _takes(x):
    return paddle.in_dynamic_mode() and library() is not None and is_plain(x) and 0 not in x.shape


def _is_as_made(layer, layers, parameters):
    as_made = vars(layer).get("native_parts") in (None, _made_of(layers, parameters))
    return as_made and all(map(_is_known, layers)) and all(map(is_plain, parameters))


def _wants_gradients(x, parameters):
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in (x, *parameters))


def _has_hooks(layer):
    return layer._forward_pre_hooks or layer._forward_post_hooks  # Paddle has no public way to ask for them


def _is_known(layer):
    options = vars(layer)
    plain = options.get("act", "gelu") != "gelu_tanh" and options.get("qk_norm", True)
    return plain and _is_own_or_paddles(type(layer))


@cache
def _is_own_or_paddles(kind):
    return kind.__module__.startswith(OWN_OR_PADDLES)
