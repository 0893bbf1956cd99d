"""How the benchmark and its workers talk: one line of JSON a question and one an answer. Standard library only.

A worker is a process of its own, so that libraries with threads of their own do not meet, and that memory and the
first step are its own. It answers the task with {"ready": ..., "output": ...} after its first step, then each
{"run": steps} with {"seconds": ...}, and the end of its input with {"peak_memory": bytes}.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

STATUS = "/proc/self/status"


class WorkerError(Exception):
    """A worker that cannot do its task, with the reason in one line."""


def serve(build):
    """The worker's whole life.

    Args:
        build: task -> step; `step()` is what is timed, and returns a NumPy array when its result is there. The first
            one's goes to the benchmark, which compares contenders by it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        began = time.perf_counter()
        step = build(json.loads(sys.stdin.readline()))
        built = time.perf_counter()
        output = step()
        seconds = {"build_seconds": built - began, "first_step_seconds": time.perf_counter() - built}
        answer(output=output.tolist(), ready=seconds)
        for line in sys.stdin:
            answer(seconds=_timed(step, json.loads(line)["run"]))
        answer(peak_memory=peak_memory())
    except Exception as error:  # whatever it is, the benchmark tells it of this contender and goes on
        answer(error=_one_line(error))


def _timed(step, steps):
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - began


def _one_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("(")), lines[-1] if lines else "")  # Paddle's reason
    return f"{type(error).__name__}: {said}"[:300]


def peak_memory():
    """The most bytes of memory that this process had at once; None where the system does not tell."""
    if not Path(STATUS).exists():
        return None
    lines = Path(STATUS).read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


class Worker:
    """The benchmark's end of a worker.

    Args:
        command: starts the worker.
        environment: variables besides those of this process.
        task: what `build` gets.
        log: an open file, for what it prints.

    Attributes:
        ready: {"build_seconds", "first_step_seconds"}.
        output: nested lists, of the first step.

    Raises:
        WorkerError: it cannot do the task; also in `run` and `finish`.
    """

    def __init__(self, command, environment, task, log):
        pipe, self.log = subprocess.PIPE, log
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, text=True, env={**os.environ, **environment}
        )
        try:
            answer = self._ask(task)
        except BaseException:
            self.kill()
            raise
        self.ready, self.output = answer["ready"], answer["output"]

    def _ask(self, question):
        with contextlib.suppress(BrokenPipeError):  # it has said why, or its end is told by `_answer`
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise WorkerError(f"the process ended without an answer (exit code {code}): see {self.log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def run(self, steps):
        """Seconds that `steps` steps took."""
        return self._ask({"run": steps})["seconds"]

    def finish(self):
        """End the worker; bytes of memory that it had at most."""
        self.process.stdin.close()
        peak = self._answer()["peak_memory"]
        self.process.wait()
        return peak

    def kill(self):
        """End the worker, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
