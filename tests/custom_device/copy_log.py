"""Which kernels ran, and whose the copies between host and device were: read from Paddle's log and the device's.

An operator that has no kernel on the device runs on the CPU: Paddle copies each input that is there from the device,
and each output to it. All other copies are somebody else's: of a batch, of a number that is read, of a hook.
"""

import contextlib
import os
import re
import tempfile
from collections import Counter

from paddle.base import core

from passl_xcit.utils.kernels import LOG_LEVEL

KERNEL = r'\] (?P<operator>\w+) (?:API )?kernel: \{"input":\[(?P<inputs>[^\]]*)\],\s*"output":\[(?P<outputs>[^\]]*)\]'
COPY = r"test device: copy from (?P<source>-?\d+) to (?P<target>-?\d+): (?P<bytes>\d+) bytes"
EVENT = re.compile(f"{KERNEL}|{COPY}")
HOST = "-1"
# One entry of these operators' lists stands for several tensors.
MANY_INPUTS, MANY_OUTPUTS = ("add_n", "concat", "stack"), ("concat_grad", "split", "split_with_num")


class Copies:
    """What a log tells.

    Attributes:
        on_device, on_cpu: Counters of the operators whose kernels ran there.
        of_operators: Counter of the copies "to" and "from" the device that operators on the CPU needed.
        others: {"to": [bytes, ...], "from": [bytes, ...]}, the rest.
    """

    def __init__(self, log):
        self.on_device, self.on_cpu, self.of_operators = Counter(), Counter(), Counter()
        self.others = {"to": [], "from": []}
        self._due = {"to": 0, "from": 0}  # of the operator at hand
        for event in EVENT.finditer(log):
            if event["operator"]:
                self._begin(**event.groupdict())
            elif HOST in (event["source"], event["target"]):
                self._copied("to" if event["source"] == HOST else "from", int(event["bytes"]))

    def as_dict(self):
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _begin(self, operator, inputs, outputs, **_):
        on_cpu = "backend: CPU" in inputs + outputs
        (self.on_cpu if on_cpu else self.on_device)[operator] += 1
        most = {
            "from": float("inf") if operator in MANY_INPUTS else inputs.count("backend"),
            "to": float("inf") if operator in MANY_OUTPUTS else outputs.count("backend"),
        }
        self._due = most if on_cpu else {"to": 0, "from": 0}

    def _copied(self, direction, size):
        if not self._due[direction]:
            self._due = {"to": 0, "from": 0}
            self.others[direction].append(size)
            return
        self._due[direction] -= 1
        if direction == "to":  # inputs come before outputs
            self._due["from"] = 0
        self.of_operators[direction] += 1


@contextlib.contextmanager
def recording():
    """Inside the context, which takes standard error: yields a function that returns the Copies since its last call."""
    with tempfile.TemporaryFile() as log:
        before, seen = os.dup(2), 0

        def since_last():
            nonlocal seen
            text = os.pread(log.fileno(), os.fstat(log.fileno()).st_size - seen, seen)
            seen += len(text)
            return Copies(text.decode(errors="replace"))

        os.dup2(log.fileno(), 2)
        core.set_vlog_level(LOG_LEVEL)
        try:
            yield since_last
        finally:
            core.set_vlog_level(dict.fromkeys(LOG_LEVEL, 0))
            os.dup2(before, 2)
            os.close(before)
