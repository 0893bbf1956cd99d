"""Find a peer's interpreter and run a script with it."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
VARIABLES = {name: f"PASSL_XCIT_{name.upper()}_PYTHON" for name in ("timm", "mmpretrain", "mindcv")}
FIND = "import sys, importlib.util as u; sys.exit(u.find_spec(sys.argv[1]) is None)"


def needs(peer):
    """The marks of a file of tests that need `peer`; they are skipped where it is not."""
    why = _why_not(peer)
    return [pytest.mark.peers, pytest.mark.slow, pytest.mark.skipif(why is not None, reason=why or "")]


def interpreter(peer):
    """The Python that has the peer: the one its environment variable names, or this one."""
    return os.environ.get(VARIABLES[peer], sys.executable)


@functools.lru_cache
def _why_not(peer):
    """Why the peer cannot run here, or None. Nothing is imported."""
    python = interpreter(peer)
    if python == sys.executable:
        found = importlib.util.find_spec(peer) is not None
    else:
        try:
            found = subprocess.run([python, "-c", FIND, peer]).returncode == 0
        except OSError as error:
            return f"{VARIABLES[peer]}={python}: {error.strerror}"
    return None if found else f"{python} has no {peer}; {VARIABLES[peer]} may name another interpreter"


def run(peer, script, *arguments):
    """Run `script` of this folder with the peer's interpreter; RuntimeError with its last words if it fails."""
    command = [interpreter(peer), HERE / script, *arguments]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(map(str, arguments))}\n{done.stdout[-3000:]}")
