"""How well features tell classes apart without any training: a vote of the nearest training images.

The protocol of DINO (Caron et al. 2021, arXiv 2104.14294; its eval_knn.py) after Wu et al. 2018 (arXiv 1805.01978,
section 3.4): of the k training images whose features are most similar, by the cosine s, each votes for its class with
the weight exp(s / 0.07). Both splits are read as an evaluation reads them.

Training features pass by in blocks and are not kept: the memory depends on the number of images that are classified,
not on that of the training images (docs/features.md has measurements). Of several processes each looks at its share of
the training images.

Letters: Q images to classify (queries), N training images of a block, C channels, K classes, k neighbours.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
from tqdm import tqdm

from passl_xcit.engine.cost import CostWatch
from passl_xcit.engine.features import STAGE, pooled_features
from passl_xcit.metrics import TOPK, topk_correct
from passl_xcit.ops.frozen import Frozen
from passl_xcit.utils.device import lack_of_memory_told
from passl_xcit.utils.dist import gathered, is_main, rank, world_size
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.logger import TRAINER, get_logger

TEMPERATURE = 0.07
NEIGHBOURS = (10, 20, 100, 200)
QUERIES, BLOCK = 1024, 4096  # similarities that are in memory at a time
NOBODY = -1  # the label of a row without an image

logger = get_logger(TRAINER)


class NearestNeighbours:
    """Finds of each query the k most similar training features, while these pass by.

    Args:
        queries: float32 tensor [Q, C], rows of length 1.
        k: how many.
    """

    def __init__(self, queries, k):
        self.k = k
        self.queries = queries.split(_sections(len(queries), QUERIES))
        self.found = [_none_yet(len(part), k) for part in self.queries]

    def add(self, features, labels):
        """features float32 [N, C], rows of length 1; labels int64 [N]"""
        for place, queries in enumerate(self.queries):
            similarities = paddle.matmul(queries, features, transpose_y=True)  # [q, N]
            best, columns = similarities.topk(min(self.k, len(labels)), axis=1)
            new = best, labels[columns.flatten()].reshape(columns.shape)
            self.found[place] = _best_of([self.found[place], new], self.k)

    def result(self):
        """(similarities float32 [Q, k], the nearest first; labels int64 [Q, k]) over all processes, as arrays.

        A query that has fewer than k neighbours has others of similarity -inf.
        """
        parts = [_best_of(zip(gathered(best), gathered(labels)), self.k) for best, labels in self.found]
        return tuple(np.concatenate([part.numpy() for part in column]) for column in zip(*parts))


def _sections(length, most):
    return [most] * (length // most) + ([length % most] if length % most else [])


def _none_yet(queries, k):
    return paddle.full([queries, k], -np.inf, "float32"), paddle.zeros([queries, k], "int64")


def _best_of(parts, k):
    """The k best of several (similarities [q, n], labels [q, n])."""
    similarities, labels = (paddle.concat(column, axis=1) for column in zip(*parts))
    best, columns = similarities.topk(k, axis=1)
    return best, paddle.take_along_axis(labels, columns, axis=1)


def votes(similarities, labels, num_classes):
    """What the neighbours of each query say: float64 [Q, K].

    Args:
        similarities: float32 [Q, k], cosines.
        labels: int64 [Q, k], classes of the neighbours.
    """
    rows = np.arange(len(labels))[:, None] * num_classes
    weights = np.exp(similarities.astype("float64") / TEMPERATURE)
    counts = np.bincount((rows + labels).ravel(), weights.ravel(), minlength=len(labels) * num_classes)
    return counts.reshape(len(labels), num_classes)


@lack_of_memory_told()
def evaluate_knn(model, train_loader, val_loader, stage=STAGE):
    """Print and return {k: {"acc1": percent, "acc5": percent}} for k of NEIGHBOURS, or for as many as there are.

    Args:
        model: a Classification.
        train_loader, val_loader: ImageLoaders that draw nothing and do not pad.
        stage: whose features are compared; see `pooled_features`.

    Raises:
        DataError: a split has no image that can be used.
        ConfigError: for a stage that the model does not have.
    """
    model.eval()
    with Frozen(model):
        return _evaluate(model, train_loader, val_loader, stage)


def _evaluate(model, train_loader, val_loader, stage):
    queries, targets = _all_queries(model, val_loader, stage)
    most = len(train_loader.dataset)
    neighbours = [k for k in NEIGHBOURS if k <= most] or [most]
    logger.info(f"kNN: {len(val_loader.dataset)} images among {most} of {train_loader.dataset.where}, stage {stage}")
    nearest = NearestNeighbours(queries, neighbours[-1])
    for features, labels in _blocks(_features(model, train_loader, stage, "training images")):
        nearest.add(features, labels)
    similarities, labels = nearest.result()
    if np.isneginf(similarities).all():
        raise _no_image(train_loader)
    total = len(val_loader.dataset)
    return {k: _accuracy(k, similarities[:, :k], labels[:, :k], targets, model.num_classes, total) for k in neighbours}


def _accuracy(k, similarities, labels, targets, num_classes, total):
    correct = [0] * len(TOPK)
    for start in range(0, len(labels), QUERIES):  # K votes of each query are many
        rows = slice(start, start + QUERIES)
        scores = paddle.to_tensor(votes(similarities[rows], labels[rows], num_classes))
        found = topk_correct(scores, targets[rows])
        correct = [so_far + int(count) for so_far, count in zip(correct, found)]
    metrics = {f"acc{top}": 100.0 * count / total for top, count in zip(TOPK, correct)}
    logger.info(f"kNN k={k} " + ", ".join(f"{name} ({value:6.3f})" for name, value in metrics.items()))
    return metrics


def _all_queries(model, loader, stage):
    """(features float32 [Q, C], labels int64 [Q]) of all processes; a share without enough images ends in NOBODY."""
    parts = list(_features(model, loader, stage, "images to classify"))
    if not parts:
        raise _no_image(loader)
    rows = -(-len(loader.dataset) // world_size())
    features, labels = (paddle.concat(column) for column in zip(*parts))
    missing = rows - len(labels)
    features = paddle.concat([features, paddle.zeros([missing, features.shape[1]])])
    labels = paddle.concat([labels, paddle.full([missing], NOBODY, "int64")])
    return paddle.concat(gathered(features)), paddle.concat(gathered(labels))


def _features(model, loader, stage, what):
    """Yield (features float32 [B, C], rows of length 1; labels int64 [B]) of this process' share."""
    cost = CostWatch(model)
    for images, labels in tqdm(loader, desc=what, disable=None if is_main() else True):
        with cost.watched(images.shape, len(loader)):
            features = pooled_features(model, images, stage)
        yield F.normalize(features, axis=1), labels


def _blocks(batches):
    """The same in larger blocks: of each the best are chosen, which takes less time for a few large ones."""
    waiting, count = [], 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch[1])
        if count >= BLOCK:
            yield tuple(map(paddle.concat, zip(*waiting)))
            waiting, count = [], 0
    if waiting:
        yield tuple(map(paddle.concat, zip(*waiting)))


def _no_image(loader):
    return DataError(f"{loader.dataset.where}: none of its images that process {rank()} has can be used")
