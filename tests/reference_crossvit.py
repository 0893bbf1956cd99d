"""CrossViT as the textbook writes it, in NumPy and float64: what the package's model is compared with.

From Chen, Fan, Panda, "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification" (2021),
section 3; where the paper leaves a choice open, IBM/CrossViT `models/crossvit.py` is followed, which made the
published weights: positions are learned, the class token that returns replaces the old one, fusion has no MLP.

Every function takes the dict of its own parameters (IBM's names below the module, torch's layout: a linear layer's
weight is [out, in]) and never looks at the package's model.

Shapes: B images, I channels of an image, S side of a branch's image, p its patch size, N = (S / p)^2 patches,
M = N + 1 tokens with the class token, C channels of a token, h heads, d = C / h channels of a head.
"""

import math
import re

import numpy as np
from fill_by_name import fill_by_name

IBM_MATHS = {"input_scaling": "bicubic", "act": "gelu", "block_norm_eps": 1e-6}
STRIDES_AND_PADDINGS = {12: ((4, 3), (3, 0), (1, 1)), 16: ((4, 3), (2, 1), (2, 1))}  # of the dagger models
ADDED = re.compile(r"^patch_embed|^cls_token|^pos_embed|attn\.proj\.|mlp\.fc2\.|projs\.\d\.2\.")
erf = np.frompyfunc(math.erf, 1, 1)


def crossvit_weights(shapes):
    """`fill_by_name`, but with position embeddings as large as the tokens: one wrong position must show."""
    weights = fill_by_name(shapes)
    for name in ("pos_embed.0", "pos_embed.1"):
        weights[name] = weights[name] * math.sqrt(weights[name].size)
    return weights


def with_small_tokens(weights):
    """`weights` with all that makes or adds to tokens a thousandth: variances of 1e-6, where an epsilon can be seen."""
    return {name: value * (1e-3 if ADDED.search(name) else 1) for name, value in weights.items()}


def reference_stages(params, images, *, img_size, patch_size, depth, num_heads, **maths):
    """What the model computes on its way to the class tokens: {stage: [array of branch 0, array of branch 1]}.

    Args:
        params: {IBM's name: array}.
        images: [B, I, H, W].
        img_size: S of both branches.
        depth: for each stage the blocks of both branches.
        maths: what differs from IBM_MATHS.
    """
    maths = {**IBM_MATHS, **maths}
    branches = []
    for r, (side, patch) in enumerate(zip(img_size, patch_size)):
        scaled = scale(images, side, maths["input_scaling"])
        patches = patch_embed(below(params, f"patch_embed.{r}"), scaled, patch)  # [B, N, C]
        cls = np.repeat(params[f"cls_token.{r}"], len(images), axis=0)  # [B, 1, C]
        branches.append(np.concatenate([cls, patches], axis=1) + params[f"pos_embed.{r}"])  # [B, M, C]
    stages = {}
    for b, blocks in enumerate(depth):
        branches = multi_scale_block(below(params, f"blocks.{b}"), branches, blocks, num_heads, maths)
        stages[f"block_{b}"] = branches
    normed = [layer_norm(below(params, f"norm.{r}"), branches[r]) for r in (0, 1)]
    stages["cls_token"] = [x[:, 0] for x in normed]
    stages["patch_tokens"] = [x[:, 1:] for x in normed]
    sides = [side // patch for side, patch in zip(img_size, patch_size)]
    stages["feature_map"] = [x[:, 1:].swapaxes(1, 2).reshape(len(x), -1, s, s) for x, s in zip(normed, sides)]
    return stages


def reference_logits(params, images, **config):
    """[B, K]: the mean of the two heads' logits."""
    features = reference_stages(params, images, **config)["cls_token"]
    return sum(linear(below(params, f"head.{r}"), features[r]) for r in (0, 1)) / 2


def patch_embed(p, images, patch):
    """[B, I, S, S] -> [B, N, C], row after row."""
    if "proj.weight" in p:
        grid = convolution(below(p, "proj"), images, patch, 0)
    else:
        grid = images
        for place, (stride, padding) in zip((0, 2, 4), STRIDES_AND_PADDINGS[patch]):
            grid = convolution(below(p, f"proj.{place}"), grid, stride, padding)
            grid = grid if place == 4 else np.maximum(grid, 0)
    return grid.reshape(*grid.shape[:2], -1).swapaxes(1, 2)


def convolution(p, x, stride, padding):
    """Cross-correlation with a kernel [O, I, k, k]: [B, I, H, W] -> [B, O, H', W']."""
    kernel = p["weight"]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = [(length - kernel.shape[2]) // stride + 1 for length in x.shape[2:]]
    out = p["bias"].reshape(1, -1, 1, 1)
    for row in range(kernel.shape[2]):
        for column in range(kernel.shape[3]):
            seen = x[:, :, row::stride, column::stride][:, :, : size[0], : size[1]]
            out = out + np.einsum("oi,bihw->bohw", kernel[:, :, row, column], seen)
    return out


def multi_scale_block(p, branches, blocks, num_heads, maths):
    """Each branch's own blocks, then both class tokens visit the other's patches: two [B, M, C] -> the same."""
    eps, gelu = maths["block_norm_eps"], GELUS[maths["act"]]
    branches = [run_blocks(below(p, f"blocks.{r}"), branches[r], blocks[r], num_heads[r], eps, gelu) for r in (0, 1)]
    out = []
    for r, other in ((0, 1), (1, 0)):
        visitor = project(below(p, f"projs.{r}"), branches[r][:, :1], gelu)
        tokens = np.concatenate([visitor, branches[other][:, 1:]], axis=1)
        fusion = below(p, f"fusion.{r}")
        attended = cross_attention(
            below(fusion, "attn"), layer_norm(below(fusion, "norm1"), tokens, eps), num_heads[other]
        )
        cls = project(below(p, f"revert_projs.{r}"), visitor + attended, gelu)
        out.append(np.concatenate([cls, branches[r][:, 1:]], axis=1))
    return out


def run_blocks(p, x, count, num_heads, eps, gelu):
    """Pre-norm transformer blocks: [B, M, C] -> [B, M, C]."""
    for i in range(count):
        block = below(p, f"{i}")
        x = x + self_attention(below(block, "attn"), layer_norm(below(block, "norm1"), x, eps), num_heads)
        hidden = gelu(linear(below(block, "mlp.fc1"), layer_norm(below(block, "norm2"), x, eps)))
        x = x + linear(below(block, "mlp.fc2"), hidden)
    return x


def project(p, x, gelu):
    """LayerNorm, GELU, linear: from the width of one branch to that of the other."""
    return linear(below(p, "2"), gelu(layer_norm(below(p, "0"), x)))


def self_attention(p, x, num_heads):
    """[B, M, C] -> [B, M, C]"""
    q, k, v = np.split(linear(below(p, "qkv"), x), 3, axis=-1)
    return linear(below(p, "proj"), attention(q, k, v, num_heads))


def cross_attention(p, x, num_heads):
    """The first token asks, all tokens answer: [B, M, C] -> [B, 1, C]."""
    q, k, v = linear(below(p, "wq"), x[:, :1]), linear(below(p, "wk"), x), linear(below(p, "wv"), x)
    return linear(below(p, "proj"), attention(q, k, v, num_heads))


def attention(q, k, v, num_heads):
    """Head by head: softmax(q k^T / sqrt d) v; q [B, Q, C], k and v [B, M, C] -> [B, Q, C]."""
    heads = []
    for one_q, one_k, one_v in zip(*(np.split(part, num_heads, axis=-1) for part in (q, k, v))):
        scores = one_q @ one_k.swapaxes(1, 2) / math.sqrt(one_q.shape[-1])  # [B, Q, M]
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ one_v)
    return np.concatenate(heads, axis=-1)


def linear(p, x):
    """x W^T + b with W [out, in]; there may be no b."""
    y = x @ p["weight"].T
    return y + p["bias"] if "bias" in p else y


def layer_norm(p, x, eps=1e-6):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["weight"] + p["bias"]


def exact_gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)).astype("float64"))


def tanh_gelu(x):
    """Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


GELUS = {"gelu": exact_gelu, "gelu_tanh": tanh_gelu}


def scale(images, side, scaling):
    """[B, I, H, W] -> [B, I, side, side]: the columns, then the rows."""
    scaled = {"bicubic": bicubic, "bilinear_aligned": bilinear_aligned}[scaling]
    if images.shape[2:] == (side, side):
        return images
    return scaled(scaled(images, side).swapaxes(2, 3), side).swapaxes(2, 3)


def bicubic(x, length):
    """Four pixels of the last axis for each new one, by Keys' kernel with a = -3/4; the edge pixel goes on."""
    centre = (np.arange(length) + 0.5) * x.shape[-1] / length - 0.5
    scaled = 0.0
    for offset in (-1, 0, 1, 2):
        source = np.floor(centre).astype(int) + offset
        t = np.abs(centre - source)
        weight = np.where(t <= 1, 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3)
        scaled = scaled + weight * x[..., source.clip(0, x.shape[-1] - 1)]
    return scaled


def bilinear_aligned(x, length):
    """The two pixels of the last axis beside each new one; the first stays the first and the last the last."""
    centre = np.linspace(0, x.shape[-1] - 1, length)
    left = np.floor(centre).astype(int).clip(0, x.shape[-1] - 2)
    return (left + 1 - centre) * x[..., left] + (centre - left) * x[..., left + 1]


def below(params, module):
    """The parameters of `module`, without its name in front."""
    return {name[len(module) + 1 :]: value for name, value in params.items() if name.startswith(f"{module}.")}
