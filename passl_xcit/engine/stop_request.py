"""Ctrl-C, SIGTERM and SIGUSR1 during a training: noted when they come, obeyed when a step is finished and saved."""

import signal
import threading

from passl_xcit.utils.dist import sum_over_processes, world_size
from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)

# Schedulers such as Slurm send SIGUSR1 some time before the end.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
CHECK_INTERVAL = 10  # iterations between two questions to the other processes, which cost a reduction each


class StopRequest:
    """Inside this context the first Ctrl-C, SIGTERM or SIGUSR1 is only noted; a second one acts at once.

    `number` is the signal's, 0 as long as there is none.
    """

    def __init__(self):
        self.number = 0
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number, _):
        if self.number:
            self.__exit__()
            signal.raise_signal(number)
            return
        self.number = number
        logger.warning(f"{signal.Signals(number).name}: stopping after this step; once more stops at once, unsaved")

    def requested(self):
        """Whether this process was asked to stop."""
        return bool(self.number)

    def agreed(self, iteration):
        """Whether any process was asked to stop; the same answer in all of them, which ask at the same iterations."""
        if world_size() == 1:
            return self.requested()
        return iteration % CHECK_INTERVAL == 0 and sum_over_processes([float(self.requested())])[0] > 0
