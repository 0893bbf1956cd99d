"""Curves for VisualDL: `visualdl --logdir <output_dir>/visual_dl` shows them."""

import contextlib
import io
import itertools
import os
import time
from typing import Optional

import numpy as np
from google.protobuf.message import DecodeError
from visualdl import LogWriter
from visualdl.proto.record_pb2 import Record

from passl_xcit.hooks.hook import Hook
from passl_xcit.utils.dist import is_main
from passl_xcit.utils.registry import HOOKS


class VisualHook(Hook):
    """Writes losses, accuracies and the learning rate while training, and a histogram of each parameter an epoch.

    A resumed run goes on with the curves: what they have beyond its checkpoint is cut off first. Wherever the hook
    stands among the others, an evaluation is drawn at its own epoch.

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
        self.writer, self.drawn = None, {}

    def run_begin(self, trainer):
        if is_main():
            self.writer = _open_writer(trainer.output_dir / "visual_dl", trainer.state)
            trainer.at_end.callback(self.writer.close)

    def train_epoch_begin(self, trainer):
        self._draw_evaluations(trainer.state)

    def train_iter_end(self, trainer):
        if self.writer and trainer.inner_iter % self.interval == 0:
            values = {name: value.item() for name, value in trainer.state.outputs.items()}
            self._add("train", trainer.state.iter, lr=trainer.state.lr, **values)

    def train_epoch_end(self, trainer):
        self._draw_evaluations(trainer.state)
        if self.writer and self.histograms:
            for name, parameter in trainer.model.named_parameters():
                values = parameter.astype("float32").numpy().ravel()
                self.writer.add_histogram(name, values[np.isfinite(values)], trainer.state.epoch)

    def run_end(self, trainer):
        self._draw_evaluations(trainer.state)

    def _draw_evaluations(self, state):
        """Draw those that have been made since the last call; all of them lie at the end of an epoch."""
        for mode, metrics in (("val", state.metrics), ("val_ema", state.ema_metrics)):
            if self.writer and metrics is not self.drawn.get(mode):  # an evaluation makes a new dict
                self.drawn[mode] = metrics
                self._add(mode, state.epoch, **metrics)

    def _add(self, mode, step, **values):
        for name, value in values.items():
            self.writer.add_scalar(f"{mode}/{name}", value, step)


def _open_writer(folder, state):
    """A LogWriter for a run at `state`: of a new file, or where the run is resumed of the newest file of `folder`.

    The page shows the file whose name sorts last, and no other one of the folder.
    """
    names = sorted(path.name for path in folder.glob("*vdlrecords*"))
    if state.iter and names:
        _cut(folder / names[-1], state)
    else:
        names = [_new_name(names)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that the file exists
        return LogWriter(str(folder), file_name=names[-1])


def _new_name(names):
    """A name as VisualDL makes them, of the time in seconds; it would add to a file of the same second."""
    candidates = (f"vdlrecords.{seconds:010d}.log" for seconds in itertools.count(int(time.time())))
    return next(name for name in candidates if name not in names)


def _cut(path, state):
    """End the file `path` before the first record that a run at `state` will write again, or that is not whole.

    A VisualDL file is a row of records: 8 bytes, little-endian, with the length of a serialised `Record`, and that.
    """
    data, end = path.read_bytes(), 0
    while (begin := end + 8) <= len(data):
        following = begin + int.from_bytes(data[end:begin], "little")
        if _is_beyond(state, data[begin:following]):
            break
        end = following
    os.truncate(path, end)


def _is_beyond(state, record):
    """Whether the bytes `record` hold a value of a later iteration (training) or epoch (the rest), or half a value."""
    try:
        (value,) = Record.FromString(record).values
    except (DecodeError, ValueError):
        return True
    return value.id > (state.iter if value.tag.startswith("train/") else state.epoch)


HOOKS.register(VisualHook)
