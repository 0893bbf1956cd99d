"""Contenders measured in turns: first whether they compute the same, then how long each takes.

A machine's speed drifts, by half and more where it is shared. Contenders that take turns meet the same drift, so that
ratios of neighbouring turns hold where times do not.
"""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from passl_xcit.engine.benchmark.cases import write_inputs
from passl_xcit.engine.benchmark.contenders import OF_LIMITS, ROOT
from passl_xcit.engine.benchmark.protocol import Crew, WorkerError
from passl_xcit.engine.runtimes import ENGINES, ONNX, PROGRAM

TURN_SECONDS = 0.2  # of a turn at least: shorter ones measure the clock
REST_SECONDS = 0.25  # after a turn: threads of OpenMP go on spinning for 0.2 s
ALLOWED = {"float32": 1e-3, "bfloat16": 0.1}  # largest difference of outputs, as a share of the largest output


def measure(case, contenders, repeats, log, told=lambda text: None):
    """{contender's name: result} of one case.

    A result has "seconds" of a step, one for each turn, "first_step_seconds", "build_seconds", and of memory in bytes
    "built_memory", before the first step, and "peak_memory"; or "error", why there is none. The first contender that
    can do the case is what the others' outputs are compared with: "difference" is the largest one, as a share of the
    largest output.

    Args:
        repeats: turns of each contender.
        log: an open file, for what the workers print.
        told: called with a line before anything that takes long.
    """
    if not case.model:
        contenders = [contender for contender in contenders if contender.name in OF_LIMITS]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as at_end:
        told(f"{case}: inputs")
        task = {**case._asdict(), **_inputs(case, contenders, Path(folder))}
        race = Race()
        for contender in contenders:
            told(f"{case}: {contender.name} begins")
            worker = race.begin(contender, {**task, "engine": contender.engine}, log)
            if worker:
                at_end.callback(worker.kill)
                race.compare(contender.name, np.array(worker.output), ALLOWED[case.precision])
        race.settle()
        for turn in range(repeats):
            told(f"{case}: turn {turn + 1} of {repeats}")
            race.turn(backwards=turn % 2)
        race.finish()
    return race.results


def _inputs(case, contenders, folder):
    if not case.model:
        return {}
    read = {file for contender in contenders if contender.engine in ENGINES for file in ENGINES[contender.engine].FILES}
    return write_inputs(case, folder, [name for name, file in (("paddle", PROGRAM), ("onnx", ONNX)) if file in read])


class Race:
    """The contenders of one case that are still in it, and the results of all; see `measure`."""

    def __init__(self):
        self.results, self.workers, self.steps, self.first = {}, {}, {}, None

    def begin(self, contender, task, log):
        """Start a contender's workers; None if it cannot do the task."""
        threads = {"OMP_NUM_THREADS": str(task["threads"]), "PYTHONPATH": str(ROOT)}
        with self._told_of(contender.name):
            environment = {**threads, **dict(contender.environment)}
            worker = Crew(task["processes"], contender.command, environment, task, log)
            self.results[contender.name] = {**worker.ready, "seconds": []}
            self.workers[contender.name] = worker
        return self.workers.get(contender.name)

    def compare(self, name, output, allowed):
        """Who computes something else than the first one is out."""
        self.first = self.first or (name, output)
        first, wanted = self.first
        difference = np.abs(output - wanted).max() / np.abs(wanted).max() if output.shape == wanted.shape else np.inf
        self.results[name]["difference"] = float(difference)
        if not difference <= allowed:
            self.workers.pop(name)
            self.results[name] = {"error": f"computes something else than {first}: differs by {difference:.2g}"}

    def settle(self):
        """A step for allocators and caches, and one that says how many make a turn."""
        for name, worker in list(self.workers.items()):
            with self._told_of(name):
                worker.run(1)
                self.steps[name] = max(1, round(TURN_SECONDS / max(worker.run(1), 1e-6)))

    def turn(self, backwards):
        """Each once; every other time backwards, so that nobody always comes after the same one."""
        for name in list(self.workers)[:: -1 if backwards else 1]:
            time.sleep(REST_SECONDS)
            with self._told_of(name):
                seconds = self.workers[name].run(self.steps[name]) / self.steps[name]
                self.results[name]["seconds"].append(seconds)

    def finish(self):
        for name, worker in list(self.workers.items()):
            with self._told_of(name):
                self.results[name]["peak_memory"] = worker.finish()

    @contextlib.contextmanager
    def _told_of(self, name):
        """Who fails is out, with the reason as its result."""
        try:
            yield
        except (WorkerError, OSError) as error:
            self.workers.pop(name, None)
            self.results[name] = {"error": str(error)}


def ratios(seconds, others):
    """How many times as fast, turn by turn: median, lowest and highest of others' seconds / seconds."""
    found = [other / own for own, other in zip(seconds, others)]
    return statistics.median(found), min(found), max(found)
