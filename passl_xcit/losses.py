"""Losses: plain functions of logits and targets."""

import paddle.nn.functional as F


def cross_entropy(logits, targets):
    """Mean cross entropy in float32 -> scalar.

    Args:
        logits: [B, K].
        targets: class indices int [B], or probabilities float [B, K] (Mixup, CutMix, label smoothing).
    """
    log_probabilities = _log_probabilities(logits)
    if targets.ndim == 1:
        return F.nll_loss(log_probabilities, targets)
    return -(targets * log_probabilities).sum(axis=-1).mean()


def mutual_kl(logits, teacher_logits):
    """The symmetric Kullback-Leibler divergence 1/2 [KL(s || t) + KL(t || s)], mean over the batch -> scalar.

    PASSL's loss of deep mutual learning (DistillationWrapper.py; Zhang et al. 2018, arXiv 1706.00384), written as
    1/2 sum (s - t) (log s - log t). PASSL adds 1e-12 to the probabilities, which no digit of its result shows.

    Args:
        logits, teacher_logits: [B, K].
    """
    student, teacher = _log_probabilities(logits), _log_probabilities(teacher_logits)
    return 0.5 * ((student.exp() - teacher.exp()) * (student - teacher)).sum(axis=-1).mean()


def hard_distillation(logits, teacher_logits):
    """Cross entropy with the teacher's decision as the class -> scalar (DeiT, arXiv 2012.12877, eq. 3)."""
    return cross_entropy(logits, teacher_logits.argmax(axis=-1))


def soft_distillation(logits, teacher_logits, tau=1.0):
    """KL(t || s) of the distributions at temperature `tau`, times tau^2 -> scalar.

    The mean is over batch and classes, as in DeiT's code (losses.py), not in its equation 2: 1/K of the usual one.
    """
    scale = 1.0 / tau  # Ascend has no kernel for a quotient by a number
    student, teacher = _log_probabilities(logits * scale), _log_probabilities(teacher_logits * scale)
    return (teacher.exp() * (teacher - student)).mean() * tau**2


def _log_probabilities(logits):
    return F.log_softmax(logits.astype("float32"), axis=-1)
