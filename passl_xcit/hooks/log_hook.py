"""PASSL's training line, to the letter, with the speed behind it; and the same as a JSON line."""

import datetime
import time
from typing import Optional

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.device import peak_memory
from passl_xcit.utils.logger import TRAINER, AverageMeter, get_logger
from passl_xcit.utils.registry import HOOKS

logger = get_logger(TRAINER)


class LogHook(Hook):
    """Prints the learning rate, times, losses, accuracies, speed and memory every `interval` iterations.

    A value is printed as `current (average since the epoch began)`. The iteration counts from 0 in its epoch.
    Behind what PASSL prints stand, over the same time as the averages and over all processes, the images a second;
    and of this process the share of that time it waited for data, and its peak memory in GiB. Evaluations and
    checkpoints count in none of the times.

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
        self.samples_before = trainer.state.samples

    def train_epoch_begin(self, trainer):
        if self.reset_flag:
            for meter in self.meters.values():
                meter.clear()
            self.samples_before = trainer.state.samples
        self.last_end = _training_clock(trainer)

    def train_iter_begin(self, trainer):
        self.meters["data_time"].update(_training_clock(trainer) - self.last_end)

    def train_iter_end(self, trainer):
        for name, value in trainer.state.outputs.items():
            self.meters.setdefault(name, AverageMeter(name)).update(value)
        now = _training_clock(trainer)
        self.meters["time"].update(now - self.last_end)
        self.last_end = now
        if trainer.inner_iter % self.interval == 0:
            self._print(trainer)

    def _print(self, trainer):
        values = [meter for name, meter in self.meters.items() if name not in ("time", "data_time")]
        speed = self._speed(trainer)
        left = datetime.timedelta(seconds=int(speed["time"] * (trainer.total_iters - trainer.state.iter)))
        timing = f"eta: {left}, time: {speed['time']:.3f}, data_time: {speed['data_time']:.3f}"
        parts = [f"lr: {trainer.state.lr:.3e}", timing, *map(str, values), *_additions(speed)]
        logger.info(f"{self._place(trainer)}\t{', '.join(parts)}")
        trainer.record("train", lr=trainer.state.lr, **{meter.name: meter.value for meter in values}, **speed)

    def _speed(self, trainer):
        """What the JSON line says of the speed, in seconds and bytes."""
        time_meter, data_meter = self.meters["time"], self.meters["data_time"]
        return {
            "time": time_meter.average,
            "data_time": data_meter.average,
            "images_per_sec": (trainer.state.samples - self.samples_before) / time_meter.total,
            "data_wait": data_meter.total / time_meter.total,
            "memory": peak_memory(),
        }

    def _place(self, trainer):
        if self.by_epoch:
            epoch = trainer.state.epoch + 1
            return f"Epoch [{epoch}/{trainer.epochs}][{trainer.inner_iter}/{trainer.iters_per_epoch}]"
        return f"Iter [{trainer.state.iter}/{trainer.total_iters}]"


def _training_clock(trainer):
    """Seconds of a clock that stands still while the trainer evaluates or saves."""
    return time.perf_counter() - trainer.seconds_aside


def _additions(speed):
    """The parts of the line that PASSL's has not."""
    yield f"images/s: {speed['images_per_sec']:.1f}"
    yield f"data_wait: {speed['data_wait']:.0%}"
    if speed["memory"] is not None:
        yield f"memory: {speed['memory'] / 2**30:.1f}G"


HOOKS.register(LogHook)
