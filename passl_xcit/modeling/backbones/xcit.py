"""XCiT, the cross-covariance image transformer.

El-Nouby et al. 2021, arXiv 2106.09681; behaviour and parameter names follow facebookresearch/xcit (xcit.py) in the
layout of PASSL's `.pdparams` files. Quirks of the reference that its weights depend on: LPI (norm3, gamma3) comes
before the MLP (norm2, gamma2); class attention adds its *normalised* input to the patch tokens and then doubles them.

Shapes: B images, H W token grid, N = H * W tokens, M = N + 1 tokens with the class token, C channels,
h heads, d = C / h channels of a head, p patch size.
"""

import math
from typing import Optional

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_xcit.modeling.backbones.backbone import Backbone
from passl_xcit.modeling.layers import (
    DropPath,
    Gelu,
    Mlp,
    QkvAttention,
    attend,
    check_rates,
    constant,
    init_transformer_,
    parameter_filled,
    recomputed,
    split_heads,
    trunc_normal_,
)
from passl_xcit.ops.class_block import class_block, train_class_block
from passl_xcit.ops.conditions import applies, applies_in_training, made_of
from passl_xcit.ops.stem import stem, train_stem
from passl_xcit.ops.xca_block import train_xca_block, xca_block
from passl_xcit.utils.registry import BACKBONES

LAYER_NORM_EPS = 1e-6
NORM_FLOOR = 1e-12  # the reference divides by max(norm, 1e-12)


class ConvPatchEmbed(nn.Layer):
    """log2(p) convolutions of stride 2, each followed by BatchNorm, with GELU between them."""

    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        stages = int(math.log2(patch_size))
        widths = [in_chans] + [embed_dim // 2**i for i in reversed(range(stages))]
        layers = []
        for c_in, c_out in zip(widths, widths[1:]):
            conv = nn.Conv2D(c_in, c_out, 3, stride=2, padding=1, bias_attr=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2D(c_out)), Gelu()]
        self.proj = nn.Sequential(*layers[:-1])
        self.native_parts = made_of(self)

    def forward(self, images):
        """images [B, in_chans, H * p, W * p] -> [B, C, H, W]"""
        return self.proj(images)


class PositionalEncodingFourier(nn.Layer):
    """Sines and cosines of the token's row and column, projected to C channels; depends on (H, W) only."""

    def __init__(self, hidden_dim, dim, temperature=10000):
        super().__init__()
        self.token_projection = nn.Conv2D(hidden_dim * 2, dim, 1)
        self.hidden_dim, self.temperature = hidden_dim, temperature

    def forward(self, height, width):
        """-> [N, C]"""
        weight = self.token_projection.weight.flatten(1)  # [C, 2 * hidden_dim]
        if isinstance(height, int):
            waves = constant(_fourier_waves, height, width, self.hidden_dim, self.temperature, dtype=weight.dtype)
        else:  # an exported program for images of any size
            waves = _traced_waves(height, width, self.hidden_dim, self.temperature).astype(weight.dtype)
        return paddle.matmul(waves, weight, transpose_y=True) + self.token_projection.bias


def _fourier_waves(height, width, hidden_dim, temperature):
    """[N, 2 * hidden_dim]: the waves of the row, then those of the column."""
    rows = _axis_waves(height, hidden_dim, temperature)[:, None]  # [H, 1, hidden_dim]
    columns = _axis_waves(width, hidden_dim, temperature)[None, :]  # [1, W, hidden_dim]
    grid = (height, width, hidden_dim)
    waves = np.concatenate([np.broadcast_to(rows, grid), np.broadcast_to(columns, grid)], axis=2)
    return waves.reshape(height * width, 2 * hidden_dim)


def _axis_waves(length, hidden_dim, temperature):
    """[length, hidden_dim]: sin and cos, interleaved, of 1-based positions scaled to 2 pi."""
    position = np.arange(1, length + 1) * (2 * math.pi / (length + 1e-6))
    frequency = temperature ** (2 * (np.arange(hidden_dim) // 2) / hidden_dim)
    angle = position[:, None] / frequency[None, :]
    return np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=2).reshape(length, hidden_dim)


def _traced_waves(height, width, hidden_dim, temperature):
    """`_fourier_waves` of a height and a width that are tensors: float32 [N, 2 * hidden_dim]"""
    half = hidden_dim // 2
    frequency = (temperature ** (2 * np.arange(half) / hidden_dim)).astype("float32")

    def axis_waves(length):
        """-> [length, hidden_dim]"""
        position = paddle.arange(1, length + 1, dtype="int64").astype("float32") * (2 * math.pi)
        angle = (position / (length.astype("float32") + 1e-6)).unsqueeze(1) / paddle.to_tensor(frequency)
        return paddle.stack([angle.sin(), angle.cos()], axis=2).flatten(1)  # [length, half, 2] -> [length, hidden_dim]

    rows = axis_waves(height).unsqueeze(1).expand([height, width, hidden_dim])
    columns = axis_waves(width).unsqueeze(0).expand([height, width, hidden_dim])
    return paddle.concat([rows, columns], axis=2).flatten(0, 1)


class XCA(nn.Layer):
    """Cross-covariance attention (paper, eq. 2): every channel of a head attends to the d channels of that head.

    The paper normalises the columns of q and k and then takes their product. The product of the raw columns,
    divided by the outer product of their norms, is the same [d, d] matrix without a normalised copy of [N, C].
    The attention then multiplies the projection's weight, not the tokens: (v A) W = v (A W).
    With `qk_norm` false nothing is normalised, as in MindCV.
    """

    def __init__(self, dim, num_heads, qkv_bias, attn_drop, proj_drop):
        super().__init__()
        self.num_heads, self.qk_norm = num_heads, True
        self.temperature = parameter_filled(self, [num_heads, 1, 1], 1.0)
        self.qkv = nn.Linear(dim, dim * 3, bias_attr=None if qkv_bias else False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x):
        """[B, N, C] -> [B, N, C]"""
        q, k, v = self.qkv(x).chunk(3, axis=-1)  # each [B, N, C]
        attn = self.attn_drop(self.attention(q, k))  # [B, h, d, d]
        weight = self.proj.weight.reshape([1, self.num_heads, -1, self.proj.weight.shape[1]])  # [1, h, d, C]
        mixed = paddle.matmul(attn, weight, transpose_x=True).flatten(1, 2)  # [B, C, C]
        return self.proj_drop(paddle.matmul(v, mixed) + self.proj.bias)

    def attention(self, q, k):
        """q, k [B, N, C] -> [B, h, d, d]: row i weighs the channels of v that make output channel i.

        In float32 also where the rest is in half precision: a sum over N tokens soon passes float16's 65,504.
        """
        with paddle.amp.auto_cast(enable=False):
            return self._attention(*(x.astype("float32") for x in (q, k, self.temperature))).astype(q.dtype)

    def _attention(self, q, k, temperature):
        gram = self._head_blocks(paddle.matmul(q, k, transpose_x=True))  # [B, h, d, d]
        if not self.qk_norm:
            return F.softmax(gram * temperature, axis=-1)
        q_norm = self._column_norms(q).unsqueeze(3)  # [B, h, d, 1]
        k_norm = self._column_norms(k).unsqueeze(2)  # [B, h, 1, d]
        return F.softmax(gram / (q_norm * k_norm) * temperature, axis=-1)

    def _head_blocks(self, gram):
        """[B, C, C] -> [B, h, d, d]: the blocks on the diagonal, each head with itself."""
        h = self.num_heads
        d = gram.shape[1] // h
        same_head = constant(np.eye, h, dtype=gram.dtype).reshape([h, 1, h, 1])
        return (gram.reshape([-1, h, d, h, d]) * same_head).sum(axis=3)

    def _column_norms(self, x):
        """[B, N, C] -> [B, h, d]: each channel's length over the tokens."""
        # The floor stands under the root: the root of 0 has no finite gradient.
        norms = (x * x).sum(axis=1).clip(min=NORM_FLOOR**2).sqrt()
        return norms.reshape([0, self.num_heads, -1])


class LPI(nn.Layer):
    """Local patch interaction: two depthwise 3x3 convolutions on the token grid with GELU and BatchNorm between."""

    def __init__(self, dim):
        super().__init__()
        self.conv1 = nn.Conv2D(dim, dim, 3, padding=1, groups=dim)
        self.act = Gelu()
        self.bn = nn.BatchNorm2D(dim)
        self.conv2 = nn.Conv2D(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x, height, width):
        """[B, N, C] -> [B, N, C]"""
        grid = x.transpose([0, 2, 1]).reshape([0, 0, height, width])  # [B, C, H, W]
        grid = self.conv2(self.bn(self.act(self.conv1(grid))))
        return grid.flatten(2).transpose([0, 2, 1])  # [B, N, C]


class XCABlock(nn.Layer):
    """x + g1 XCA(LN1 x), then x + g3 LPI(LN3 x), then x + g2 MLP(LN2 x)."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias, drop, attn_drop, drop_path, eta):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, epsilon=LAYER_NORM_EPS)
        self.attn = XCA(dim, num_heads, qkv_bias, attn_drop, drop)
        self.norm3 = nn.LayerNorm(dim, epsilon=LAYER_NORM_EPS)
        self.local_mp = LPI(dim)
        self.norm2 = nn.LayerNorm(dim, epsilon=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        self.gamma1 = parameter_filled(self, [dim], eta)
        self.gamma2 = parameter_filled(self, [dim], eta)
        self.gamma3 = parameter_filled(self, [dim], eta)
        self.native_parts = made_of(self)

    def forward(self, x, height, width):
        """[B, N, C] -> [B, N, C]"""
        if applies(self, x):
            return xca_block(self, x, height, width)
        if applies_in_training(self, x):
            return train_xca_block(self, x, height, width)
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), height, width))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class ClassAttention(QkvAttention):
    """The class token attends to all tokens (CaiT, arXiv 2103.17239)."""

    def forward(self, x):
        """x [B, M, C], class token first -> the new class token [B, 1, C]"""
        channels = x.shape[2]
        weight_q, weight_kv = self.qkv.weight[:, :channels], self.qkv.weight[:, channels:]
        bias_q, bias_kv = (None, None) if self.qkv.bias is None else self.qkv.bias.split([channels, 2 * channels])
        q = F.linear(x[:, :1], weight_q, bias_q)  # [B, 1, C]
        k, v = F.linear(x, weight_kv, bias_kv).chunk(2, axis=-1)  # each [B, M, C]
        q, k, v = (split_heads(part, self.num_heads) for part in (q, k, v))  # [B, h, 1 or M, d]
        return self.proj_drop(self.proj(attend(q, k, v, self.attn_drop)))


class ClassAttentionBlock(nn.Layer):
    """Class attention and an MLP on the class token; keeps both quirks named at the top of this file."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias, drop, attn_drop, eta, tokens_norm):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, epsilon=LAYER_NORM_EPS)
        self.attn = ClassAttention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.norm2 = nn.LayerNorm(dim, epsilon=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.gamma1 = parameter_filled(self, [dim], eta)
        self.gamma2 = parameter_filled(self, [dim], eta)
        self.tokens_norm = tokens_norm
        self.native_parts = made_of(self)

    def forward(self, x):
        """x [B, M, C], class token first -> [B, M, C]"""
        if applies(self, x):
            return class_block(self, x)
        if applies_in_training(self, x):
            return train_class_block(self, x)
        normed = self.norm1(x)
        attended = paddle.concat([self.attn(normed), normed[:, 1:]], axis=1)
        x = x + self.gamma1 * attended
        if self.tokens_norm:
            x = self.norm2(x)
            cls, patches = x[:, :1], x[:, 1:]
        else:
            cls, patches = self.norm2(x[:, :1]), x[:, 1:]
        return paddle.concat([cls + self.gamma2 * self.mlp(cls), patches + patches], axis=1)


class XCiT(Backbone):
    """The backbone: images [B, in_chans, H * p, W * p] -> class token [B, C].

    Args:
        patch_size: 4, 8 or 16 pixels (any power of two from 2 on); 4 is meant for small images.
        embed_dim: C; a multiple of num_heads and of patch_size / 2.
        depth: number of XCA blocks.
        num_heads: h.
        mlp_ratio: hidden width of the MLPs as a multiple of C.
        qkv_bias: whether the q, k, v projections have a bias.
        drop_rate, attn_drop_rate: dropout after projections, and on the attention.
        drop_path_rate: stochastic depth, the same for every XCA block and absent in class attention.
        cls_attn_layers: number of class-attention blocks.
        eta: initial LayerScale, 1.0 for depth 12 and 1e-5 for depth 24 in the paper.
        tokens_norm: LayerNorm 2 of class attention over all tokens (False only in the nano models).
        in_chans: channels of the images.
        qk_norm: whether XCA normalises q and k, as the paper does; MindCV's weights need False.
        act: "gelu" or, for MindCV's weights, "gelu_tanh".
        use_recompute: in training, compute each XCA block again in the backward pass instead of keeping what it
            computed: less memory, for large images and batches, for a third more time. The results are the same.
        img_size: a key of PASSL's distillation files that says nothing: no parameter depends on the size of images.

    Raises:
        ValueError: for sizes that do not fit one another.
        DataError: in forward, for images with other channels or with sides that the patch size does not divide.
    """

    MATHS = {"mindcv": {"qk_norm": False, "act": "gelu_tanh"}}

    def __init__(
        self,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        cls_attn_layers: int = 2,
        eta: float = 1.0,
        tokens_norm: bool = True,
        in_chans: int = 3,
        qk_norm: bool = True,
        act: str = "gelu",
        use_recompute: bool = False,
        img_size: Optional[int] = None,
    ):
        super().__init__()
        _check_sizes(patch_size, embed_dim, depth, num_heads, cls_attn_layers, in_chans)
        if int(embed_dim * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio must be above 0, not {mlp_ratio}")
        check_rates(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        self.patch_size, self.in_chans, self.num_features = patch_size, in_chans, embed_dim
        self.size_divisor = patch_size
        self.patch_embed = ConvPatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embeder = PositionalEncodingFourier(32, embed_dim)  # the reference's spelling, kept for weight files
        self.pos_drop = nn.Dropout(drop_rate)
        common = {"dim": embed_dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias}
        common.update(drop=drop_rate, attn_drop=attn_drop_rate, eta=eta)
        self.blocks = nn.LayerList([XCABlock(drop_path=drop_path_rate, **common) for _ in range(depth)])
        self.cls_attn_blocks = nn.LayerList(
            [ClassAttentionBlock(tokens_norm=tokens_norm, **common) for _ in range(cls_attn_layers)]
        )
        self.use_recompute = use_recompute
        self.norm = nn.LayerNorm(embed_dim, epsilon=LAYER_NORM_EPS)
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=trunc_normal_)
        self.apply(init_transformer_)
        self._set_maths(qk_norm, act)
        self.stages = ("cls_token", "patch_tokens", "feature_map", *(f"block_{index}" for index in range(depth)))

    def _set_maths(self, qk_norm, act):
        for layer in self.sublayers():
            if isinstance(layer, XCA):
                layer.qk_norm = qk_norm
            elif isinstance(layer, Gelu):
                layer.set_act(act)
        self.qk_norm, self.act = qk_norm, act

    def no_weight_decay(self):
        """Names of the parameters of more than one dimension that the official recipe leaves undecayed.

        The reference lists `temperature` too, but its optimizer never asks for it (models that reproduce it decay it).
        """
        return {"cls_token"}

    def forward(self, images):
        tokens = self._class_blocks(*self.embed(images))
        return self.norm(tokens[:, 0])  # LayerNorm works token by token: the class token's is all that is used

    def _extract(self, images, stage):
        """block_i [B, N, C]; after the last norm cls_token [B, C], patch_tokens [B, N, C], feature_map [B, C, H, W]."""
        x, grid = self.embed(images)
        if stage.startswith("block_"):
            return self._patch_blocks(x, grid, int(stage.removeprefix("block_")) + 1)
        tokens = self.norm(self._class_blocks(x, grid))
        if stage == "cls_token":
            return tokens[:, 0]
        patches = tokens[:, 1:]  # [B, N, C]
        return patches if stage == "patch_tokens" else patches.transpose([0, 2, 1]).reshape([0, 0, *grid])

    def embed(self, images):
        """images -> patch tokens [B, N, C] before the first block, and their grid (H, W)."""
        self._check_images(images)
        compute = self._native_stem(images)
        if compute is not None:
            height, width = (length // self.patch_size for length in images.shape[2:])
            return compute(self.patch_embed, images, self.pos_embeder(height, width)), (height, width)
        maps = self.patch_embed(images)  # [B, C, H, W]
        height, width = maps.shape[2:]
        x = maps.flatten(2).transpose([0, 2, 1])  # [B, N, C]
        return self.pos_drop(x + self.pos_embeder(height, width)), (height, width)

    def _native_stem(self, images):
        """The native function that computes the stem and adds the positional encoding, or None."""
        if all(applies(layer, images) for layer in (self.patch_embed, self.pos_embeder, self.pos_drop)):
            return stem
        if applies_in_training(self.patch_embed, images) and not self.pos_drop.p:
            tokens = math.prod(images.shape) // (images.shape[1] * self.patch_size**2)  # of all images
            return train_stem if tokens > 1 else None
        return None

    def _patch_blocks(self, x, grid, count=None):
        """[B, N, C] -> [B, N, C] after the first `count` XCA blocks, or after all."""
        again = self.use_recompute and self.training and paddle.is_grad_enabled()
        for block in self.blocks[:count]:
            x = recomputed(block, x, *grid) if again else block(x, *grid)
        return x

    def _class_blocks(self, x, grid):
        """[B, N, C] -> [B, M, C]: all XCA blocks, then those that the class token takes part in."""
        x = self._patch_blocks(x, grid)
        x = paddle.concat([self.cls_token.expand([x.shape[0], -1, -1]), x], axis=1)  # [B, M, C]
        for block in self.cls_attn_blocks:
            x = block(x)
        return x

    def _check_images(self, images):
        self.check_images(images)
        height, width = images.shape[2:]
        if isinstance(height, int):  # not in an exported program for images of any size
            self.check_size(height, width)


def _check_sizes(patch_size, embed_dim, depth, num_heads, cls_attn_layers, in_chans):
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise ValueError(f"patch_size must be a power of two, such as 4, 8 or 16, not {patch_size}")
    for name, value, least in (
        ("embed_dim", embed_dim, 1),
        ("depth", depth, 0),
        ("num_heads", num_heads, 1),
        ("cls_attn_layers", cls_attn_layers, 1),
        ("in_chans", in_chans, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
    if embed_dim % (patch_size // 2):
        raise ValueError(f"embed_dim {embed_dim} is not a multiple of patch_size / 2, {patch_size // 2}")


WIDTHS = {  # name: embed_dim, depth, num_heads
    "nano_12": (128, 12, 4),
    "tiny_12": (192, 12, 4),
    "tiny_24": (192, 24, 4),
    "small_12": (384, 12, 8),
    "small_24": (384, 24, 8),
    "medium_24": (512, 24, 8),
    "large_24": (768, 24, 16),
}

VARIANTS = {
    f"xcit_{size}_p{patch_size}": {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "eta": 1.0 if depth == 12 else 1e-5,
        "tokens_norm": size != "nano_12",
    }
    for size, (embed_dim, depth, num_heads) in WIDTHS.items()
    for patch_size in (16, 8)
}

BACKBONES.register(XCiT)
for _name, _defaults in VARIANTS.items():
    BACKBONES.register(XCiT, _name, defaults=_defaults)
