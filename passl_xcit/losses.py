"""Losses: plain functions of logits and targets."""

import paddle.nn.functional as F


def cross_entropy(logits, targets):
    """Mean cross entropy in float32 -> scalar.

    Args:
        logits: [B, K].
        targets: class indices int [B], or probabilities float [B, K] (Mixup, CutMix, label smoothing).
    """
    log_probabilities = F.log_softmax(logits.astype("float32"), axis=-1)
    if targets.ndim == 1:
        return F.nll_loss(log_probabilities, targets)
    return -(targets * log_probabilities).sum(axis=-1).mean()
