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
        built, memory = time.perf_counter(), memory_of("VmRSS")
        output = step()
        seconds = {"build_seconds": built - began, "first_step_seconds": time.perf_counter() - built}
        answer(output=output.tolist(), ready={**seconds, "built_memory": memory})
        for line in sys.stdin:
            answer(seconds=_timed(step, json.loads(line)["run"]))
        answer(peak_memory=memory_of("VmHWM"))
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


def memory_of(name):
    """Bytes of memory that this process has, "VmRSS", or had at most, "VmHWM"; None where the system does not tell."""
    if not Path(STATUS).exists():
        return None
    lines = Path(STATUS).read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _last_line(path, begin):
    """What was printed last after `begin` bytes of a log, which is why a process ended; "" if nothing was."""
    with contextlib.suppress(OSError):
        lines = Path(path).read_bytes()[begin:].decode(errors="replace").splitlines()
        return next((f"{line.strip()[:200]}; " for line in reversed(lines) if line.strip()), "")
    return ""


class Worker:
    """The benchmark's end of one process.

    Args:
        command: starts the process.
        environment: variables besides those of this process.
        task: what `build` gets.
        log: an open file, for what it prints.
    """

    def __init__(self, command, environment, task, log):
        pipe, self.log, self.begin = subprocess.PIPE, log, os.fstat(log.fileno()).st_size
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, text=True, env={**os.environ, **environment}
        )
        self.ask(task)

    def ask(self, question):
        with contextlib.suppress(BrokenPipeError):  # it has said why, or its end is told by `answer`
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()

    def answer(self):
        """What it says next, as a dict; WorkerError: it cannot do what it was asked."""
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            said = _last_line(self.log.name, self.begin)
            raise WorkerError(f"the process ended without an answer (exit code {code}): {said}see {self.log.name}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise WorkerError(f"the process is no worker of this benchmark: it said {line.strip()[:60]!r}")
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def kill(self):
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Crew:
    """Some processes that do the same at the same time.

    Args:
        processes: how many; the others as of Worker.

    Attributes:
        ready: {"build_seconds", "first_step_seconds"} of the slowest, "built_memory": bytes that they had together
            before the first step.
        output: nested lists, of the first step of one of them.

    Raises:
        WorkerError: one cannot do the task; also in `run` and `finish`.
    """

    def __init__(self, processes, command, environment, task, log):
        self.workers = []
        try:
            for _ in range(processes):
                self.workers.append(Worker(command, environment, task, log))
            answers = self._answers()
        except BaseException:
            self.kill()
            raise
        told = {key: [answer["ready"][key] for answer in answers] for key in answers[0]["ready"]}
        together = _sum(told.pop("built_memory"))
        self.ready = {**{key: max(values) for key, values in told.items()}, "built_memory": together}
        self.output = answers[0]["output"]

    def _answers(self):
        return [worker.answer() for worker in self.workers]

    def run(self, steps):
        """Seconds that `steps` steps took the slowest."""
        for worker in self.workers:
            worker.ask({"run": steps})
        return max(answer["seconds"] for answer in self._answers())

    def finish(self):
        """End them; bytes of memory that each had at most, added up."""
        for worker in self.workers:
            worker.process.stdin.close()
        peak = _sum([answer["peak_memory"] for answer in self._answers()])
        for worker in self.workers:
            worker.process.wait()
        return peak

    def kill(self):
        """End them, whatever they do."""
        for worker in self.workers:
            worker.kill()


def _sum(values):
    return None if None in values else sum(values)
