"""RegNet as the textbook writes it, in plain Paddle: what the package's model is compared with.

From Radosavovic et al., "Designing Network Design Spaces" (2020), figure 4 (the X block), and Hu et al., "Squeeze-and-
Excitation Networks" (2018). Convolutions are sums of matrix products, tap by tap and group by group. Depth, widths,
groups, and whether there is squeeze and excitation, are read off the names and shapes of the parameters.

Every function takes the dict of its own parameters (PASSL's names below the module, Paddle's layout), of any floating
dtype, and never looks at the package's model.

Shapes: B images, C channels, H W places, G groups.
"""

import itertools

import paddle
import paddle.nn.functional as F
from reference_xcit import as_tensor, batch_norm, below, linear


def reference_stages(params, images, training=False):
    """What the stem, every block and every stage give: {"stem", "block_0", ..., "stage_1", ...: [B, C, H, W]}.

    Args:
        params: {name without `backbone.`: array or tensor}, BatchNorm buffers as `_mean` and `_variance`;
            tensors keep their gradient. Their dtype is the dtype of the whole computation.
        images: array or tensor [B, C, H, W].
        training: BatchNorm uses the batch's own statistics; the buffers in `params` are left alone.
    """
    params = {name: as_tensor(value) for name, value in params.items()}
    images = as_tensor(images).astype(params["conv._conv.weight"].dtype)
    x = relu(conv_bn(below(params, "conv"), images, training, stride=2))
    found, blocks = {"stem": x}, itertools.count()
    for stage in itertools.count(1):
        for position in itertools.count(1):
            p = below(params, f"s{stage}_b{position}")
            if not p:
                break
            x = bottleneck(p, x, training, stride=2 if position == 1 else 1)
            found[f"block_{next(blocks)}"] = found[f"stage_{stage}"] = x
        if position == 1:
            return found


def bottleneck(p, x, training, stride):
    """1x1, grouped 3x3, squeeze and excitation, 1x1, and a shortcut."""
    y = relu(conv_bn(below(p, "conv0"), x, training))
    y = relu(conv_bn(below(p, "conv1"), y, training, stride))
    if "se_block.squeeze.weight" in p:
        y = y * gate(below(p, "se_block"), y)
    y = conv_bn(below(p, "conv2"), y, training)
    return relu(y + (conv_bn(below(p, "short"), x, training, stride) if "short._conv.weight" in p else x))


def gate(p, x):
    """[B, C, H, W] -> [B, C, 1, 1], between 0 and 1."""
    means = x.flatten(2).mean(axis=2)  # [B, C]
    scores = linear(below(p, "excitation"), relu(linear(below(p, "squeeze"), means)))
    return (1 / (1 + (-scores).exp())).unsqueeze([2, 3])


def conv_bn(p, x, training, stride=1):
    return batch_norm(below(p, "_batch_norm"), convolution(x, p["_conv.weight"], stride), training)


def convolution(x, weight, stride):
    """x [B, G c, H, W], weight [G o, c, k, k] -> [B, G o, ceil(H / stride), ceil(W / stride)], zeros around x."""
    batch, channels, height, width = x.shape
    outputs, c, k, _ = weight.shape
    groups = channels // c
    rows, columns = -(-height // stride), -(-width // stride)
    padded = F.pad(x, [k // 2] * 4)
    total = 0
    for i, j in itertools.product(range(k), range(k)):
        seen = padded[:, :, i : i + height : stride, j : j + width : stride]
        seen = seen.reshape([batch, groups, c, rows * columns])
        tap = weight[:, :, i, j].reshape([1, groups, outputs // groups, c])
        total = total + paddle.matmul(tap, seen)  # [1, G, o, c] x [B, G, c, N] -> [B, G, o, N]
    return total.reshape([batch, outputs, rows, columns])


def relu(x):
    return x * (x > 0).astype(x.dtype)


PARTS = {  # PASSL's layer: timm's
    "conv0._conv": "conv1.conv",
    "conv0._batch_norm": "conv1.bn",
    "conv1._conv": "conv2.conv",
    "conv1._batch_norm": "conv2.bn",
    "conv2._conv": "conv3.conv",
    "conv2._batch_norm": "conv3.bn",
    "short._conv": "downsample.conv",
    "short._batch_norm": "downsample.bn",
    "se_block.squeeze": "se.fc1",
    "se_block.excitation": "se.fc2",
    "conv._conv": "stem.conv",
    "conv._batch_norm": "stem.bn",
}


def timm_name(name):
    """`s1_b2.conv0._batch_norm._mean` -> `s1.b2.conv1.bn.running_mean`."""
    layer, last = name.rsplit(".", 1)
    block, _, part = layer.partition(".") if layer.startswith("s") else ("", "", layer)
    last = {"_mean": "running_mean", "_variance": "running_var"}.get(last, last)
    return ".".join(filter(None, [block.replace("_", "."), PARTS[part], last]))


def timm_shape(shape):
    """A Linear layer of ours, [in, out], is a 1x1 convolution [out, in, 1, 1] in timm."""
    return [shape[1], shape[0], 1, 1] if len(shape) == 2 else list(shape)


def from_timm(value):
    """[out, in, 1, 1] -> [in, out]: the inverse for an array."""
    return value[:, :, 0, 0].T
