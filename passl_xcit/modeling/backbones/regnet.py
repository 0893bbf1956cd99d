"""RegNet X and Y, convolutional networks whose widths follow a line; RegNetY-160 is DeiT's and XCiT's teacher.

Radosavovic et al. 2020, "Designing Network Design Spaces", arXiv 2003.13678; behaviour follows timm's regnet.py, from
which DeiT builds its teacher, and parameter names are those of PASSL's `.pdparams` files. PASSL's convolutions have
biases too; the BatchNorm behind each takes them away again, so there are none here.

Shapes: B images, H W pixels or places, C channels.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_xcit.modeling.backbones.backbone import Backbone
from passl_xcit.utils.registry import BACKBONES

SE_RATIO = 0.25  # of the block's input channels, not of those it squeezes (pycls and timm, regnet.py)


class Stage(NamedTuple):
    """`depth` blocks of `width` channels, whose 3x3 convolution has `inner_width` channels in groups of `group_w`."""

    depth: int
    width: int
    inner_width: int
    group_w: int


def block_widths(w_a, w_0, w_m, d, q):
    """Channels of the `d` blocks: the line w_0 + w_a j, moved to a w_0 w_m^k (paper, eq. 2 to 4).

    Then each is rounded to a multiple of q, as in pycls (regnet.py, `generate_regnet`).
    """
    line = w_0 + w_a * np.arange(d)
    exponents = np.round(np.log(line / w_0) / math.log(w_m))
    return (np.round(w_0 * w_m**exponents / q) * q).astype(int).tolist()


def stages_of(w_a, w_0, w_m, d, group_w, bot_mul, q):
    """Blocks of equal width as a list of Stage, each width moved to the nearest one that its groups divide.

    The rule of timm (regnet.py, `adjust_widths_groups_comp`), which PASSL has too.
    """
    stages = []
    for width, blocks in itertools.groupby(block_widths(w_a, w_0, w_m, d, q)):
        group = max(1, min(group_w, int(width * bot_mul)))
        inner_width = round(int(width * bot_mul) / group) * group
        fitted = int(inner_width / bot_mul)
        if fitted < 1:
            raise ValueError(f"bot_mul {bot_mul} leaves nothing of a block of {width} channels")
        stages.append(Stage(len(list(blocks)), fitted, inner_width, group))
    return stages


def _normal(fan_out):
    """The first weights of pycls (blocks.py, `init_weights`): N(0, 2 / fan_out), where groups do not count."""
    return paddle.ParamAttr(initializer=nn.initializer.Normal(std=math.sqrt(2 / fan_out)))


class ConvBNLayer(nn.Layer):
    """A k x k convolution without bias, and BatchNorm whose weight starts at `gamma`."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, groups=1, gamma=1.0):
        super().__init__()
        weight = _normal(kernel_size**2 * out_channels)
        shape = {"stride": stride, "padding": kernel_size // 2, "groups": groups}
        self._conv = nn.Conv2D(in_channels, out_channels, kernel_size, weight_attr=weight, bias_attr=False, **shape)
        scale = paddle.ParamAttr(initializer=nn.initializer.Constant(gamma))
        self._batch_norm = nn.BatchNorm2D(out_channels, momentum=0.9, epsilon=1e-5, weight_attr=scale)

    def forward(self, x):
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]"""
        return self._batch_norm(self._conv(x))


class SELayer(nn.Layer):
    """Squeeze and excitation (arXiv 1709.01507): every channel times a gate that depends on the means of all channels.

    Its two layers are Linear, as in PASSL; the reference's 1x1 convolutions of a single place compute the same.
    """

    def __init__(self, channels, squeezed):
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed, weight_attr=_normal(squeezed))
        self.excitation = nn.Linear(squeezed, channels, weight_attr=_normal(channels))

    def forward(self, x):
        """[B, C, H, W] -> [B, C, H, W]"""
        gate = F.relu(self.squeeze(x.mean(axis=[2, 3])))
        gate = F.sigmoid(self.excitation(gate))  # [B, C]
        return x * gate.unsqueeze([2, 3])


class BottleneckBlock(nn.Layer):
    """relu(short(x) + conv2(SE(relu(conv1(relu(conv0 x)))))); a stage's first block has stride 2 and a shortcut's conv.

    The last BatchNorm starts at 0, so the block starts as its shortcut (timm, regnet.py, `zero_init_last`).
    """

    def __init__(self, in_channels, stage, first, se_on):
        super().__init__()
        inner, stride = stage.inner_width, 2 if first else 1
        self.conv0 = ConvBNLayer(in_channels, inner, 1)
        self.conv1 = ConvBNLayer(inner, inner, 3, stride, inner // stage.group_w)
        self.se_block = SELayer(inner, max(1, round(in_channels * SE_RATIO))) if se_on else nn.Identity()
        self.conv2 = ConvBNLayer(inner, stage.width, 1, gamma=0.0)
        self.short = ConvBNLayer(in_channels, stage.width, 1, stride) if first else nn.Identity()

    def forward(self, x):
        """[B, in_channels, H, W] -> [B, width, H, W], in a first block of half the sides (rounded up)."""
        y = F.relu(self.conv0(x))
        y = F.relu(self.conv1(y))
        y = self.conv2(self.se_block(y))
        return F.relu(self.short(x) + y)


class RegNet(Backbone):
    """The backbone: images [B, in_chans, H, W] of any size -> feature map [B, C, H / 32, W / 32], rounded up.

    Args:
        w_a, w_0, w_m: slope and start of the line of widths, and the ratio between widths of successive stages.
        d: number of blocks.
        group_w: channels of a group of the 3x3 convolutions.
        bot_mul: channels inside a block as a multiple of its width; 1 in all published models.
        q: widths are multiples of q before the groups are fitted in.
        se_on: squeeze and excitation in every block: RegNetY instead of RegNetX.
        stem_w: channels of the stem.
        in_chans: channels of the images.

    The published models have four stages; each further one halves the sides of the feature map once more.

    Raises:
        ValueError: for arguments out of range.
        DataError: in forward, for images with other channels.
    """

    HEAD = "ClasHead"

    def __init__(
        self,
        w_a: float,
        w_0: int,
        w_m: float,
        d: int,
        group_w: int,
        bot_mul: float,
        q: int = 8,
        se_on: bool = False,
        stem_w: int = 32,
        in_chans: int = 3,
    ):
        super().__init__()
        _check_counts(w_0=w_0, d=d, group_w=group_w, q=q, stem_w=stem_w, in_chans=in_chans)
        _check_line(w_a, w_0, w_m, bot_mul, q)
        stages = stages_of(w_a, w_0, w_m, d, group_w, bot_mul, q)
        self.in_chans, self.num_features = in_chans, stages[-1].width
        self.conv = ConvBNLayer(in_chans, stem_w, 3, stride=2)
        self._block_names = self._add_blocks(stages, stem_w, se_on)
        ends = itertools.accumulate(stage.depth for stage in stages)
        self._blocks_before = {
            "stem": 0,
            **{f"block_{number}": number + 1 for number in range(d)},
            **{f"stage_{number}": end for number, end in enumerate(ends, start=1)},
            "feature_map": d,
            "pooled": d,
        }
        self.stages = tuple(self._blocks_before)

    def _add_blocks(self, stages, channels, se_on):
        names = []
        for number, stage in enumerate(stages, start=1):
            for position in range(stage.depth):
                names.append(f"s{number}_b{position + 1}")
                self.add_sublayer(names[-1], BottleneckBlock(channels, stage, position == 0, se_on))
                channels = stage.width
        return names

    def no_weight_decay(self):
        """Names of the parameters of more than one dimension that are not to be decayed: none."""
        return set()

    def forward(self, images):
        return self._extract(images, "feature_map")

    def _extract(self, images, stage):
        """Feature map [B, C, H, W] of the stem, a block or a stage (its last block); `pooled` is its mean, [B, C]."""
        self.check_images(images)
        x = F.relu(self.conv(images))
        for name in self._block_names[: self._blocks_before[stage]]:
            x = getattr(self, name)(x)
        return x.mean(axis=[2, 3]) if stage == "pooled" else x


def _check_counts(**counts):
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _check_line(w_a, w_0, w_m, bot_mul, q):
    if not w_a >= 0:
        raise ValueError(f"w_a must not be negative, but is {w_a}")
    if not w_m > 1:
        raise ValueError(f"w_m must be above 1, not {w_m}")
    if not bot_mul > 0:
        raise ValueError(f"bot_mul must be above 0, not {bot_mul}")
    if w_0 % q:
        raise ValueError(f"w_0 {w_0} is not a multiple of q {q}")


LINES = {  # name: w_a, w_0, w_m, d, group_w, of pycls's model zoo as timm's regnet.py lists it
    "x_002": (36.44, 24, 2.49, 13, 8),
    "x_004": (24.48, 24, 2.54, 22, 16),
    "x_006": (36.97, 48, 2.24, 16, 24),
    "x_008": (35.73, 56, 2.28, 16, 16),
    "x_016": (34.01, 80, 2.25, 18, 24),
    "x_032": (26.31, 88, 2.25, 25, 48),
    "x_040": (38.65, 96, 2.43, 23, 40),
    "x_064": (60.83, 184, 2.07, 17, 56),
    "x_080": (49.56, 80, 2.88, 23, 120),
    "x_120": (73.36, 168, 2.37, 19, 112),
    "x_160": (55.59, 216, 2.1, 22, 128),
    "x_320": (69.86, 320, 2.0, 23, 168),
    "y_002": (36.44, 24, 2.49, 13, 8),
    "y_004": (27.89, 48, 2.09, 16, 8),
    "y_006": (32.54, 48, 2.32, 15, 16),
    "y_008": (38.84, 56, 2.4, 14, 16),
    "y_016": (20.71, 48, 2.65, 27, 24),
    "y_032": (42.63, 80, 2.66, 21, 24),
    "y_040": (31.41, 96, 2.24, 22, 64),
    "y_064": (33.22, 112, 2.27, 25, 72),
    "y_080": (76.82, 192, 2.19, 17, 56),
    "y_120": (73.36, 168, 2.37, 19, 112),
    "y_160": (106.23, 200, 2.48, 18, 112),
    "y_320": (115.89, 232, 2.53, 20, 232),
}

VARIANTS = {
    f"regnet{name}": {
        "w_a": w_a,
        "w_0": w_0,
        "w_m": w_m,
        "d": d,
        "group_w": group_w,
        "bot_mul": 1.0,
        "se_on": name.startswith("y"),
    }
    for name, (w_a, w_0, w_m, d, group_w) in LINES.items()
}

BACKBONES.register(RegNet)
for _name, _defaults in VARIANTS.items():
    BACKBONES.register(RegNet, _name, defaults=_defaults)
