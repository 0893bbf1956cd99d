"""Who takes part in a benchmark: how each contender's worker is started."""

import sys
from pathlib import Path
from typing import NamedTuple, Tuple

from passl_xcit.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
OF_LIMITS = ("eager", "timm-eager")  # who measures what the machine can do at most
OURS = {
    "eager": "the model as it is, as in training",
    "portable": "the model without the native CPU operators",
    "paddle_inference": "the export in Paddle Inference",
    "onednn": "the export in Paddle Inference with oneDNN",
    "onnxruntime": "the export in ONNX Runtime",
    "openvino": "the export in OpenVINO",
}
PEERS = {
    "textbook": "XCiT in Paddle as the papers and PASSL write it (tests/reference_xcit.py)",
    "timm-eager": "timm as it is, bfloat16 by autocast",
    "timm-compile": "timm under torch.compile, for inference with frozen weights",
}


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
        if name not in {**OURS, **PEERS}:
            raise ConfigError(f"{name}: there is no such contender; expected {', '.join({**OURS, **PEERS})}")
        if list(names).count(name) > 1:
            raise ConfigError(f"{name}: is named twice")
    return [_contender(name, peer_python or sys.executable) for name in names]


def _contender(name, peer_python):
    if name == "textbook":
        return Contender(name, ROOT / "tests" / "textbook_worker.py", sys.executable, "eager")
    if name.startswith("timm-"):
        return Contender(name, HERE / "timm_worker.py", peer_python, name.partition("-")[2])
    if name == "portable":
        return Contender(name, HERE / "paddle_worker.py", sys.executable, "eager", (("PASSL_XCIT_NATIVE", "off"),))
    return Contender(name, HERE / "paddle_worker.py", sys.executable, name)
