"""What happens to gradients between the backward pass and the update."""

import json
import math
from pathlib import Path

import paddle

from passl_xcit.ops.update import applies_to, norm_of
from passl_xcit.utils.dist import rank
from passl_xcit.utils.errors import CheckpointError, TrainingError
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.new_file import replace_file

logger = get_logger(TRAINER)

MOST_LISTED = 20
STATISTICS = ("_mean", "_variance")  # BatchNorm's, the only buffers that a forward pass changes


def parts(images, targets, count):
    """Split a batch of B images for gradient accumulation.

    Yields:
        (images, targets, share of the batch, whether it is the last) of at most `count` parts, none larger than
        B / count rounded up.
    """
    total = len(images)
    size = math.ceil(total / count)
    for start in range(0, total, size):
        part = slice(start, start + size)
        yield images[part], targets[part], len(images[part]) / total, start + size >= total


def global_norm(parameters):
    """The Euclidean norm of all gradients together, float32 scalar; 0 where there are none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return paddle.zeros([])
    if applies_to(gradients):
        return paddle.full([], norm_of(gradients))
    return paddle.stack([gradient.astype("float32").square().sum() for gradient in gradients]).sum().sqrt()


class NonFiniteGuard:
    """Leaves out the update where the gradient is not finite (NaN or infinite), and gives up when that goes on.

    The schedule and the data go on, and BatchNorm forgets the batch. A gradient that is not finite because the loss
    scale of float16 is too high is the scaler's business and not counted as one in a row.

    Args:
        max_skips: updates in a row that may be left out.
        then: what follows: "stop" ends the training; "go_back" takes weights, moments and averages from the newest
            checkpoint and goes on behind the batches that did it (as PaLM's training did; arXiv 2204.02311, 5.1).
        max_returns: how often a run may go back.

    Raises:
        TrainingError: when giving up; `non_finite.json` in the output folder then says what was seen.
    """

    def __init__(self, max_skips: int = 5, then: str = "stop", max_returns: int = 3):
        if max_skips < 0 or max_returns < 0:
            raise ValueError(f"max_skips {max_skips}, max_returns {max_returns}: expected 0 or more")
        if then not in ("stop", "go_back"):
            raise ValueError(f"then must be stop or go_back, not '{then}'")
        self.max_skips, self.then, self.max_returns = max_skips, then, max_returns
        self._kept = []

    def keep(self, statistics):
        """Remember what BatchNorm's running statistics, a list of tensors, are before a forward pass."""
        self._kept = [(value, value.clone()) for value in statistics]

    def accepts(self, trainer, images, loss, norm):
        """Whether the weights may be updated.

        Args:
            images: this process's batch [B, C, H, W], to look into when giving up.
            loss: this process's, float.
            norm: of the gradient of all processes, float; it alone decides, so that all decide alike.
        """
        state = trainer.state
        if math.isfinite(norm):
            state.skipped_in_row = 0
            return True
        for value, before in self._kept:
            value.set_value(before)
        state.skipped += 1
        if trainer.precision.scale_can_fall:
            logger.info(
                f"iteration {state.iter + 1}: overflow at a loss scale of {trainer.precision.scale:g}: no update"
            )
            return False
        state.skipped_in_row += 1
        logger.warning(
            f"iteration {state.iter + 1}: the gradient is not finite (loss {loss}, lr {state.lr:.3e}): no update; "
            f"{state.skipped_in_row} in a row, {state.skipped} in all"
        )
        if state.skipped_in_row > self.max_skips:
            self._give_up(trainer, images, loss, norm)
        return False

    def _give_up(self, trainer, images, loss, norm):
        path = trainer.output_dir / ("non_finite.json" if rank() == 0 else f"non_finite.rank{rank()}.json")
        try:
            write_diagnosis(path, trainer, images, loss, norm)
        except CheckpointError as error:  # a full disk keeps no run from going back
            logger.error(str(error))
        state = trainer.state
        if self.then == "go_back" and state.returns < self.max_returns and trainer.go_back():
            state.returns, state.skipped_in_row = state.returns + 1, 0
            return
        raise TrainingError(
            f"the gradient was not finite in {state.skipped_in_row} iterations in a row, the last with loss {loss} and "
            f"learning rate {state.lr:.3e}; see {path}; the checkpoints there are stay as they are; try a smaller "
            "learning rate, a longer warm-up or grad_clip"
        )


def set_aside_diagnoses(folder):
    """Give what earlier starts of a run wrote to `folder` when they gave up a name that says so."""
    for path in Path(folder).glob("non_finite*.json"):
        path.replace(path.with_name(f"earlier_{path.name}"))


def write_diagnosis(path, trainer, images, loss, norm):
    """Write what may tell why a gradient is not finite as JSON: the batch, its logits, and each bad gradient."""
    report = {
        "iteration": trainer.state.iter + 1,
        "epoch": trainer.state.epoch + 1,
        "lr": trainer.state.lr,
        "loss": str(loss),
        "gradient_norm": str(norm),
        "loss_scale": trainer.precision.scale,
        "images": trainer.batch_names(),
        "image_values": _range(images),
        "logits": _range(_logits(trainer, images)),
        "weights_not_finite": _not_finite(trainer.model.state_dict()),
        "gradients_not_finite": _not_finite(_gradients(trainer.model)),
    }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    replace_file(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def _gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@paddle.no_grad()
def _logits(trainer, images):
    """Of the model in evaluation mode."""
    trainer.model.eval()
    try:
        with trainer.precision.evaluation():
            return trainer.model(images)
    finally:
        trainer.model.train()


def _range(tensor):
    """Smallest and largest value as text, which JSON has no infinite numbers for, and how many are not finite."""
    tensor = tensor.astype("float32")
    broken = int((~paddle.isfinite(tensor)).sum().item())
    return {"min": str(tensor.min().item()), "max": str(tensor.max().item()), "not_finite": broken}


def _not_finite(tensors):
    names = [name for name, tensor in tensors.items() if not paddle.isfinite(tensor).all().item()]
    return {"count": len(names), "first": names[:MOST_LISTED]}
