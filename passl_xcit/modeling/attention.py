"""What a model attends to: the attention of its layers while it looks at images, whatever their size.

Letters: B images, h heads, d channels of a head, M tokens, H x W token grid.
"""

import contextlib
from typing import NamedTuple

import paddle

from passl_xcit.modeling.backbones.crossvit import CrossAttention, CrossViT
from passl_xcit.modeling.backbones.xcit import XCA, ClassAttention
from passl_xcit.utils.errors import ConfigError


class ClassMap(NamedTuple):
    """Where the class token of one layer looks."""

    layer: str  # name in the backbone, such as cls_attn_blocks.0.attn
    patches: object  # float32 array [B, h, H, W]; with `itself`, each head sums to 1
    itself: object  # float32 array [B, h]: what the class token keeps for itself


class ChannelMap(NamedTuple):
    """Which channels the channels of one XCA layer are made of."""

    layer: str
    attention: object  # float32 array [B, h, d, d]: row i weighs the channels that make channel i; rows sum to 1
    temperature: object  # float32 array [h]; the larger, the sharper are the rows


@contextlib.contextmanager
def recorded_attention(model):
    """Inside the context, yields {layer name: attention tensors}, one list for each attention layer, as they are used.

    The attention is what goes into a layer's `attn_drop`.
    """
    found, hooks = {}, []
    for name, layer in _backbone(model).named_sublayers():
        if hasattr(layer, "attn_drop"):
            calls = found[name] = []
            hook = layer.attn_drop.register_forward_pre_hook(lambda _, inputs, calls=calls: calls.append(inputs[0]))
            hooks.append(hook)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def class_maps(model, images):
    """[ClassMap] of the class-attention layers in their order, for images [B, in_chans, height, width].

    XCiT's are those of its last blocks (paper, section 3.3); CrossViT's those in which the class token of one branch
    visits the patches of the other (paper, figure 4c).

    Raises:
        ConfigError: for a model without a class token.
    """
    kinds = (ClassAttention, CrossAttention)
    maps = _attention_of(model, images, kinds, "class token")
    return [_class_map(name, attention, _grid(model, name, images)) for name, attention in maps.items()]


def channel_maps(model, images):
    """[ChannelMap] of XCiT's XCA layers in their order, for images [B, in_chans, height, width].

    Raises:
        ConfigError: for another model.
    """
    layers = dict(_backbone(model).named_sublayers())
    maps = _attention_of(model, images, (XCA,), "cross-covariance attention")
    return [
        ChannelMap(name, attention, layers[name].temperature.numpy().reshape(-1)) for name, attention in maps.items()
    ]


def _attention_of(model, images, kinds, what):
    """{layer name: float32 array} of the attention layers of some kinds, with the model in evaluation mode."""
    backbone = _backbone(model)
    names = [name for name, layer in backbone.named_sublayers() if isinstance(layer, kinds)]
    if not names:
        raise ConfigError(f"{type(backbone).__name__} has no {what} to look at")
    was_training = backbone.training
    backbone.eval()
    try:
        with paddle.no_grad(), recorded_attention(model) as found:
            backbone(images)
    finally:
        backbone.train() if was_training else backbone.eval()
    return {name: found[name][0].astype("float32").numpy() for name in names}


def _class_map(name, attention, grid):
    """attention [B, h, 1, M], class token first"""
    return ClassMap(name, attention[:, :, 0, 1:].reshape(*attention.shape[:2], *grid), attention[:, :, 0, 0])


def _grid(model, name, images):
    """(H, W) of the patches that a layer sees."""
    backbone = _backbone(model)
    if isinstance(backbone, CrossViT):  # blocks.S.fusion.b: branch b's class token among the patches of the other one
        host = 1 - int(name.rpartition(".fusion.")[2].partition(".")[0])
        side = backbone.img_size[host] // backbone.patch_size[host]
        return side, side
    return tuple(length // backbone.patch_size for length in images.shape[2:])


def _backbone(model):
    return getattr(model, "backbone", model)
