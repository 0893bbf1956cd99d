"""Transforms of a whole batch, in the collate step: what makes hard labels soft.

A batch transform is called as `transform(images, targets, rng)` with images [B, C, H, W] and class indices [B],
and returns new images (float32, same shape) and soft targets [B, K] (float32). `rng` is a
numpy.random.Generator which gives every random number. Its arguments are never written to.
"""

import math
from typing import Optional, Sequence

import numpy as np

from passl_xcit.datasets.transforms import require, require_probability, require_range
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.registry import BATCH_TRANSFORMS


def mix(images, partners, lam, box):
    """lam * images + (1 - lam) * partners, or, with a box, images with the partners' pixels inside it.

    Args:
        images, partners: [..., H, W] float32.
        lam: the images' share; 1 gives `images` themselves.
        box: None, or (top, bottom, left, right) in pixels, ends excluded.
    """
    if lam == 1:
        return images
    if box is None:
        mixed = images * lam
        mixed += partners * (1 - lam)
        return mixed
    top, bottom, left, right = box
    mixed = images.copy()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed


class Mixup:
    """Mixup (arXiv:1710.09412, eq. 1) and CutMix (arXiv:1905.04899, eq. 1 and 2) with label smoothing.

    Sample i is mixed with sample B - 1 - i, its partner, by the rules of timm/data/mixup.py (1.0.31; older ones, and
    PASSL, make CutMix boxes of odd sides one pixel smaller).

    Args:
        mixup_alpha: lam ~ Beta(alpha, alpha) for Mixup; 0 switches Mixup off.
        cutmix_alpha: the same for CutMix.
        cutmix_minmax: [min, max] of the CutMix box's sides, as fractions of the image's; switches CutMix on and
            replaces `cutmix_alpha`.
        prob: probability that a batch ('elem': a sample, 'pair': a pair) is mixed. 0 leaves label smoothing alone.
        switch_prob: probability of CutMix where both are on.
        mode: 'batch': one lam and box for all; 'elem': one for each sample; 'pair': one for each two partners.
        correct_lam: use the box's share of pixels for lam, since the image's border may cut the box.
        label_smoothing: s; the class of a sample gets 1 - s + s / K, every other one s / K.
        num_classes: K; the model's number of classes by default.
        model_classes: K of the model, from the builder.

    Raises:
        DataError: when called, if a target is not below K.
    """

    MODES = ("batch", "elem", "pair")

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Optional[Sequence[float]] = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: Optional[int] = None,
        model_classes: Optional[int] = None,
    ):
        require(mode in self.MODES, "mode", mode, f"one of {', '.join(self.MODES)}")
        require(0 <= mixup_alpha < math.inf, "mixup_alpha", mixup_alpha, "0 or more")
        require(0 <= cutmix_alpha < math.inf, "cutmix_alpha", cutmix_alpha, "0 or more")
        require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "0 <= label_smoothing < 1")
        if cutmix_minmax is not None:
            require_range("cutmix_minmax", cutmix_minmax, most=1)
        require_probability("prob", prob)
        require_probability("switch_prob", switch_prob)
        cutmix = cutmix_alpha > 0 or cutmix_minmax is not None
        if prob > 0 and mixup_alpha == 0 and not cutmix:
            raise ValueError(
                "mixup_alpha and cutmix_alpha are both 0, so nothing can be mixed: "
                "set one of them above 0, or prob: 0 for label smoothing alone"
            )
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_minmax = mixup_alpha, cutmix_alpha, cutmix_minmax
        self.prob, self.cutmix_prob = prob, switch_prob if cutmix and mixup_alpha > 0 else float(cutmix)
        self.mode, self.correct_lam, self.label_smoothing = mode, correct_lam, label_smoothing
        self.num_classes = _number_of_classes(num_classes, model_classes)

    def __call__(self, images, targets, rng):
        images = np.asarray(images, np.float32)
        # The middle sample of an odd batch is its own partner, which changes neither it nor its label, so that
        # a last, odd batch needs no rule of its own.
        partners = images[::-1]
        rules = self._draw_rules(images.shape, rng)
        if self.mode == "batch":
            images = mix(images, partners, *rules[0])
        else:
            images = np.stack([mix(image, partner, *rule) for image, partner, rule in zip(images, partners, rules)])
        lam = np.array([lam for lam, _ in rules], np.float32).reshape(-1, 1)  # [1, 1] or [B, 1]
        labels = self._smooth_labels(targets)
        return images, labels * lam + labels[::-1] * (1 - lam)

    def _draw_rules(self, shape, rng):
        """A list of (lam, box): one for the batch, or one for each sample."""
        batch, _, height, width = shape
        draws = {"batch": 1, "elem": batch, "pair": (batch + 1) // 2}[self.mode]
        rules = [self._draw_rule(height, width, rng) for _ in range(draws)]
        return rules + rules[: batch // 2][::-1] if self.mode == "pair" else rules

    def _draw_rule(self, height, width, rng):
        if self.prob == 0 or rng.random() >= self.prob:
            return 1.0, None
        if rng.random() >= self.cutmix_prob:
            return rng.beta(self.mixup_alpha, self.mixup_alpha), None
        return self._draw_cutmix(height, width, rng)

    def _draw_cutmix(self, height, width, rng):
        if self.cutmix_minmax is not None:
            box = self._draw_minmax_box(height, width, rng)
            return _share_outside(box, height, width), box
        lam = rng.beta(self.cutmix_alpha, self.cutmix_alpha)
        box = _draw_box(height, width, lam, rng)
        return _share_outside(box, height, width) if self.correct_lam else lam, box

    def _draw_minmax_box(self, height, width, rng):
        box_height, box_width = self._draw_side(height, rng), self._draw_side(width, rng)
        top = int(rng.integers(0, height - box_height + 1))
        left = int(rng.integers(0, width - box_width + 1))
        return top, top + box_height, left, left + box_width

    def _draw_side(self, length, rng):
        low, high = (int(length * fraction) for fraction in self.cutmix_minmax)
        # timm leaves `high` out; between the bounds of a small image there may be no whole number but `low`.
        return int(rng.integers(low, max(high, low + 1)))

    def _smooth_labels(self, targets):
        targets, classes = np.asarray(targets), self.num_classes
        wrong = targets[(targets < 0) | (targets >= classes)]
        if wrong.size:
            raise DataError(f"target {wrong[0]} is none of the model's {classes} classes (0 to {classes - 1})")
        off = self.label_smoothing / classes
        labels = np.full((len(targets), classes), off, np.float32)
        labels[np.arange(len(targets)), targets] = 1 - self.label_smoothing + off
        return labels


def _draw_box(height, width, lam, rng):
    """CutMix's box: sides of sqrt(1 - lam) of the image's, centre anywhere in the image, cut at the border."""
    box_height, box_width = int(height * math.sqrt(1 - lam)), int(width * math.sqrt(1 - lam))
    y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
    top, bottom = max(y - box_height // 2, 0), min(y + (box_height + 1) // 2, height)
    left, right = max(x - box_width // 2, 0), min(x + (box_width + 1) // 2, width)
    return top, bottom, left, right


def _share_outside(box, height, width):
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def _number_of_classes(num_classes, model_classes):
    if num_classes is None and model_classes is None:
        raise ValueError("num_classes is not given, and there is no model to take it from")
    if None not in (num_classes, model_classes) and num_classes != model_classes:
        raise ValueError(f"num_classes is {num_classes}, but the model has {model_classes} classes: leave it out")
    number = num_classes if num_classes is not None else model_classes
    require(number > 0, "num_classes", number, "an int above 0")
    return number


BATCH_TRANSFORMS.register(Mixup, runtime=("model_classes",))
