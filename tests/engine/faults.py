"""What can go wrong, put into a run of `run_server` before it begins: each name is a keyword of `RunServer.start`.

Where a run is to be caught at a certain moment, it prints WAITING there, and waits for the signal.
"""

import os
import resource
import shutil
import signal
import time
from pathlib import Path

from passl_xcit.engine.evaluator import Evaluator
from passl_xcit.engine.stop_request import StopRequest
from passl_xcit.engine.trainer import Trainer

WAITING = "waiting for a signal"


def killed_at_flush(number):
    """kill -9 while that flush of a file or folder to the disk is waited for; saving a file takes two of them."""
    _at_flush(number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def waits_in_flush(number):
    """Wait in that flush."""
    _at_flush(number, _waiting())


def _at_flush(number, action):
    flush, seen = os.fsync, []

    def fsync(handle):
        seen.append(handle)
        if len(seen) == number:
            action()
        flush(handle)

    os.fsync = fsync


def waits_in_evaluation(number):
    """Wait in the first batch of that evaluation."""
    count, seen, wait = Evaluator._count, [], _waiting()

    def waiting(self, interrupted):
        seen.append(self)
        if len(seen) == number:
            wait()
        return count(self, interrupted)

    Evaluator._count = waiting


def waits_in_step(number):
    """Wait in that step, counted from 1."""
    step, wait = Trainer.train_step, _waiting()

    def waiting(self, images, targets):
        if self.state.iter + 1 == number:
            wait()
        return step(self, images, targets)

    Trainer.train_step = waiting


def _waiting(seconds=30):
    """A function that returns half a second after the first signal; a second one ends it at once."""
    noted, note = [], StopRequest._note

    def watched(self, number, frame):
        noted.append(number)
        note(self, number, frame)

    def wait():
        print(WAITING, flush=True)
        end = time.monotonic() + seconds
        while not noted and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.5)

    StopRequest._note = watched
    return wait


def nan_images(iterations):
    """The images of these iterations, counted from 1, are not numbers."""
    step = Trainer.train_step

    def poisoned(self, images, targets):
        return step(self, images * float("nan") if self.state.iter + 1 in iterations else images, targets)

    Trainer.train_step = poisoned


def no_room_for_checkpoints(numbers):
    """The disk is full while the checkpoints of these numbers, counted from 1, are written, for 10,000 bytes."""
    save, seen = Trainer.save_checkpoint, []

    def limited(self, *arguments):
        seen.append(self)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(seen) in numbers:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            save(self, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    Trainer.save_checkpoint = limited


def folder_is_gone(arguments):
    """[step, folder, whether a file takes its place]: the folder is removed before that step."""
    number, folder, is_file = arguments
    step = Trainer.train_step

    def after_removal(self, images, targets):
        if self.state.iter + 1 == number:
            shutil.rmtree(folder)
            if is_file:
                Path(folder).write_text("a file")
        return step(self, images, targets)

    Trainer.train_step = after_removal
