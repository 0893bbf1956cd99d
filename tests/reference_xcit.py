"""XCiT as the textbook writes it, in plain Paddle: what the fast model is compared with.

From El-Nouby et al., "XCiT: Cross-Covariance Image Transformers" (2021), section 3, and Touvron et al., "Going
deeper with Image Transformers" (CaiT, 2021), for class attention. Where the published weights ask
for something else than the papers' text, the weights are followed, as facebookresearch/xcit `xcit.py` does:
the temperature multiplies, LPI (norm3, gamma3) runs before the MLP (norm2, gamma2), and class attention
hands on normalised patch tokens and adds its second residual after the norm.

Every function takes the dict of its own parameters (PASSL's names below the module, Paddle's layout), of any
floating dtype, and never looks at the fast model.

Shapes: B images, I channels of an image, C channels of a token, Hp Wp token grid, N = Hp * Wp patch tokens,
M = N + 1 tokens with the class token, h heads, d = C / h channels of a head.
"""

import math

import paddle
import paddle.nn.functional as F


def reference_forward(params, images, *, patch_size, depth, num_heads, cls_attn_layers, tokens_norm, training):
    """Class-token features [B, C] of images [B, I, H, W].

    Args:
        params: {name without `backbone.`: array or tensor}, BatchNorm buffers as `_mean` and `_variance`;
            tensors keep their gradient. Their dtype is the dtype of the whole computation.
        images: array or tensor.
        patch_size: 4, 8 or 16: two, three or four convolutions of stride 2.
        training: BatchNorm uses the batch's own statistics; the buffers in `params` are left alone.
    """
    params = {name: as_tensor(value) for name, value in params.items()}
    images = as_tensor(images).astype(params["cls_token"].dtype)
    grid = patch_embed(below(params, "patch_embed"), images, patch_size, training)  # [B, C, Hp, Wp]
    grid = grid + positional_encoding(below(params, "pos_embeder"), *grid.shape[2:])
    size = grid.shape[2:]
    x = to_tokens(grid)  # [B, N, C]
    for i in range(depth):
        x = xca_block(below(params, f"blocks.{i}"), x, size, num_heads, training)
    cls_token = params["cls_token"].expand([x.shape[0], 1, -1])  # [B, 1, C]
    x = paddle.concat([cls_token, x], axis=1)  # [B, M, C]
    for j in range(cls_attn_layers):
        x = class_attention_block(below(params, f"cls_attn_blocks.{j}"), x, num_heads, tokens_norm)
    return layer_norm(below(params, "norm"), x)[:, 0]  # [B, C]


def patch_embed(p, images, patch_size, training):
    """Convolutions 3x3 of stride 2, each with BatchNorm, GELU between them: [B, I, H, W] -> [B, C, Hp, Wp]."""
    stages = int(math.log2(patch_size))
    x = images
    for stage in range(stages):
        x = F.conv2d(x, p[f"proj.{2 * stage}.0.weight"], stride=2, padding=1)
        x = batch_norm(below(p, f"proj.{2 * stage}.1"), x, training)
        if stage < stages - 1:
            x = gelu(x)
    return x


def positional_encoding(p, height, width):
    """Fourier features projected to the tokens' channels by a 1x1 convolution: [1, C, Hp, Wp]."""
    weight = p["token_projection.weight"]
    features = fourier_features(height, width, weight.dtype)
    return F.conv2d(features.unsqueeze(0), weight, p["token_projection.bias"])


def fourier_features(height, width, dtype="float64", hidden_dim=32, temperature=10000.0, eps=1e-6):
    """sin, cos, sin, cos, ... of y (first half) and of x (second half): [2 * hidden_dim, Hp, Wp].

    Coordinates count from 1 and are scaled to 2 pi; frequency pair j is temperature^(-2j / hidden_dim).
    """
    pair = paddle.arange(hidden_dim // 2, dtype=dtype)
    wavelength = temperature ** (2 * pair / hidden_dim)  # [hidden_dim / 2]

    def waves(length):
        position = paddle.arange(1, length + 1, dtype=dtype)
        angle = (2 * math.pi * position / (length + eps)).unsqueeze(1) / wavelength  # [length, hidden_dim / 2]
        return paddle.stack([angle.sin(), angle.cos()], axis=2).reshape([length, hidden_dim])

    y = waves(height).transpose([1, 0]).unsqueeze(2).expand([-1, -1, width])  # [hidden_dim, Hp, Wp]
    x = waves(width).transpose([1, 0]).unsqueeze(1).expand([-1, height, -1])  # [hidden_dim, Hp, Wp]
    return paddle.concat([y, x], axis=0)


def xca_block(p, x, size, num_heads, training):
    """Cross-covariance attention, local patch interaction, MLP; each pre-norm and scaled: [B, N, C] -> [B, N, C]."""
    u = layer_norm(below(p, "norm1"), x)
    x = x + p["gamma1"] * cross_covariance_attention(below(p, "attn"), u, num_heads)
    u = layer_norm(below(p, "norm3"), x)
    x = x + p["gamma3"] * local_patch_interaction(below(p, "local_mp"), u, size, training)
    u = layer_norm(below(p, "norm2"), x)
    return x + p["gamma2"] * mlp(below(p, "mlp"), u)


def cross_covariance_attention(p, x, num_heads):
    """XCA, section 3.2 of the paper, per head: channels attend to channels, [B, N, C] -> [B, N, C]."""
    batch, tokens, channels = x.shape
    qkv = linear(below(p, "qkv"), x).reshape([batch, tokens, 3, num_heads, channels // num_heads])
    qkv = qkv.transpose([2, 0, 3, 4, 1])  # [B, N, 3, h, d] -> [3, B, h, d, N]
    q, k, v = l2_normalise(qkv[0]), l2_normalise(qkv[1]), qkv[2]  # each [B, h, d, N]
    scores = paddle.matmul(q, k.transpose([0, 1, 3, 2]))  # [B, h, d, N] x [B, h, N, d] -> [B, h, d, d]
    attention = F.softmax(p["temperature"] * scores, axis=-1)
    x = paddle.matmul(attention, v)  # [B, h, d, N]
    x = x.transpose([0, 3, 1, 2]).reshape([batch, tokens, channels])  # -> [B, N, h, d] -> [B, N, C]
    return linear(below(p, "proj"), x)


def l2_normalise(x):
    """Every channel divided by max(its norm along the tokens, 1e-12): [B, h, d, N] -> [B, h, d, N].

    The floor stands before the root because the root has no derivative at 0; a silent channel must not give NaN.
    """
    square = (x * x).sum(axis=-1, keepdim=True)  # [B, h, d, 1]
    return x / square.clip(min=1e-24).sqrt()


def local_patch_interaction(p, x, size, training):
    """Depthwise 3x3 convolution, GELU, BatchNorm, depthwise 3x3 convolution on the grid: [B, N, C] -> [B, N, C]."""
    channels = x.shape[2]
    grid = to_grid(x, size)  # [B, C, Hp, Wp]
    grid = gelu(F.conv2d(grid, p["conv1.weight"], p["conv1.bias"], padding=1, groups=channels))
    grid = batch_norm(below(p, "bn"), grid, training)
    grid = F.conv2d(grid, p["conv2.weight"], p["conv2.bias"], padding=1, groups=channels)
    return to_tokens(grid)  # [B, N, C]


def class_attention_block(p, x, num_heads, tokens_norm):
    """CaiT's class-attention layer as XCiT runs it: [B, M, C] -> [B, M, C], the class token first."""
    u = layer_norm(below(p, "norm1"), x)
    x = x + p["gamma1"] * paddle.concat([class_attention(below(p, "attn"), u, num_heads), u[:, 1:]], axis=1)
    norm2 = below(p, "norm2")
    x = layer_norm(norm2, x) if tokens_norm else paddle.concat([layer_norm(norm2, x[:, :1]), x[:, 1:]], axis=1)
    return x + paddle.concat([p["gamma2"] * mlp(below(p, "mlp"), x[:, :1]), x[:, 1:]], axis=1)


def class_attention(p, x, num_heads):
    """The class token attends to all tokens, itself too: [B, M, C] -> [B, 1, C]."""
    batch, tokens, channels = x.shape
    qkv = linear(below(p, "qkv"), x).reshape([batch, tokens, 3, num_heads, channels // num_heads])
    q, k, v = qkv.transpose([2, 0, 3, 1, 4])  # [B, M, 3, h, d] -> [3, B, h, M, d]
    scores = paddle.matmul(q[:, :, :1], k.transpose([0, 1, 3, 2]))  # [B, h, 1, d] x [B, h, d, M] -> [B, h, 1, M]
    attention = F.softmax(scores / math.sqrt(channels // num_heads), axis=-1)
    x = paddle.matmul(attention, v)  # [B, h, 1, d]
    x = x.transpose([0, 2, 1, 3]).reshape([batch, 1, channels])  # -> [B, 1, h, d] -> [B, 1, C]
    return linear(below(p, "proj"), x)


def mlp(p, x):
    return linear(below(p, "fc2"), gelu(linear(below(p, "fc1"), x)))


def linear(p, x):
    """x W + b with W [in, out]; there may be no b."""
    y = paddle.matmul(x, p["weight"])
    return y + p["bias"] if "bias" in p else y


def layer_norm(p, x, eps=1e-6):
    mean = x.mean(axis=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * p["weight"] + p["bias"]


def batch_norm(p, x, training, eps=1e-5):
    """[B, C, Hp, Wp], statistics of a channel over all images and places."""
    p = {name: value.reshape([1, -1, 1, 1]) for name, value in p.items()}  # [C] -> [1, C, 1, 1]
    mean, variance = p["_mean"], p["_variance"]
    if training:
        mean = x.mean(axis=[0, 2, 3], keepdim=True)
        variance = ((x - mean) ** 2).mean(axis=[0, 2, 3], keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * p["weight"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + paddle.erf(x / math.sqrt(2)))


def to_tokens(grid):
    """[B, C, Hp, Wp] -> [B, C, N] -> [B, N, C], row after row."""
    return grid.flatten(2).transpose([0, 2, 1])


def to_grid(tokens, size):
    """[B, N, C] -> [B, C, N] -> [B, C, Hp, Wp]."""
    batch, _, channels = tokens.shape
    return tokens.transpose([0, 2, 1]).reshape([batch, channels, *size])


def below(params, module):
    """The parameters of `module`, without its name in front."""
    return {name[len(module) + 1 :]: value for name, value in params.items() if name.startswith(f"{module}.")}


def as_tensor(value):
    """`to_tensor` would detach a tensor."""
    return value if isinstance(value, paddle.Tensor) else paddle.to_tensor(value)
