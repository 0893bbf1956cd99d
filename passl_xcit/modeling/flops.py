"""What one image costs a backbone, in closed form from the backbone's numbers: products, and what blocks hand on.

The convention is mmengine's FlopAnalyzer's (0.10.7), which took it from fvcore: one multiply-add is one FLOP.
Counted: convolutions, linear layers and attention's matrix products, without their biases; 5 for each element that a
LayerNorm sees, 2 for one of a BatchNorm, 1 for one that RegNet averages before its classifier.
Not counted: activations, softmax, the normalisation of q and k, LayerScale, sums, SE's means, resizing.

Published counts come from mmpretrain without the classifier (XCiT) and from timm with it, 1000 classes (CrossViT,
RegNet); these are the same. RegNetY-160 at 224: 15.91 G in convolutions and linear layers, which is the usual way to
count a convolutional network, and 0.05 G in BatchNorm, which makes timm's 15.96 G.

What is counted is the models as their papers state them. Ours may do less (XCiT's last LayerNorm sees the class token
only) or other operations of the same result (XCA multiplies the projection by the attention, not the tokens).

Letters: N tokens, M = N + 1 tokens with the class token, C channels.
"""

import math
from types import SimpleNamespace

from passl_xcit.modeling.backbones.crossvit import MULTI_CONV, CrossViT, branch_sizes
from passl_xcit.modeling.backbones.regnet import SE_RATIO, RegNet, stages_of
from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.utils.registry import BACKBONES

LAYER_NORM, BATCH_NORM = 5, 2  # for each element
CLASSES = 1000
POSITION_CHANNELS = 64  # sines and cosines of XCiT's positional encoding


def count_flops(backbone, size):
    """FLOPs of one image of `size` x `size` pixels, as int.

    Args:
        backbone: a name in the registry, or a config node such as {"name": "XCiT", "depth": 12}.
        size: pixels; XCiT's patches divide it. CrossViT scales every image to its own sizes first.

    Raises:
        ConfigError: for a backbone that is not registered.
        ValueError: for a size that does not divide into patches.
    """
    make, net = _numbers_of(backbone)
    return _FORMULAS[make](net, size)


def count_streams(backbone, size):
    """(elements that the blocks read, elements that they write): the sum of all blocks' inputs, and of their outputs.

    Of one image of `size` x `size` pixels, as ints. Arguments and errors as in `count_flops`.
    """
    make, net = _numbers_of(backbone)
    return _STREAMS[make](net, size)


def _numbers_of(backbone):
    """(class, its arguments as attributes)"""
    node = {"name": backbone} if isinstance(backbone, str) else backbone
    schema = BACKBONES[node["name"]]
    defaults = {name: parameter.default for name, parameter in schema.parameters.items()}
    return schema.make, SimpleNamespace(**{**defaults, **schema.defaults, **node})


def _xcit_tokens(net, size):
    if size % net.patch_size:
        raise ValueError(f"{size} pixels do not divide into patches of {net.patch_size}")
    return (size // net.patch_size) ** 2


def _xcit(net, size):
    tokens, width = _xcit_tokens(net, size), net.embed_dim  # N, C
    hidden = int(width * net.mlp_ratio)
    position = POSITION_CHANNELS * width * tokens
    blocks = net.depth * _xca_block(width, tokens, net.num_heads, hidden)
    class_blocks = net.cls_attn_layers * _class_attention_block(width, tokens + 1, hidden, net.tokens_norm)
    return _xcit_stem(net, size) + position + blocks + class_blocks + LAYER_NORM * width * (tokens + 1)


def _xcit_streams(net, size):
    tokens = _xcit_tokens(net, size)
    return 2 * (net.embed_dim * (net.depth * tokens + net.cls_attn_layers * (tokens + 1)),)


def _xcit_stem(net, size):
    total, side, channels = 0, size, net.in_chans
    for stage in reversed(range(net.patch_size.bit_length() - 1)):
        side, out_channels = side // 2, net.embed_dim // 2**stage
        total += _conv_bn(side, 3, channels, out_channels)
        channels = out_channels
    return total


def _xca_block(width, tokens, heads, hidden):
    """qkv, projection, q with k and the attention with v, two depthwise 3x3 convolutions, the MLP, and the norms."""
    attention = 4 * width**2 + 2 * width * (width // heads)
    local = (2 * 9 + BATCH_NORM) * width
    return tokens * (attention + local + 2 * width * hidden + 3 * LAYER_NORM * width)


def _class_attention_block(width, tokens, hidden, tokens_norm):
    """k and v of all `tokens`, M; q, projection and MLP of the class token alone."""
    linear = 2 * width**2 * tokens + 2 * width**2 + 2 * width * hidden
    normed = tokens + (tokens if tokens_norm else 1)
    return linear + 2 * width * tokens + LAYER_NORM * width * normed


def _crossvit(net, size):
    sides, tokens, total = branch_sizes(net.img_size, net.patch_size), _crossvit_tokens(net), 0
    for branch, other in ((0, 1), (1, 0)):
        width = net.embed_dim[branch]
        block = _transformer_block(width, tokens[branch], int(width * net.mlp_ratio[branch]))
        visit = _visit(width, net.embed_dim[other], tokens[other])
        total += _patch_embed(net, sides[branch], net.patch_size[branch], width)
        total += sum(stage[branch] * block + visit for stage in net.depth)
        total += LAYER_NORM * width * tokens[branch] + width * CLASSES
    return total


def _crossvit_tokens(net):
    """M of each branch"""
    sides = branch_sizes(net.img_size, net.patch_size)
    return [(side // patch) ** 2 + 1 for side, patch in zip(sides, net.patch_size)]


def _crossvit_streams(net, size):
    """Of the transformer blocks, and of the fusions, each of which reads the other branch's tokens."""
    branches = list(zip(_crossvit_tokens(net), net.embed_dim))
    written = sum(stage[branch] * math.prod(branches[branch]) for stage in net.depth for branch in (0, 1))
    return written + len(net.depth) * sum(map(math.prod, branches)), written


def _patch_embed(net, side, patch, width):
    if not net.multi_conv:
        return _conv(side // patch, patch, net.in_chans, width)
    total, channels = 0, net.in_chans
    for (kernel, stride, padding), out_channels in zip(MULTI_CONV[patch], (width // 4, width // 2, width)):
        side = (side + 2 * padding - kernel) // stride + 1
        total += _conv(side, kernel, channels, out_channels)
        channels = out_channels
    return total


def _transformer_block(width, tokens, hidden):
    linear = 4 * width**2 + 2 * width * hidden
    return tokens * (linear + 2 * tokens * width + 2 * LAYER_NORM * width)


def _visit(width, host_width, host_tokens):
    """A class token goes to the other branch's width, attends to that branch's tokens, and comes back."""
    there_and_back = 2 * width * host_width + LAYER_NORM * (width + host_width)
    attention = 2 * host_width**2 * (host_tokens + 1) + 2 * host_width * host_tokens  # q and projection: one token
    return there_and_back + attention + LAYER_NORM * host_width * host_tokens


def _regnet(net, size):
    side = _halved(size)
    total, channels = _conv_bn(side, 3, net.in_chans, net.stem_w), net.stem_w
    for stage in stages_of(net.w_a, net.w_0, net.w_m, net.d, net.group_w, net.bot_mul, net.q):
        for first in (True, *[False] * (stage.depth - 1)):
            total += _bottleneck(net.se_on, stage, channels, side, first)
            side, channels = _halved(side) if first else side, stage.width
    return total + channels * side**2 + channels * CLASSES


def _regnet_streams(net, size):
    side, channels, read, written = _halved(size), net.stem_w, 0, 0
    for stage in stages_of(net.w_a, net.w_0, net.w_m, net.d, net.group_w, net.bot_mul, net.q):
        for first in (True, *[False] * (stage.depth - 1)):
            read += side**2 * channels
            side, channels = _halved(side) if first else side, stage.width
            written += side**2 * channels
    return read, written


def _bottleneck(se_on, stage, channels, side, first):
    """1x1, grouped 3x3 (of stride 2 in a stage's first block), SE, 1x1; and the first block's shortcut."""
    out_side, inner = _halved(side) if first else side, stage.inner_width
    total = _conv_bn(side, 1, channels, inner) + _conv_bn(out_side, 3, stage.group_w, inner)
    total += _conv_bn(out_side, 1, inner, stage.width)
    total += 2 * inner * max(1, round(channels * SE_RATIO)) if se_on else 0
    return total + (_conv_bn(out_side, 1, channels, stage.width) if first else 0)


def _halved(side):
    return (side + 1) // 2


def _conv(side, kernel, channels, out_channels):
    """A convolution whose output has `side` x `side` places, each of which sees `channels`."""
    return side**2 * kernel**2 * channels * out_channels


def _conv_bn(side, kernel, channels, out_channels):
    return _conv(side, kernel, channels, out_channels) + BATCH_NORM * side**2 * out_channels


_FORMULAS = {XCiT: _xcit, CrossViT: _crossvit, RegNet: _regnet}
_STREAMS = {XCiT: _xcit_streams, CrossViT: _crossvit_streams, RegNet: _regnet_streams}
