"""One logger with PASSL's line format, and averaging meters.

Every line reads `[MM/DD HH:MM:SS] <logger> INFO: <message>`; users parse them.
"""

import logging
import logging.handlers
import sys
from pathlib import Path

_FORMAT = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")
TRAINER = "passl.engine.trainer"  # the name PASSL's trainer and hooks log under


def get_logger(name="passl"):
    """The logger of PASSL's name `passl...` for a module of this package, or for such a name itself."""
    return logging.getLogger(name.replace("passl_xcit", "passl", 1))


def setup_logger(rank=0):
    """Send the log to stdout on rank 0, and keep its lines until `log_to_folder` says where to write them."""
    root = get_logger()
    root.setLevel(logging.INFO)
    root.propagate = False
    _close_handlers(root)
    if rank == 0:
        root.addHandler(_with_format(_StreamHandler(sys.stdout)))
    root.addHandler(logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1, flushOnClose=False))


def log_to_folder(folder, rank=0):
    """Append the log, with the lines kept so far, to `folder`/log.txt (log.txt.rank1 and so on elsewhere)."""
    root = get_logger()
    path = Path(folder) / ("log.txt" if rank == 0 else f"log.txt.rank{rank}")
    file_handler = _with_format(logging.FileHandler(path, encoding="utf-8"))
    for handler in list(root.handlers):
        if isinstance(handler, logging.handlers.MemoryHandler):
            handler.setTarget(file_handler)
            handler.flush()
            handler.close()
            root.removeHandler(handler)
    root.addHandler(file_handler)


class _StreamHandler(logging.StreamHandler):
    """Ends the program when the reader of its output has gone, where logging would print a traceback a line."""

    def handleError(self, record):
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


def _with_format(handler):
    handler.setFormatter(_FORMAT)
    return handler


def _close_handlers(root):
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()


class AverageMeter:
    """Current value and average since the last clear, printed as PASSL prints them.

    Values may be device tensors; they are read only when the meter is printed, so that logging every tenth
    iteration waits for the device every tenth iteration.
    """

    def __init__(self, name):
        self.name = name
        self.format = "{:.4e}" if "loss" in name else "{:6.3f}"
        self.clear()

    def clear(self):
        self.last, self.total, self.count = 0.0, 0.0, 0

    def update(self, value):
        self.last = value
        self.total = self.total + value
        self.count += 1

    @property
    def value(self):
        return _number(self.last)

    @property
    def average(self):
        return _number(self.total) / max(1, self.count)

    def __str__(self):
        return f"{self.name} {self.format.format(self.value)} ({self.format.format(self.average)})"


def _number(value):
    return float(value.item() if hasattr(value, "item") else value)
