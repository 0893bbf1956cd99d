"""A contender of the tests: answers with the number and takes the time that the environment says."""

import os
import sys
import time
from pathlib import Path

import numpy as np

from passl_xcit.engine.benchmark.protocol import serve


def build(task):
    print("libraries print what they like")
    behaviour = os.environ["FAKE"]
    if behaviour == "refuses":
        raise ValueError("first line\n\nno kernel for this\n")
    if behaviour == "dies":
        os._exit(3)

    def step():
        print("also while they run")
        time.sleep(float(os.environ["FAKE_SECONDS"]))
        with Path(os.environ["FAKE_ORDER"]).open("a") as order:
            order.write(os.environ["FAKE_NAME"])
        if behaviour == "fails later" and len(Path(os.environ["FAKE_ORDER"]).read_text()) > 6:
            sys.exit("out of memory")

        return np.array([[1.0, float(os.environ["FAKE_OUTPUT"])]])

    return step


if __name__ == "__main__":
    serve(build)
