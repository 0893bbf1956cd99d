"""tools/train.py, with a transform `Fail` that does what its `how` says when it sees an image of one colour."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from train import main

from passl_xcit.utils.errors import exit_with_one_line
from passl_xcit.utils.registry import TRANSFORMS

WAYS = {
    "raise": lambda: 1 / 0,
    "exit": lambda: os._exit(9),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(600),
}


class Fail:
    def __init__(self, how: str):
        self.how = how

    def __call__(self, image, rng):
        if image.getcolors(1):
            if self.how == "shape":
                return image.resize((3, 3))
            WAYS[self.how]()
        return image


if __name__ == "__main__":
    TRANSFORMS.register(Fail)
    exit_with_one_line(main)
