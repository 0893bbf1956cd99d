"""Evaluation: a model, a validation loader, and nothing of training."""

import paddle
from tqdm import tqdm

from passl_xcit.metrics import TOPK, topk_correct
from passl_xcit.utils.dist import is_main, sum_over_processes
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)


class Evaluator:
    """Counts correct predictions; every sample counts once, on any number of processes.

    Args:
        model: images -> logits.
        loader: an ImageLoader whose sampler does not pad.
    """

    def __init__(self, model, loader):
        self.model, self.loader = model, loader

    @paddle.no_grad()
    def evaluate(self, epoch=1):
        """Print PASSL's lines for `epoch` and return {"acc1": percent, "acc5": percent}."""
        total = len(self.loader.dataset)
        logger.info(f"start evaluate on epoch {epoch} ..")
        logger.info(f"Evaluate total samples {total}")
        was_training = self.model.training
        self.model.eval()
        try:
            counts = sum_over_processes(self._count())
        finally:
            self.model.train() if was_training else self.model.eval()
        if counts[0] != total:
            raise DataError(f"{self.loader.dataset.where}: {counts[0]:.0f} of {total} samples were evaluated")
        metrics = {f"acc{k}": 100.0 * correct / total for k, correct in zip(TOPK, counts[1:])}
        logger.info(f"Validate Epoch [{epoch}] " + ", ".join(f"{k} ({v:6.3f})" for k, v in metrics.items()))
        return metrics

    def _count(self):
        """[samples seen, correct for each k] of this process."""
        seen, correct = 0, [0] * len(TOPK)
        # `disable=None` draws the bar on a terminal only.
        for images, targets in tqdm(self.loader, disable=None if is_main() else True):
            batch = topk_correct(self.model(images), targets)
            correct = [total + int(count.item()) for total, count in zip(correct, batch)]
            seen += len(targets)
        return [seen, *correct]
