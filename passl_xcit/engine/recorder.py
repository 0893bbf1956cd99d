"""What a model said of each sample of an evaluation, kept without the logits: 50,000 x 1,000 would be 200 MB.

Letters: N samples of the data set, B of a batch, K classes, k the most probable of them that are kept.
"""

from typing import NamedTuple

import numpy as np

from passl_xcit.metrics import NO_PREDICTION, best_classes, brier_score, negative_log_likelihood, softmax
from passl_xcit.utils.dist import sum_over_processes
from passl_xcit.utils.errors import CheckpointError, DataError

KEPT = 5


class Records(NamedTuple):
    """Of all samples of a data set, in its order.

    Attributes:
        targets: the right classes, int64 [N].
        best: the k most probable classes, best first, int64 [N, k]; NO_PREDICTION for an image that cannot be used.
        probabilities: theirs, float32 [N, k].
        nll: negative log-likelihood of the right class, float32 [N].
        brier: Brier score, float32 [N].
        usable: bool [N]; where it is False the numbers above are 0.
    """

    targets: np.ndarray
    best: np.ndarray
    probabilities: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    usable: np.ndarray

    @property
    def predictions(self):
        return self.best[:, 0]

    @property
    def confidence(self):
        return self.probabilities[:, 0]

    @property
    def margin(self):
        """By how much the prediction is more probable than the next class: float32 [N]."""
        return self.confidence - self.probabilities[:, 1:2].sum(axis=1)

    def within(self, k):
        """Whether the right class is among the `k` most probable: bool [N]."""
        return (self.best[:, :k] == self.targets[:, None]).any(axis=1)


class Recorder:
    """Sees an evaluation batch by batch, as the Evaluator runs it.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes):
        self.kept = min(KEPT, num_classes)
        self._batches = []

    def add(self, logits, targets):
        """logits [B, K] and targets int [B], tensors"""
        best = best_classes(logits, self.kept).numpy()  # the classes that the accuracy is counted by, ties included
        logits, targets = logits.numpy(), targets.numpy()
        with np.errstate(invalid="ignore"):  # of logits that are not finite, which `gather` refuses
            probabilities = softmax(logits)
            columns = [best, np.take_along_axis(probabilities, best, axis=1)]
            columns += [negative_log_likelihood(logits, targets), brier_score(probabilities, targets)]
        self._batches.append(np.column_stack(columns).astype("float32"))

    def gather(self, loader):
        """The Records of the whole data set of `loader`, which has been run through; all processes call it together.

        Raises:
            CheckpointError: the model's outputs are no finite numbers.
            DataError: a sample was seen more than once, or none was.
        """
        dataset, kept = loader.dataset, self.kept
        own = [index for index in loader.batch_sampler.indices().tolist() if index not in loader.bad_images]
        table = np.zeros([len(dataset), 1 + 2 * kept + 2])  # how often it was seen, then the columns of `add`
        if self._batches:
            table[own, 1:] = np.concatenate(self._batches)
        np.add.at(table[:, 0], own, 1)
        table = np.array(sum_over_processes(table.ravel().tolist())).reshape(table.shape)
        _check(table, dataset)
        usable = table[:, 0] == 1
        best = np.where(usable[:, None], table[:, 1 : 1 + kept], NO_PREDICTION).astype("int64")
        numbers = table[:, 1 + kept :].astype("float32")
        columns = numbers[:, :kept], numbers[:, kept], numbers[:, kept + 1]
        return Records(np.asarray(dataset.labels, "int64"), best, *columns, usable)


def _check(table, dataset):
    if table[:, 0].max() > 1:
        index = int(table[:, 0].argmax())
        raise DataError(f"{dataset.describe(index)}: was evaluated {table[index, 0]:.0f} times")
    broken = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(broken):
        raise CheckpointError(
            f"the model's outputs are no finite numbers for {len(broken)} of {len(table)} images, the first is "
            f"{dataset.describe(int(broken[0]))}: the weights are damaged, or the images are not what they expect"
        )
