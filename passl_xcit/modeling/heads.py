"""Classification heads, with PASSL's names: one linear layer called `fc_cls`.

Shapes: B images, K classes, C features, r branches.
"""

from typing import Sequence, Union

import paddle
from paddle import nn

from passl_xcit.losses import cross_entropy
from passl_xcit.metrics import accuracy
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import HEADS

MOST_CLASSES = 10_000_000


class SwinTransformerClsHead(nn.Layer):
    """Features -> logits, and their loss and accuracy.

    Args:
        in_channels: C, the backbone's `num_features`; a list for a backbone with several branches.
        num_classes: K.
        with_avg_pool: average feature maps [B, C, H, W] over H and W first.
    """

    def __init__(
        self,
        in_channels: Union[int, Sequence[int]],
        num_classes: int = 1000,
        with_avg_pool: bool = False,
    ):
        super().__init__()
        if not 1 <= num_classes <= MOST_CLASSES:
            raise ValueError(f"num_classes must lie between 1 and {MOST_CLASSES:,}, not {num_classes}")
        if min([in_channels] if isinstance(in_channels, int) else in_channels, default=0) < 1:
            raise ValueError(f"in_channels must be at least 1, not {in_channels}")
        self.num_classes, self.with_avg_pool = num_classes, with_avg_pool
        self.in_channels = in_channels if isinstance(in_channels, int) else tuple(in_channels)
        self.fc_cls = self._build_classifier()

    def _build_classifier(self):
        if isinstance(self.in_channels, int):
            return self._linear(self.in_channels)
        return nn.LayerList([self._linear(channels) for channels in self.in_channels])

    def _linear(self, channels):
        weight = paddle.ParamAttr(initializer=nn.initializer.Normal(std=0.01))
        return nn.Linear(channels, self.num_classes, weight_attr=weight)

    def forward(self, features):
        """features [B, C] (or [B, C, H, W] with `with_avg_pool`, or a tuple, one for a branch) -> logits [B, K]"""
        features = self.pre_logits(features)
        if isinstance(self.in_channels, int):
            return self.fc_cls(features)
        logits = [linear(branch) for linear, branch in zip(self.fc_cls, features)]
        return paddle.stack(logits).mean(axis=0)  # [r, B, K] -> [B, K]

    def pre_logits(self, features):
        """What the linear layer gets: [B, C], or a tuple of it, one for a branch."""
        if isinstance(self.in_channels, int):
            return self._pool(features)
        return tuple(self._pool(branch) for branch in features)

    def _pool(self, features):
        if not self.with_avg_pool:
            return features
        if features.ndim != 4:
            raise ConfigError(f"with_avg_pool must be false: the backbone gives {features.ndim}-D features, no maps")
        return features.mean(axis=[2, 3])

    def loss(self, logits, targets):
        """logits [B, K]; targets int [B] or soft [B, K] -> {"loss", "acc1", "acc5"}, accuracies in percent."""
        return {"loss": cross_entropy(logits, targets), **accuracy(logits.detach(), targets)}


class ClasHead(SwinTransformerClsHead):
    """The head of convolutional backbones: averages the feature map unless told not to."""

    def __init__(self, in_channels: int, num_classes: int = 1000, with_avg_pool: bool = True):
        super().__init__(in_channels, num_classes, with_avg_pool)


HEADS.register(SwinTransformerClsHead)
HEADS.register(ClasHead)
