"""Who takes part in a benchmark: how each contender's worker is started."""

import sys
from pathlib import Path
from typing import NamedTuple, Tuple

from passl_xcit.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
OF_LIMITS = ("eager", "timm-eager")  # who measures what the machine can do at most
OURS = ("eager", "portable", "paddle_inference", "onednn", "onnxruntime", "openvino")  # see docs/benchmarks.md
PADDLE_ALONE = (("PASSL_XCIT_NATIVE", "off"),)
PEERS = ("textbook", "timm-eager", "timm-compile")


class Contender(NamedTuple):
    """A name of OURS or PEERS, the script of its worker and the Python that runs it, and what the script is told."""

    name: str
    script: Path
    python: str
    engine: str
    environment: Tuple[Tuple[str, str], ...] = ()

    @property
    def command(self):
        return [self.python, str(self.script)]


def contenders_of(names, peer_python=None):
    """The contenders with these names, in their order.

    Args:
        peer_python: the Python that has timm and torch; by default this one.

    Raises:
        ConfigError: for a name that there is not, one given twice, and a Python that there is not.
    """
    if peer_python is not None and not Path(peer_python).is_file():
        raise ConfigError(f"--peer_python {peer_python}: there is no such file; expected a Python that has timm")
    for name in names:
        if name not in (*OURS, *PEERS):
            raise ConfigError(f"{name}: there is no such contender; expected {', '.join((*OURS, *PEERS))}")
        if list(names).count(name) > 1:
            raise ConfigError(f"{name}: is named twice")
    return [_contender(name, peer_python or sys.executable) for name in names]


def _contender(name, peer_python):
    if name == "textbook":
        return Contender(name, ROOT / "tests" / "textbook_worker.py", sys.executable, "eager", PADDLE_ALONE)
    if name.startswith("timm-"):
        return Contender(name, HERE / "timm_worker.py", peer_python, name.partition("-")[2])
    if name == "portable":
        return Contender(name, HERE / "paddle_worker.py", sys.executable, "eager", PADDLE_ALONE)
    return Contender(name, HERE / "paddle_worker.py", sys.executable, name)
