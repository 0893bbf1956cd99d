"""One logger with PASSL's line format, JSON lines beside it, and averaging meters.

Every line reads `[MM/DD HH:MM:SS] <logger> INFO: <message>`; users parse them. A log that cannot be written (disk
full, folder gone) says so once on stderr and loses lines: no training ends for that.
"""

import collections
import contextlib
import json
import logging
import logging.handlers
import math
import os
import sys
from pathlib import Path

from passl_xcit.utils.errors import give_up_unwritten

_FORMAT = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")
TRAINER = "passl.engine.trainer"  # the name PASSL's trainer and hooks log under


def get_logger(name="passl"):
    """The logger of PASSL's name `passl...` for a module of this package, or for such a name itself."""
    return logging.getLogger(name.replace("passl_xcit", "passl", 1))


def setup_logger(rank=0, stream=None):
    """Send the log to `stream` on rank 0, by default stdout, and keep its lines until `log_to_folder` takes them."""
    root = get_logger()
    root.setLevel(logging.INFO)
    root.propagate = False
    _close_handlers(root)
    if rank == 0:
        root.addHandler(_with_format(_StreamHandler(stream or sys.stdout)))
    root.addHandler(logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1, flushOnClose=False))


def log_to_folder(folder, rank=0):
    """Append the log, with the lines kept so far, to `folder`/log.txt (log.txt.rank1 and so on elsewhere)."""
    root = get_logger()
    path = Path(folder) / ("log.txt" if rank == 0 else f"log.txt.rank{rank}")
    file_handler = _with_format(_FileHandler(path, encoding="utf-8"))
    for handler in list(root.handlers):
        if isinstance(handler, logging.handlers.MemoryHandler):
            handler.setTarget(file_handler)
            handler.flush()
            handler.close()
            root.removeHandler(handler)
    root.addHandler(file_handler)


class _WarnsOnce:
    """A mixin of handlers: what cannot be written is lost with one warning, where logging prints a traceback a line.

    What a signal's handler logs while a line is being written comes after that line: streams refuse it in between.
    """

    warned = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._waiting, self._writes = collections.deque(), False

    def emit(self, record):
        self._waiting.append(record)
        while self._waiting and not self._writes:
            self._writes = True
            try:
                self._write(self._waiting.popleft())
            finally:
                self._writes = False

    def _write(self, record):
        super().emit(record)

    def handleError(self, record):
        error = sys.exc_info()[1]
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone: end the program
            raise
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.warned:
            self.warned = True
            _warn_of_lost_lines(getattr(self.stream, "name", "<log>") if self.stream else self.baseFilename, error)


class _StreamHandler(_WarnsOnce, logging.StreamHandler):
    def handleError(self, record):
        super().handleError(record)
        give_up_unwritten(self.stream)


class _FileHandler(_WarnsOnce, logging.handlers.WatchedFileHandler):
    """Where somebody has removed the file, it goes on in a new one."""

    def _write(self, record):
        try:
            super()._write(record)
        except OSError:  # the folder is gone, too
            self.handleError(record)


class JsonLog:
    """JSON objects, one a line, appended to the file `path`; numbers that are not finite become null."""

    def __init__(self, path):
        self.path, self.warned = Path(path), False

    def append(self, entry):
        """Add a line; one that a killed run left unfinished is ended first."""
        line = json.dumps({key: _finite_or_none(value) for key, value in entry.items()}, allow_nan=False)
        try:
            with open(self.path, "ab+") as file:
                file.write(f"{_missing_end(file)}{line}\n".encode())
        except OSError as error:
            if not self.warned:
                self.warned = True
                _warn_of_lost_lines(self.path, error)

    def read(self):
        """The entries, oldest first, without lines that were never finished; none if the file cannot be read."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict)]


def _missing_end(file):
    """A line end, if what stands in the binary `file` (open at its end) has none."""
    if not file.tell():
        return ""
    file.seek(-1, os.SEEK_END)
    return "" if file.read(1) == b"\n" else "\n"


def _finite_or_none(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warn_of_lost_lines(path, error):
    """Say on stderr, if that can still be written, that the log `path` loses lines because of the OSError."""
    with contextlib.suppress(OSError):
        print(f"warning: {path}: {error.strerror}: lines of this log are lost, the run goes on", file=sys.stderr)


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
        self.last = _number(self.last)  # a device is asked once
        return self.last

    @property
    def average(self):
        return _number(self.total) / max(1, self.count)

    def __str__(self):
        return f"{self.name} {self.format.format(self.value)} ({self.format.format(self.average)})"


def _number(value):
    return float(value.item() if hasattr(value, "item") else value)
