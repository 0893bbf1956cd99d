"""CrossViT: two vision transformers, on small and on large patches, that exchange their class tokens.

Chen, Fan, Panda 2021, arXiv 2103.14899; behaviour and parameter names follow IBM/CrossViT (models/crossvit.py).
A quirk of the reference that its weights depend on: the class token that comes back from the other branch replaces
the old one, without a residual.

Shapes: B images, S side of a branch's image, p its patch size, N = (S / p)^2 patches, M = N + 1 tokens with the class
token, C channels of a branch, D channels of the other branch, h heads, d = C / h channels of a head.
"""

from typing import Sequence, Union

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
    init_transformer_,
    split_heads,
    trunc_normal_,
)
from passl_xcit.modeling.resize import SCALINGS, scale_images
from passl_xcit.ops.attention_block import attention_block, train_attention_block
from passl_xcit.ops.conditions import applies, applies_in_training, made_of
from passl_xcit.ops.cross_attention import cross_attention, train_cross_attention
from passl_xcit.utils.registry import BACKBONES

LAYER_NORM_EPS = 1e-6
SIDE_RATIO = 224 / 240  # of the second branch's image to the first's, before it is rounded to whole patches
MULTI_CONV = {  # patch size: kernel, stride, padding of the three convolutions
    12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)),
    16: ((7, 4, 3), (3, 2, 1), (3, 2, 1)),
}


class PatchEmbed(nn.Layer):
    """Image to patch tokens: one convolution, or with `multi_conv` three, with ReLU between them."""

    def __init__(self, patch_size, in_chans, embed_dim, multi_conv):
        super().__init__()
        if multi_conv:
            widths = [in_chans, embed_dim // 4, embed_dim // 2, embed_dim]
            convs = [nn.Conv2D(*shape) for shape in zip(widths, widths[1:], *zip(*MULTI_CONV[patch_size]))]
            self.proj = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        else:
            self.proj = nn.Conv2D(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, images):
        """images [B, in_chans, S, S] -> [B, N, C]"""
        return self.proj(images).flatten(2).transpose([0, 2, 1])  # [B, C, S / p, S / p] -> [B, N, C]


class Attention(QkvAttention):
    """Multi-head self-attention."""

    def forward(self, x):
        """[B, M, C] -> [B, M, C]"""
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, axis=-1))
        return self.proj_drop(self.proj(attend(q, k, v, self.attn_drop)))


class CrossAttention(nn.Layer):
    """Multi-head attention of the class token alone to all tokens, itself too."""

    def __init__(self, dim, num_heads, qkv_bias, attn_drop, proj_drop):
        super().__init__()
        self.num_heads = num_heads
        bias = None if qkv_bias else False
        self.wq = nn.Linear(dim, dim, bias_attr=bias)
        self.wk = nn.Linear(dim, dim, bias_attr=bias)
        self.wv = nn.Linear(dim, dim, bias_attr=bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x):
        """x [B, M, C], class token first -> [B, 1, C]"""
        q, k, v = (split_heads(part, self.num_heads) for part in (self.wq(x[:, :1]), self.wk(x), self.wv(x)))
        return self.proj_drop(self.proj(attend(q, k, v, self.attn_drop)))


class BlockNorm(nn.LayerNorm):
    """A LayerNorm inside a block, whose epsilon differs between implementations and may be set at any time."""

    def __init__(self, dim):
        super().__init__(dim)
        self.epsilon = LAYER_NORM_EPS

    def forward(self, x):
        """[..., C] -> [..., C]"""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Block(nn.Layer):
    """x + attention(LN1 x), then x + MLP(LN2 x)."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias, drop, attn_drop, drop_path):
        super().__init__()
        self.norm1 = BlockNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.norm2 = BlockNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        self.native_parts = made_of(self)

    def forward(self, x):
        """[B, M, C] -> [B, M, C]"""
        if applies(self, x):
            return attention_block(self, x)
        if applies_in_training(self, x):
            return train_attention_block(self, x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CrossAttentionBlock(nn.Layer):
    """Class token + cross attention(LN1 tokens); there is no MLP."""

    def __init__(self, dim, num_heads, qkv_bias, drop, attn_drop, drop_path):
        super().__init__()
        self.norm1 = BlockNorm(dim)
        self.attn = CrossAttention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.native_parts = made_of(self)

    def forward(self, x):
        """x [B, M, C], class token first -> the new class token [B, 1, C]"""
        if applies(self, x):
            return cross_attention(self, x)
        if applies_in_training(self, x):
            return train_cross_attention(self, x)
        return x[:, :1] + self.drop_path(self.attn(self.norm1(x)))


class MultiScaleBlock(nn.Layer):
    """One stage (paper, figure 2): each branch's own blocks, then both class tokens visit the other's patches.

    Args:
        dims, depths, num_heads, mlp_ratios: one value for each of the two branches.
        drop_paths: rates of the longer branch's blocks; the shorter uses the first ones, cross attention the last.
    """

    def __init__(self, dims, depths, num_heads, mlp_ratios, qkv_bias, drop, attn_drop, drop_paths):
        super().__init__()
        common = {"qkv_bias": qkv_bias, "drop": drop, "attn_drop": attn_drop}
        others = dims[::-1]
        self.blocks = nn.LayerList(
            nn.Sequential(*(Block(dim, heads, ratio, drop_path=rate, **common) for rate in drop_paths[:depth]))
            for dim, depth, heads, ratio in zip(dims, depths, num_heads, mlp_ratios)
        )
        self.projs = nn.LayerList(_projection(dim, other) for dim, other in zip(dims, others))
        self.fusion = nn.LayerList(
            CrossAttentionBlock(other, heads, drop_path=drop_paths[-1], **common)
            for other, heads in zip(others, num_heads[::-1])
        )
        self.revert_projs = nn.LayerList(_projection(other, dim) for dim, other in zip(dims, others))

    def forward(self, branches):
        """Two tensors [B, M, C], class token first -> two of the same shapes"""
        branches = [blocks(x) for blocks, x in zip(self.blocks, branches)]
        parts = [_class_token_and_patches(x) for x in branches]
        visitors = [proj(cls) for proj, (cls, _) in zip(self.projs, parts)]  # each [B, 1, D]
        visited = [
            fusion(paddle.concat([visitor, patches], axis=1))  # each [B, 1, D]
            for fusion, visitor, (_, patches) in zip(self.fusion, visitors, parts[::-1])
        ]
        returned = [revert(x) for revert, x in zip(self.revert_projs, visited)]  # each [B, 1, C]
        return [paddle.concat([cls, patches], axis=1) for cls, (_, patches) in zip(returned, parts)]


def _class_token_and_patches(x):
    """[B, M, C] -> [B, 1, C], [B, M - 1, C]"""
    if paddle.in_dynamic_mode():  # the gradient of each slice would be a tensor of all tokens, most of it zeros
        return x.split([1, x.shape[1] - 1], axis=1)
    return x[:, :1], x[:, 1:]  # of a split in an exported program, oneDNN's bfloat16 makes what it cannot load


def _projection(dim, out_dim):
    return nn.Sequential(nn.LayerNorm(dim, epsilon=LAYER_NORM_EPS), Gelu(), nn.Linear(dim, out_dim))


class CrossViT(Backbone):
    """The backbone: images [B, in_chans, H, W] -> class tokens of the two branches, a tuple of [B, C].

    Arguments that are lists hold one value for the branch of small patches and one for that of large patches.
    Each branch scales the images to its own square size, as the reference does, so images may have any H and W;
    the position embeddings, and with them the weight files, belong to `img_size`.

    Args:
        img_size: side in pixels of each branch's image, a multiple of its patch size; one number S stands for S and
            the multiple of the second patch size nearest to 14/15 S: 240 for [240, 224], 408 for [408, 384].
        patch_size: p.
        embed_dim: C, a multiple of num_heads.
        depth: for each stage the number of blocks of each branch; the reference's third value, 0, may follow.
        num_heads: h.
        mlp_ratio: hidden width of the MLPs as a multiple of C; the reference's third, unused value may follow.
        qkv_bias: whether the q, k, v projections have a bias.
        drop_rate, attn_drop_rate: dropout after projections, and on the attention.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        multi_conv: patch embedding by three convolutions (the "dagger" models); patch sizes 12 and 16 only.
        in_chans: channels of the images.
        input_scaling: "bicubic", or "bilinear_aligned" (corners aligned); neither smooths before it shrinks.
        act: "gelu", or "gelu_tanh" for its approximation by tanh.
        block_norm_eps: epsilon of the LayerNorms inside the blocks; the others have 1e-6.

    The last three are the maths in which implementations differ: `MATHS` has them by implementation, `set_maths`
    changes them on a built model.

    Raises:
        ValueError: for sizes that do not fit one another.
        DataError: in forward, for images with other channels or without pixels.
    """

    TRACED_FOR_ANY_SIZE = False
    MATHS = {  # mindcv 0.3.0, models/crossvit.py, with the defaults of MindSpore 2.10.0's LayerNorm and GELU
        "mindcv": {"input_scaling": "bilinear_aligned", "act": "gelu_tanh", "block_norm_eps": 1e-7},
    }

    def __init__(
        self,
        img_size: Union[int, Sequence[int]] = 240,
        patch_size: Sequence[int] = (12, 16),
        embed_dim: Sequence[int] = (192, 384),
        depth: Sequence[Sequence[int]] = ((1, 4), (1, 4), (1, 4)),
        num_heads: Sequence[int] = (6, 6),
        mlp_ratio: Sequence[float] = (4.0, 4.0),
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        multi_conv: bool = False,
        in_chans: int = 3,
        input_scaling: str = "bicubic",
        act: str = "gelu",
        block_norm_eps: float = 1e-6,
    ):
        super().__init__()
        depth, mlp_ratio = _two_branches(depth, mlp_ratio)
        _check_branches(patch_size=patch_size, embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
        _check_sizes(patch_size, embed_dim, depth, num_heads, mlp_ratio, multi_conv, in_chans)
        check_rates(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        self.img_size = branch_sizes(img_size, patch_size)
        self.patch_size, self.in_chans, self.num_features = tuple(patch_size), in_chans, tuple(embed_dim)
        self.patch_embed = nn.LayerList(
            PatchEmbed(patch, in_chans, dim, multi_conv) for patch, dim in zip(patch_size, embed_dim)
        )
        self.pos_drop = nn.Dropout(drop_rate)
        common = {"dims": embed_dim, "num_heads": num_heads, "mlp_ratios": mlp_ratio, "qkv_bias": qkv_bias}
        common.update(drop=drop_rate, attn_drop=attn_drop_rate)
        rates = _drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.LayerList(
            MultiScaleBlock(depths=depths, drop_paths=stage_rates, **common)
            for depths, stage_rates in zip(depth, rates)
        )
        self.norm = nn.LayerList(nn.LayerNorm(dim, epsilon=LAYER_NORM_EPS) for dim in embed_dim)
        tokens = [1 + (side // patch) ** 2 for side, patch in zip(self.img_size, patch_size)]
        self.pos_embed = self._token_parameters(tokens)
        self.cls_token = self._token_parameters([1, 1])
        self.stages = ("cls_token", "patch_tokens", "feature_map", *(f"block_{i}" for i in range(len(depth))))
        self.apply(init_transformer_)
        self._set_maths(input_scaling, act, block_norm_eps)

    def _token_parameters(self, counts):
        return nn.ParameterList(
            self.create_parameter([1, count, dim], default_initializer=trunc_normal_)
            for count, dim in zip(counts, self.num_features)
        )

    def no_weight_decay(self):
        """Names of the parameters of more than one dimension that weight decay should leave alone.

        The reference means these, but names `cls_token` and `pos_embed`, which its parameters are not called: its
        published weights were trained with both decayed.
        """
        return {f"{name}.{branch}" for name in ("cls_token", "pos_embed") for branch in (0, 1)}

    def _set_maths(self, input_scaling, act, block_norm_eps):
        if input_scaling not in SCALINGS:
            raise ValueError(f"input_scaling must be {' or '.join(SCALINGS)}, not {input_scaling!r}")
        if not 0 < block_norm_eps < 1:
            raise ValueError(f"block_norm_eps must lie between 0 and 1, not {block_norm_eps}")
        for gelu in self._sublayers_of(Gelu):
            gelu.set_act(act)
        for norm in self._sublayers_of(BlockNorm):
            norm.epsilon = block_norm_eps
        self.input_scaling, self.act, self.block_norm_eps = input_scaling, act, block_norm_eps

    def _sublayers_of(self, kind):
        return [layer for layer in self.sublayers() if isinstance(layer, kind)]

    def forward(self, images):
        return self._extract(images, "cls_token")

    def _extract(self, images, stage):
        """A tuple, one tensor for each branch.

        block_i [B, M, C], class token first; after the last norm cls_token [B, C], patch_tokens [B, N, C] and
        feature_map [B, C, S / p, S / p].
        """
        inner = stage.startswith("block_")
        blocks = int(stage.split("_")[1]) + 1 if inner else len(self.blocks)
        branches = self._embed(images)
        for block in list(self.blocks)[:blocks]:
            branches = block(branches)  # each [B, M, C]
        if inner:
            return tuple(branches)
        if stage == "cls_token":  # LayerNorm works token by token: the class token's is all that is needed
            return tuple(norm(x[:, 0]) for norm, x in zip(self.norm, branches))
        patches = tuple(norm(x[:, 1:]) for norm, x in zip(self.norm, branches))
        return patches if stage == "patch_tokens" else tuple(map(_to_grid, patches))

    def _embed(self, images):
        """images [B, in_chans, H, W] -> list of [B, M, C], class token first"""
        self.check_images(images)
        branches = []
        for side, embed, cls_token, pos_embed in zip(self.img_size, self.patch_embed, self.cls_token, self.pos_embed):
            patches = embed(scale_images(images, side, self.input_scaling))  # [B, N, C]
            x = paddle.concat([cls_token.expand([patches.shape[0], -1, -1]), patches], axis=1)  # [B, M, C]
            branches.append(self.pos_drop(x + pos_embed))
        return branches


def _to_grid(patches):
    """[B, N, C] -> [B, C, S / p, S / p]"""
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose([0, 2, 1]).reshape([0, 0, side, side])


def _two_branches(depth, mlp_ratio):
    """`depth` and `mlp_ratio` without the reference's third values."""
    pairs = []
    for stage in depth:
        if len(stage) not in (2, 3) or min(stage[:2]) < 1 or any(stage[2:]):
            raise ValueError(f"depth has a stage {list(stage)}: give two numbers of blocks, 1 or more, such as [1, 4]")
        pairs.append(tuple(stage[:2]))
    if not pairs:
        raise ValueError("depth has no stage: give a list such as [[1, 4], [1, 4], [1, 4]]")
    return pairs, mlp_ratio[:2] if len(mlp_ratio) == 3 else mlp_ratio


def _check_branches(**arguments):
    for name, values in arguments.items():
        if len(values) != 2:
            raise ValueError(f"{name} needs one value for each of the two branches, not {list(values)}")


def _check_sizes(patch_size, embed_dim, depth, num_heads, mlp_ratio, multi_conv, in_chans):
    if in_chans < 1:
        raise ValueError(f"in_chans must be at least 1, not {in_chans}")
    for name, values in (("patch_size", patch_size), ("embed_dim", embed_dim), ("num_heads", num_heads)):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, not {min(values)}")
    for dim, heads, ratio in zip(embed_dim, num_heads, mlp_ratio):
        if dim % heads:
            raise ValueError(f"embed_dim {dim} is not a multiple of num_heads {heads}")
        if int(dim * ratio) < 1:
            raise ValueError(f"mlp_ratio must be above 0, not {ratio}")
    for patch, dim in zip(patch_size, embed_dim) if multi_conv else ():
        if patch not in MULTI_CONV:
            raise ValueError(f"multi_conv needs patch sizes of 12 or 16, not {patch}")
        if dim < 4:
            raise ValueError(f"multi_conv needs an embed_dim of at least 4, not {dim}")


def branch_sizes(img_size, patch_size):
    """Side in pixels of each branch's image, a tuple; ValueError where a side does not divide into patches."""
    if isinstance(img_size, int):
        patch = patch_size[1]
        img_size = (img_size, max(1, round(img_size * SIDE_RATIO / patch)) * patch)
    _check_branches(img_size=img_size)
    for side, patch in zip(img_size, patch_size):
        if side < 1 or side % patch:
            near = max(1, round(side / patch)) * patch
            raise ValueError(f"img_size {side} is not a multiple of its branch's patch_size {patch}, as {near} is")
    return tuple(img_size)


def _drop_path_rates(rate, depth):
    """A list of rates for each stage: from 0 to `rate`, in even steps along the longer branch of all stages."""
    lengths = [max(blocks) for blocks in depth]
    rates = np.linspace(0, rate, sum(lengths)).tolist()
    return [rates[sum(lengths[:stage]) : sum(lengths[: stage + 1])] for stage in range(len(depth))]


SIZES = {  # name: embed_dim, blocks of a stage's second branch, num_heads of each branch, mlp_ratio of each branch
    "tiny": ((96, 192), 4, 3, 4.0),
    "small": ((192, 384), 4, 6, 4.0),
    "base": ((384, 768), 4, 12, 4.0),
    "9": ((128, 256), 3, 4, 3.0),
    "15": ((192, 384), 5, 6, 3.0),
    "18": ((224, 448), 6, 7, 3.0),
}

# timm's names, which tell the size of the images; the reference says 224 for 240 and 384 for 408.
NAMES = [f"{size}_240" for size in SIZES] + [f"{size}_dagger_240" for size in ("9", "15", "18")]
NAMES += [f"{size}_dagger_408" for size in ("15", "18")]


def _preset(name):
    size, *dagger, img_size = name.split("_")
    embed_dim, depth, num_heads, mlp_ratio = SIZES[size]
    return {
        "img_size": int(img_size),
        "patch_size": (12, 16),
        "embed_dim": embed_dim,
        "depth": ((1, depth),) * 3,
        "num_heads": (num_heads, num_heads),
        "mlp_ratio": (mlp_ratio, mlp_ratio),
        "multi_conv": bool(dagger),
    }


VARIANTS = {f"crossvit_{name}": _preset(name) for name in NAMES}

BACKBONES.register(CrossViT)
for _name, _defaults in VARIANTS.items():
    BACKBONES.register(CrossViT, _name, defaults=_defaults)
