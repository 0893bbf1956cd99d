"""What a config calls a model: a backbone with its head."""

import difflib
from typing import Optional, Sequence

from paddle import nn

from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import BACKBONES, HEADS, MODELS

MMPRETRAIN_STAGES = ("backbone", "neck", "pre_logits")


class Classification(nn.Layer):
    """Backbone and head; registered also as `SwinWrapper`, PASSL's name for the same thing.

    Parameters are `backbone.*` and `head.fc_cls.*`, the names in PASSL's `.pdparams` files.

    Args:
        architecture: the backbone (PASSL's SwinWrapper calls it so).
        backbone: the same under the key that PASSL's Classification uses; give one of the two.
        head: the head; its `in_channels` must equal the backbone's `num_features`.
        freeze: names of parts that are not trained, such as `backbone` (linear probing) or `backbone.patch_embed`: no
            gradients, and always in evaluation mode, so that BatchNorm keeps its statistics and nothing is dropped.

    Raises:
        ValueError: for a head that does not fit, and for a part to freeze that the model does not have.
    """

    def __init__(
        self,
        head: nn.Layer,
        architecture: Optional[nn.Layer] = None,
        backbone: Optional[nn.Layer] = None,
        freeze: Optional[Sequence[str]] = None,
    ):
        super().__init__()
        if (architecture is None) == (backbone is None):
            raise ValueError("give the backbone once: as 'architecture' or as 'backbone'")
        self.backbone = architecture if architecture is not None else backbone
        self.head = head
        if head.in_channels != self.backbone.num_features:
            raise ValueError(
                f"in_channels of the head is {head.in_channels}, "
                f"but the backbone gives {self.backbone.num_features} features"
            )
        # What the file of loaded weights says of them: the classes' names, and how images are preprocessed.
        self.class_names, self.preprocess = None, None
        self.freeze = tuple(freeze or ())
        for part in self._frozen_parts():
            freeze_(part)
        if all(parameter.stop_gradient for parameter in self.parameters()):
            raise ValueError(f"freeze {list(self.freeze)} leaves nothing to train")

    def _frozen_parts(self):
        parts = dict(self.named_sublayers())
        for name in self.freeze:
            if name not in parts:
                near = ", ".join(difflib.get_close_matches(name, parts, cutoff=0)) or "none"
                raise ValueError(f"freeze: the model has no part '{name}'; the nearest are {near}")
        return [parts[name] for name in self.freeze]

    def train(self):
        """Training mode, but for the frozen parts."""
        super().train()
        for part in self._frozen_parts():
            part.eval()

    @property
    def num_classes(self):
        return self.head.num_classes

    def forward(self, images):
        """images [B, in_chans, H, W] -> logits [B, K]"""
        return self.head(self.backbone(images))

    def extract_feat(self, images, stage="neck"):
        """Features of images [B, in_chans, H, W] before the classifier, by a stage of the backbone or of mmpretrain.

        Args:
            stage: one of `model.backbone.stages`, such as "cls_token" [B, C], "patch_tokens" [B, N, C],
                "feature_map" [B, C, H, W] or "block_0" (CrossViT gives a tuple, one for a branch); or mmpretrain's
                "backbone", a tuple of what the backbone gives, "neck", a tuple of that pooled, and "pre_logits", what
                the classifier's linear layer gets.

        Raises:
            ConfigError: for a stage that the backbone does not have; the text names all.
        """
        if stage in self.backbone.stages:
            return self.backbone.extract(images, stage)
        if stage not in MMPRETRAIN_STAGES:
            known = ", ".join((*self.backbone.stages, *MMPRETRAIN_STAGES))
            raise ConfigError(f"{type(self.backbone).__name__} has no stage '{stage}'; known: {known}")
        features = self.backbone(images)
        if stage != "backbone":
            features = self.head.pre_logits(features)
        return features if stage == "pre_logits" or isinstance(features, tuple) else (features,)

    def train_iter(self, images, targets):
        """One training forward -> {"loss", "acc1", "acc5"}; targets int [B] or soft [B, K]."""
        return self.head.loss(self(images), targets)


def freeze_(model):
    """Put `model` into evaluation mode and leave its parameters without gradients."""
    model.eval()
    for parameter in model.parameters():
        parameter.stop_gradient = True


_NODES = {"architecture": BACKBONES, "backbone": BACKBONES, "head": HEADS}
MODELS.register(Classification, nodes=_NODES)
MODELS.register(Classification, "SwinWrapper", nodes=_NODES)
