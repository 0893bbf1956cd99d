"""PASSL's training line, to the letter, and the same as a JSON line."""

import datetime
import time
from typing import Optional

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.logger import TRAINER, AverageMeter, get_logger
from passl_xcit.utils.registry import HOOKS

logger = get_logger(TRAINER)


class LogHook(Hook):
    """Prints the learning rate, times, losses and accuracies every `interval` iterations.

    A value is printed as `current (average since the epoch began)`. The iteration counts from 0 in its epoch.

    Args:
        interval: iterations between two lines.
        by_epoch: `Epoch [1/400][10/1251]`; False prints `Iter [11/500400]`.
        ignore_last: PASSL's key, which nothing there reads; accepted so that its files run.
        reset_flag: start the averages anew in every epoch.
    """

    priority = 60

    def __init__(
        self,
        interval: int = 10,
        by_epoch: bool = True,
        ignore_last: bool = True,
        reset_flag: bool = True,
        priority: Optional[int] = None,
    ):
        super().__init__(priority)
        if interval < 1:
            raise ValueError(f"interval must be at least 1, not {interval}")
        self.interval, self.by_epoch, self.reset_flag = interval, by_epoch, reset_flag
        self.meters = {}

    def run_begin(self, trainer):
        self.meters = {"time": AverageMeter("time"), "data_time": AverageMeter("data_time")}

    def train_epoch_begin(self, trainer):
        if self.reset_flag:
            for meter in self.meters.values():
                meter.clear()
        self.last_end = time.perf_counter()

    def train_iter_begin(self, trainer):
        self.meters["data_time"].update(time.perf_counter() - self.last_end)

    def train_iter_end(self, trainer):
        for name, value in trainer.state.outputs.items():
            self.meters.setdefault(name, AverageMeter(name)).update(value)
        now = time.perf_counter()
        self.meters["time"].update(now - self.last_end)
        self.last_end = now
        if trainer.inner_iter % self.interval == 0:
            self._print(trainer)

    def _print(self, trainer):
        seconds = self.meters["time"].average
        left = datetime.timedelta(seconds=int(seconds * (trainer.total_iters - trainer.state.iter)))
        values = [meter for name, meter in self.meters.items() if name not in ("time", "data_time")]
        timing = f"eta: {left}, time: {seconds:.3f}, data_time: {self.meters['data_time'].average:.3f}"
        parts = [f"lr: {trainer.state.lr:.3e}", timing, *map(str, values)]
        logger.info(f"{self._place(trainer)}\t{', '.join(parts)}")
        if "loss" in self.meters:
            trainer.require_finite(self.meters["loss"].value)
        trainer.record("train", lr=trainer.state.lr, time=seconds, **{meter.name: meter.value for meter in values})

    def _place(self, trainer):
        if self.by_epoch:
            epoch = trainer.state.epoch + 1
            return f"Epoch [{epoch}/{trainer.epochs}][{trainer.inner_iter}/{trainer.iters_per_epoch}]"
        return f"Iter [{trainer.state.iter}/{trainer.total_iters}]"


HOOKS.register(LogHook)
