"""The files that come with this project: `configs/`, and the demo's weights in `weights/`."""

import os
from pathlib import Path, PurePath

FOLDERS = ("configs", "weights")
_PACKAGE = Path(__file__).resolve().parents[1]
# Installed, they lie inside the package; in a checkout beside it.
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent


def shipped(path, folder=""):
    """`path` below `folder`; where there is no such file, and it is the name of one of ours, then ours.

    So `configs/demo/xcit_demo_p4_fashion_mnist.yaml` means the same in a checkout and everywhere else.
    """
    beside, parts = Path(folder, path), PurePath(path).parts
    is_name = parts[:1] and parts[0] in FOLDERS and ".." not in parts
    return ROOT / path if is_name and not os.path.lexists(beside) and os.path.exists(ROOT / path) else beside
