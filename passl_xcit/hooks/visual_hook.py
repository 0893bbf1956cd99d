"""Curves for VisualDL: `visualdl --logdir <output_dir>/visual_dl` shows them."""

from typing import Optional

from visualdl import LogWriter

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.dist import is_main
from passl_xcit.utils.registry import HOOKS


class VisualHook(Hook):
    """Writes losses, accuracies and the learning rate while training, and a histogram of each parameter an epoch.

    Args:
        interval: iterations between two points of a curve.
        histograms: whether to write the histograms.
    """

    priority = 90

    def __init__(self, interval: int = 10, histograms: bool = True, priority: Optional[int] = None):
        super().__init__(priority)
        if interval < 1:
            raise ValueError(f"interval must be at least 1, not {interval}")
        self.interval, self.histograms = interval, histograms
        self.writer = self.drawn = None

    def run_begin(self, trainer):
        if is_main():
            self.writer = LogWriter(str(trainer.output_dir / "visual_dl"))

    def train_iter_end(self, trainer):
        if self.writer and trainer.inner_iter % self.interval == 0:
            values = {name: value.item() for name, value in trainer.state.outputs.items()}
            self._add("train", trainer.state.iter, lr=trainer.state.lr, **values)

    def train_epoch_end(self, trainer):
        if not self.writer:
            return
        if trainer.state.metrics is not self.drawn:  # an evaluation makes a new dict
            self.drawn = trainer.state.metrics
            self._add("val", trainer.state.epoch, **self.drawn)
        for name, parameter in trainer.model.named_parameters() if self.histograms else ():
            self.writer.add_histogram(name, parameter.numpy().ravel(), trainer.state.epoch)

    def run_end(self, trainer):
        if self.writer:
            self.writer.close()

    def _add(self, mode, step, **values):
        for name, value in values.items():
            self.writer.add_scalar(f"{mode}/{name}", value, step)


HOOKS.register(VisualHook)
