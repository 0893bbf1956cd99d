"""Start `tools/train.py` often and cheaply: a process that has imported Paddle once forks one process a run.

Each is a real process with an own process group: it can be killed, and its exit code is that of `tools/train.py`.
Nothing of Paddle has run before the fork, so a run starts as in a fresh process.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class RunServer:
    """The tests' side; a context manager."""

    def __enter__(self):
        self.runs = []
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # a fork has no threads
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
        return self

    def __exit__(self, *_):
        for run in self.runs:
            run.end()
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder, *arguments, **faults):
        """`tools/train.py <arguments>` with functions of `faults.py` called before; `folder` takes its output."""
        self.runs.append(Run(self, folder / f"run{len(self.runs)}.txt", [str(word) for word in arguments], faults))
        return self.runs[-1]


class Run:
    """A run of the server."""

    def __init__(self, server, path, arguments, faults):
        self.server, self.path, self.code = server, path, None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.pid = server.ask(argv=arguments, output=str(path), faults=faults)

    @property
    def output(self):
        """What it has printed so far, errors included."""
        return self.path.read_text(errors="replace")

    def poll(self):
        """Its exit code, negative for a signal; None as long as it runs."""
        if self.code is None:
            self.code = self.server.ask(poll=self.pid)
        return self.code

    def wait(self, timeout=60):
        """Its exit code when it has ended."""
        self.wait_until(lambda: False, timeout)
        return self.code

    def wait_until(self, condition, timeout=60):
        """Return when `condition()` holds or the run has ended."""
        end = time.monotonic() + timeout
        while self.poll() is None and not condition():
            assert time.monotonic() < end, f"still running after {timeout} s:\n{self.output}"
            time.sleep(0.002)

    def send(self, number, group=False):
        (os.killpg if group else os.kill)(self.pid, number)

    def kill(self):
        """kill -9 of its main process alone; its exit code."""
        if self.poll() is None:
            self.send(signal.SIGKILL)
        return self.wait()

    def end(self):
        """Leave nothing of it behind."""
        if self.poll() is None:
            self.send(signal.SIGKILL, group=True)
            self.wait()


def serve():
    sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests" / "engine")]
    from passl_xcit.utils.startup import prepare_paddle

    prepare_paddle()
    import faults
    import train

    from passl_xcit.engine import launch  # noqa: F401
    from passl_xcit.utils.errors import exit_with_one_line

    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                os.setsid()
                _run(question, faults, lambda argv: exit_with_one_line(train.main, argv))
        print(json.dumps(answer), flush=True)


def _run(question, faults, main):
    output = os.open(question["output"], os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    code = 1
    try:
        for name, argument in question["faults"].items():
            getattr(faults, name)(argument)
        main(question["argv"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
