"""Ctrl-C, SIGTERM and SIGUSR1 during a training: noted when they come, obeyed when a step is finished and saved."""

import signal
import threading

from passl_xcit.utils.dist import is_launched, sum_over_processes
from passl_xcit.utils.logger import TRAINER, get_logger

logger = get_logger(TRAINER)

# Schedulers such as Slurm send SIGUSR1 some time before the end.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """Inside this context the first Ctrl-C, SIGTERM or SIGUSR1 is only noted; a second one acts at once.

    `paddle.distributed.launch` sends each process three SIGTERM within half a second, and SIGKILL 30 seconds later:
    under it a further SIGTERM means nothing.

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
        if not self.number:
            self.number = number
            more = "" if is_launched() else "; once more stops at once, unsaved"
            logger.warning(f"{signal.Signals(number).name}: stopping after this step{more}")
        elif not (number == signal.SIGTERM and is_launched()):
            self.__exit__()
            signal.raise_signal(number)

    def agreed(self):
        """Whether any process was asked to stop; the same answer in all of them, which ask at the same time."""
        return sum_over_processes([float(bool(self.number))])[0] > 0
