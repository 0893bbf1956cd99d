"""Telling an accuracy that guessing would reach apart from a poor one, and looking for what went wrong."""

import numpy as np
import paddle

from passl_xcit.utils.dist import sum_over_processes

MOST_CLASSES = 2048  # the confusion matrix of more would fill the memory
FEWEST_SAMPLES = 20
FEWEST_OF_A_CLASS = 5
DEVIATIONS = 3.0


def is_chance(correct, total, num_classes):
    """Whether guessing among K classes would often be right for as many of the samples.

    Up to three standard deviations, and one sample, above the mean of the binomial distribution with probability
    1 / K; False for fewer than 20 samples, which say little.
    """
    expected = total / num_classes
    deviation = (expected * (1 - 1 / num_classes)) ** 0.5
    return bool(total >= FEWEST_SAMPLES and num_classes > 1 and correct <= expected + DEVIATIONS * deviation + 1)


class Tally:
    """What an evaluation saw, as far as it can tell the causes of a chance-level accuracy apart.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes):
        shape = (num_classes, num_classes) if num_classes <= MOST_CLASSES else (1, num_classes)
        self.confusion = np.zeros(shape, "int64")  # row: the true class (one row for all if there are too many)
        self.first_images = None  # mean and standard deviation of each channel in the first batch

    def add(self, images, logits, targets):
        """images [B, c, H, W], logits [B, K], targets int [B] or soft [B, K]"""
        targets = targets.argmax(axis=-1) if targets.ndim == 2 else targets
        rows = targets.numpy() % len(self.confusion)
        np.add.at(self.confusion, (rows, logits.argmax(axis=-1).numpy()), 1)
        if self.first_images is None:
            pixels = images.numpy()
            self.first_images = pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(0, 2, 3))

    def findings(self, model, class_names=None):
        """Lines, one a check, that say what was looked at and what it showed. All processes call it together."""
        numbers = sum_over_processes(self.confusion.ravel().tolist())
        confusion = np.array(numbers).reshape(self.confusion.shape)
        labels = _labels(confusion, class_names)
        return [_weights(model), _predictions(confusion), labels, _images(*self.first_images)]


def _weights(model):
    norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    untouched = [not layer._mean.numpy().any() and (layer._variance.numpy() == 1).all() for layer in norms]
    biases = [value.numpy() for name, value in model.named_parameters() if "fc_cls." in name and name.endswith("bias")]
    if norms and all(untouched):
        return "weights: every BatchNorm still has the statistics of a new model: these weights look untrained"
    if biases and not any(bias.any() for bias in biases):
        return "weights: the head's bias is all zero, as in a new model: the head looks untrained"
    return "weights: all were loaded, are finite, and do not look untrained"


def _predictions(confusion):
    share = confusion.sum(axis=0).max() / confusion.sum()
    if share > max(0.2, 3.0 / confusion.shape[1]):
        return (
            f"predictions: {share:.0%} of the images are given one and the same class, "
            "as with wrong weights or wrong normalisation"
        )
    return f"predictions: spread over the classes (the most frequent has {share:.1%})"


def _labels(confusion, class_names):
    """Whether images of a class mostly get one label, though another one: a sign of another order of the labels."""
    sizes = confusion.sum(axis=1)
    if len(confusion) == 1 or np.median(sizes[sizes > 0]) < FEWEST_OF_A_CLASS:
        return "labels: not checked, there are too many classes or too few images of each"
    agreement = confusion.max(axis=1).sum() / sizes.sum()
    distinct = len(set(confusion[sizes > 0].argmax(axis=1).tolist())) / (sizes > 0).sum()
    if agreement > 0.3 and distinct > 0.5:
        example = int(confusion.max(axis=1).argmax())
        name = f"'{class_names[example]}'" if class_names else f"class {example}"
        return (
            f"labels: {agreement:.0%} of the images agree with the others of their class, on another label: the label "
            f"order of the data is not that of the weights ({name}, number {example} here, is called "
            f"{confusion[example].argmax()})"
        )
    return f"labels: no other order would help much (best possible agreement {agreement:.0%})"


def _images(mean, std):
    text = f"images: channels of the first batch have mean {_numbers(mean)} and deviation {_numbers(std)}"
    if np.abs(mean).max() > 1.5 or std.max() > 2.5 or std.min() < 0.3:
        return f"{text}, where normalised images have about 0 and 1: check NormalizeImage"
    return f"{text}, as normalised images have"


def _numbers(values):
    return " ".join(f"{value:.2f}" for value in values)
