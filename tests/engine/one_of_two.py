"""tools/train.py as one of two processes, something of which happens as the first argument says.

Each writes its process number to the folder that is the second argument; the others are those of tools/train.py.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import faults
import train

from passl_xcit.engine.trainer import Trainer
from passl_xcit.hooks import checkpoint_hook
from passl_xcit.utils.errors import exit_with_one_line


def in_its_second_epoch(action):
    step = Trainer.train_step

    def failing(self, *batch):
        if self.state.epoch == 1:
            action()
        return step(self, *batch)

    Trainer.train_step = failing


def before_its_second_barrier(action):
    wait, seen = checkpoint_hook.wait_for_all, []

    def failing():
        seen.append(True)
        if len(seen) == 2:
            action()
        wait()

    checkpoint_hook.wait_for_all = failing


def hang():
    time.sleep(600)


FIRST = {  # what the first process does
    "waits in a step": lambda: faults.waits_in_step(8),
    "waits in an evaluation": lambda: faults.waits_in_evaluation(1),
}
SECOND = {
    "raises": lambda: in_its_second_epoch(lambda: 1 / 0),
    "exits": lambda: in_its_second_epoch(lambda: os._exit(9)),
    "is killed": lambda: in_its_second_epoch(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "is frozen": lambda: in_its_second_epoch(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "hangs in a step": lambda: in_its_second_epoch(hang),
    "hangs after a checkpoint": lambda: before_its_second_barrier(hang),
}


if __name__ == "__main__":
    way, folder, *arguments = sys.argv[1:]
    (Path(folder) / f"pid.{os.getpid()}").touch()
    ways = SECOND if os.environ["PADDLE_TRAINER_ID"] == "1" else FIRST
    ways.get(way, lambda: None)()
    exit_with_one_line(train.main, arguments)
