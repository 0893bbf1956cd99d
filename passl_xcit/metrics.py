"""Metrics: plain functions of logits and targets.

The first two work on tensors, while a model runs; the others on NumPy arrays, when it has run.

Letters: N samples, K classes, M bins.
"""

from typing import NamedTuple

import numpy as np

TOPK = (1, 5)
Z_95 = 1.959963984540054  # a normal variable lies within so many deviations with a probability of 95 %
CALIBRATION_BINS = 15  # as Guo et al. 2017
NO_PREDICTION = -1  # of a sample that cannot be used


def best_classes(logits, k):
    """The `k` classes of the largest logits, best first: int64 tensor [B, min(k, K)]."""
    return logits.astype("float32").topk(min(k, logits.shape[1]), axis=-1)[1]


def topk_correct(logits, targets, topk=TOPK):
    """How many samples have their class among the k best, for each k of `topk`: a list of int tensors.

    Args:
        logits: [B, K]; where K < k, all K classes count as the k best.
        targets: class indices int [B], or probabilities [B, K], whose largest counts as the class.
    """
    if targets.ndim == 2:
        targets = targets.argmax(axis=-1)
    hits = (best_classes(logits, max(topk)) == targets.unsqueeze(1)).astype("int64")
    return [hits[:, :k].sum() for k in topk]


def accuracy(logits, targets, topk=TOPK):
    """{"acc1": ..., "acc5": ...} of one batch, in percent, as scalar tensors."""
    scale = 100.0 / logits.shape[0]
    correct = topk_correct(logits, targets, topk)
    return {f"acc{k}": count.astype("float32") * scale for k, count in zip(topk, correct)}


def softmax(logits):
    """float32 [N, K] -> float64 [N, K], each row's sum is 1"""
    shifted = np.exp(logits.astype("float64") - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def negative_log_likelihood(logits, targets):
    """-log of the probability of the right class, in natural units: float64 [N]; their mean is the cross entropy.

    Args:
        logits: [N, K].
        targets: int [N].
    """
    logits = logits.astype("float64")
    largest = logits.max(axis=1)
    return np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest - logits[np.arange(len(logits)), targets]


def brier_score(probabilities, targets):
    """Sum over the classes of (p_k - [k is the right one])^2: float64 [N], each from 0 to 2 (Brier 1950, eq. 2)."""
    right = probabilities[np.arange(len(probabilities)), targets]
    return (probabilities**2).sum(axis=1) - 2 * right + 1


def wilson_interval(correct, total, z=Z_95):
    """(low, high) of a share of which `correct` out of `total` were seen; (nan, nan) where none was.

    Wilson 1927, JASA 22:209: (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n). It stays inside [0, 1] and
    is sound for few samples and for shares near 0 and 1, where p -+ z sqrt(p (1-p)/n) is not (Brown et al. 2001).

    Args:
        correct, total: numbers, or arrays of one shape.
    """
    correct, total = np.asarray(correct, "float64"), np.asarray(total, "float64")
    with np.errstate(invalid="ignore", divide="ignore"):
        share, squared = correct / total, z**2 / total
        middle = share + squared / 2
        half = z * np.sqrt(share * (1 - share) / total + squared / (4 * total))
        low, high = (middle - half) / (1 + squared), (middle + half) / (1 + squared)
    # It holds the share itself; rounding may miss that at 0 and 1.
    return np.clip(np.minimum(low, share), 0, 1), np.clip(np.maximum(high, share), 0, 1)


class Calibration(NamedTuple):
    """Samples by their confidence, the probability of the predicted class, in M bins of equal width from 0 to 1.

    Attributes:
        counts: samples in each bin, int [M].
        confidence: mean confidence in each bin, float [M]; nan in an empty one.
        accuracy: share of right predictions in each bin, float [M]; nan in an empty one.
        ece: expected calibration error, from 0 to 1.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


def calibration(confidence, correct, bins=CALIBRATION_BINS):
    """Calibration of N >= 1 samples (Guo et al. 2017, arXiv 1706.04599, section 2).

    Bin m of M holds confidences in ((m-1)/M, m/M]; ECE = sum_m |B_m|/N |accuracy(B_m) - confidence(B_m)| (eq. 3).

    Args:
        confidence: float [N], in [0, 1].
        correct: bool [N].
    """
    confidence = np.asarray(confidence, "float64")
    places = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    counts = np.bincount(places, minlength=bins)
    sums = [np.bincount(places, weights=values, minlength=bins) for values in (confidence, np.asarray(correct, float))]
    with np.errstate(invalid="ignore"):
        means = [total / counts for total in sums]
    return Calibration(counts, *means, float(np.abs(sums[1] - sums[0]).sum() / len(confidence)))


class ClassCounts(NamedTuple):
    """What became of each of K classes, int [K] each.

    Attributes:
        total: samples of the class.
        predicted: samples that were taken for it.
        correct: samples of the class that were taken for it.
    """

    total: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray

    @property
    def recall(self):
        """The share of a class's samples that are recognised, which is its accuracy; nan without samples."""
        return _ratio(self.correct, self.total)

    @property
    def precision(self):
        """The share of what is taken for a class that is of it; nan where nothing is taken for it."""
        return _ratio(self.correct, self.predicted)

    @property
    def f1(self):
        """The harmonic mean of precision and recall: 2 correct / (total + predicted); nan where both are 0."""
        return _ratio(2 * self.correct, self.total + self.predicted)


def _ratio(numerator, denominator):
    with np.errstate(invalid="ignore", divide="ignore"):
        return numerator / denominator


def class_counts(targets, predictions, num_classes):
    """ClassCounts of int [N] and int [N]; a prediction may be NO_PREDICTION."""
    made = predictions[predictions != NO_PREDICTION]
    columns = targets, made, targets[targets == predictions]
    return ClassCounts(*[np.bincount(column, minlength=num_classes) for column in columns])


def confused_pairs(targets, predictions):
    """int64 [P, 3]: (right class, predicted class, samples) of every confusion that occurs, the most frequent first.

    Pairs that are equally frequent stand in the order of their classes; NO_PREDICTION is no confusion.
    """
    wrong = (targets != predictions) & (predictions != NO_PREDICTION)
    pairs, counts = np.unique(np.stack([targets[wrong], predictions[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return np.column_stack([pairs, counts])[order].astype("int64")


def confusion_matrix(targets, predictions, num_classes, blocks=None):
    """int64 [K, K]: how many samples of each class (row) were taken for each class (column).

    Args:
        targets, predictions: int [N]; NO_PREDICTION is counted nowhere.
        blocks: sum up classes that follow one another, to a matrix of at most [blocks, blocks]; its last block may
            have fewer classes.
    """
    size = 1 if blocks is None else -(-num_classes // blocks)
    side = -(-num_classes // size)
    made = predictions != NO_PREDICTION
    places = targets[made] // size * side + predictions[made] // size
    return np.bincount(places, minlength=side * side).reshape(side, side).astype("int64")
