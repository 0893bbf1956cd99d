"""Find a peer's interpreter and run its script."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VARIABLES = {name: f"PASSL_XCIT_{name.upper()}_PYTHON" for name in ("timm", "mmpretrain", "mindcv")}
TRUE_IF_FOUND = "import sys, importlib.util as u; sys.exit(u.find_spec(sys.argv[1]) is None)"


def interpreter(peer):
    """The Python that has the peer: the one its environment variable names, or this one."""
    return os.environ.get(VARIABLES[peer], sys.executable)


@functools.cache
def why_not(peer):
    """Why the peer cannot run here, or None. Nothing is imported."""
    python = interpreter(peer)
    if python == sys.executable:
        found = importlib.util.find_spec(peer) is not None
    else:
        try:
            found = subprocess.run([python, "-c", TRUE_IF_FOUND, peer]).returncode == 0
        except OSError as error:
            return f"{VARIABLES[peer]}={python}: {error.strerror}"
    return None if found else f"{python} has no {peer}; {VARIABLES[peer]} may name another interpreter"


def run_peer(peer, *arguments):
    """Run the peer's script; RuntimeError with the end of what it said if it fails."""
    command = [interpreter(peer), HERE / f"run_{peer}.py", *arguments]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[1].name} {' '.join(map(str, arguments))}\n{done.stdout[-3000:]}")
