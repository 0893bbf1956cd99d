"""How long commands take before they do anything."""

import statistics
import subprocess
import sys
import time

from passl_xcit.engine.benchmark.contenders import ROOT
from passl_xcit.utils.errors import UserError

CODE = {
    "python": "pass",
    "import paddle": "import paddle",
    "import passl_xcit": "import passl_xcit",
    "create_model('xcit_nano_12_p16')": "import passl_xcit; passl_xcit.create_model('xcit_nano_12_p16')",
}
TOOLS = ("train.py", "validate.py", "predict.py")


def measure_startup(repeats, told=lambda text: None):
    """{what: [seconds, ...]} of whole processes, in turns: Python with some code, and `--help` of the tools."""
    commands = {what: [sys.executable, "-c", code] for what, code in CODE.items()}
    for tool in TOOLS:
        if (ROOT / "tools" / tool).is_file():
            commands[f"tools/{tool} --help"] = [sys.executable, str(ROOT / "tools" / tool), "--help"]
    seconds = {what: [] for what in commands}
    for turn in range(repeats + 1):  # the first one reads files from the disk, and is left out
        told(f"turn {turn} of {repeats}")
        for what, command in commands.items():
            began = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise UserError(f"{what} ended with exit code {done.returncode}: {done.stderr.strip()[-200:]}")
            seconds[what].append(time.perf_counter() - began)
    return {what: taken[1:] for what, taken in seconds.items()}


def startup_lines(found):
    """Markdown: a table of `measure_startup`."""
    rows = [f"| `{what}` | {statistics.median(s):.2f} | {min(s):.2f} to {max(s):.2f} |" for what, s in found.items()]
    return ["| process | seconds | range |", "| --- | --- | --- |", *rows]
