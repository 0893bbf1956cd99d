"""Evaluation: a model, a validation loader, and nothing of training."""

import paddle
from tqdm import tqdm

from passl_xcit.engine.chance import Tally, is_chance
from passl_xcit.engine.cost import CostWatch
from passl_xcit.metrics import TOPK, topk_correct
from passl_xcit.ops.frozen import Frozen
from passl_xcit.utils.device import lack_of_memory_told
from passl_xcit.utils.dist import is_main, sum_over_processes
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)


class EvaluationStopped(Exception):
    """An evaluation that was interrupted before its end."""


class Evaluator:
    """Counts correct predictions; every sample counts once, on any number of processes.

    Args:
        model: images -> logits.
        loader: an ImageLoader whose sampler does not pad.
        explain_chance: warn of an accuracy that guessing would reach, with what speaks for which cause.
        recorder: a Recorder, which is shown all that is evaluated.
    """

    def __init__(self, model, loader, explain_chance=False, recorder=None):
        self.model, self.loader, self.recorder = model, loader, recorder
        self.tally = Tally(model.num_classes) if explain_chance else None
        self.cost = CostWatch(model)

    @lack_of_memory_told()
    @paddle.no_grad()
    def evaluate(self, epoch=1, label="", interrupted=None):
        """Print PASSL's lines for `epoch` and return {"acc1": percent, "acc5": percent}.

        Where the data set has `on_bad_image: count_as_wrong`, the percentages are still those of all samples, and
        "bad_images" says how many count as wrong because they cannot be used.

        Args:
            label: what the lines call the model, such as "EMA ".
            interrupted: asked before every batch that all processes have, so that they may answer together;
                EvaluationStopped is raised when it returns True.
        """
        dataset = self.loader.dataset
        total = len(dataset)
        logger.info(f"start evaluate {label}on epoch {epoch} ..")
        logger.info(f"Evaluate total samples {total}")
        was_training = self.model.training
        self.model.eval()
        try:
            with Frozen(self.model):
                counts = sum_over_processes(self._count(interrupted))
        finally:
            self.model.train() if was_training else self.model.eval()
        bad = int(counts.pop())
        if counts[0] != total:
            raise DataError(f"{dataset.where}: {counts[0]:.0f} of {total} samples were evaluated")
        if bad == total:
            raise DataError(f"{dataset.where}: none of its {total} images can be used")
        metrics = {f"acc{k}": 100.0 * correct / total for k, correct in zip(TOPK, counts[1:])}
        logger.info(f"Validate {label}Epoch [{epoch}] " + ", ".join(f"{k} ({v:6.3f})" for k, v in metrics.items()))
        if dataset.on_bad_image == "count_as_wrong":
            metrics["bad_images"] = bad
            self._tell_bad_images(bad)
        if self.tally and is_chance(counts[1], total, self.model.num_classes):
            self._warn_of_chance(metrics["acc1"])
        return metrics

    def _tell_bad_images(self, bad):
        """Say how many images count as wrong, and name one if this process has met one."""
        if bad:
            named = "".join(f", such as {text}" for text in list(self.loader.bad_images.values())[:1])
            logger.warning(f"{bad} unreadable images counted as wrong{named}")

    def _warn_of_chance(self, acc1):
        classes = self.model.num_classes
        logger.warning(
            f"acc1 {acc1:.3f} is what guessing among {classes} classes gives; the usual causes are wrong weights, "
            "another label order, or another normalisation. What was checked:"
        )
        for line in self.tally.findings(self.model, self.loader.dataset.class_names):
            logger.warning(line)

    def _count(self, interrupted):
        """[samples counted, correct for each k, bad images among the samples] of this process."""
        seen, correct = 0, paddle.zeros([len(TOPK)], dtype="int64")
        self.loader.bad_images.clear()
        questions = self._questions(interrupted)
        # `disable=None` draws the bar on a terminal only.
        for images, targets in tqdm(self.loader, disable=None if is_main() else True):
            next(questions, None)
            with self.cost.watched(images.shape, len(self.loader)):
                logits = self.model(images).astype("float32")
            batch = topk_correct(logits, targets)
            if self.tally:
                self.tally.add(images, logits, targets)
            if self.recorder:
                self.recorder.add(logits, targets)
            correct += paddle.stack(batch)  # read at the end: a device need not wait for the host after each batch
            seen += len(targets)
        for _ in questions:  # of batches in which no image can be used
            pass
        bad = len(self.loader.bad_images)
        return [seen + bad, *correct.tolist(), bad]

    def _questions(self, interrupted):
        """Ask with every step of this generator, equally often in all processes."""
        for _ in range(self.loader.batch_sampler.common_batches() if interrupted else 0):
            if interrupted():
                raise EvaluationStopped
            yield
