"""What a run was: `config.yaml`, which runs again as it is, and `run.json`, with an entry for each start."""

import datetime
import itertools
import json
import platform
import re
import shlex
import sys

import numpy as np
import paddle
import PIL

from passl_xcit.utils.config import dump_config
from passl_xcit.utils.dist import world_size
from passl_xcit.utils.logger import TRAINER, get_logger
from passl_xcit.utils.new_file import make_parent, replace_file
from passl_xcit.utils.startup import usable_cores

logger = get_logger(TRAINER)

HEADER = "# Written by a training: its whole config, after _base_ and overrides. It runs again as it is.\n"
OF_ONE_START = ("is_train", "timestamp")  # in the config that a log prints, as in PASSL's


def write_run_record(cfg, trainer, resumed_from=None):
    """Write `config.yaml` and add this start to `run.json` in the folder of `trainer`, which has been resumed.

    A file of these names that no training wrote is kept under another name. `trainer.records` takes what was written.

    Raises:
        CheckpointError: a file cannot be written.
    """
    config, run = (trainer.output_dir / name for name in ("config.yaml", "run.json"))
    record = {"starts": [*_earlier_starts(run), _this_start(trainer, resumed_from)]}
    trainer.records = {config: HEADER + whole_config(cfg), run: json.dumps(record, indent=1) + "\n"}
    for path, is_ours in ((config, _is_written_config), (run, _is_record)):
        _keep_others(path, is_ours)
        _write(path, trainer.records[path])


def whole_config(cfg):
    """The config after `_base_` and overrides as the text of a file, which runs again as it is."""
    return dump_config({key: value for key, value in cfg.to_dict().items() if key not in OF_ONE_START})


def restore(records):
    """Write those of `records`, {path: text}, again that are no longer there: somebody has removed the folder.

    Raises:
        CheckpointError: a file cannot be written.
    """
    for path, text in records.items():
        if not path.exists():
            _write(path, text)
            logger.warning(f"{path} was gone: it is written again")


def _this_start(trainer, resumed_from):
    state, evaluator = trainer.state, trainer.evaluator
    loaders = {"train": trainer.train_loader, **({"val": evaluator.loader} if evaluator else {})}
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(without_secrets(argument) for argument in sys.argv),
        "resumed_from": {"file": str(resumed_from), "epoch": state.epoch, "iter": state.iter} if resumed_from else None,
        "seed": trainer.seed,
        "epochs": trainer.epochs,
        "iters_per_epoch": trainer.iters_per_epoch,
        "global_batch_size": trainer.global_batch_size,
        "processes": world_size(),
        "device": paddle.get_device(),
        "cores": usable_cores(),
        "data": {split: loader.dataset.fingerprint() for split, loader in loaders.items()},
        "versions": versions(),
    }


def versions():
    """{name: version} of what the numbers of a run may depend on."""
    return {
        "passl_xcit": sys.modules["passl_xcit"].__version__,  # the package lies above this floor, and is there
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def without_secrets(argument):
    """A word of the command line; an address loses user, password and query, which may hold a token."""
    argument = re.sub(r"(://)[^/\s]*@", r"\1***@", argument)
    return re.sub(r"(://[^?\s]*\?)\S+", r"\1***", argument)


def _earlier_starts(path):
    return json.loads(path.read_text(encoding="utf-8"))["starts"] if _is_record(path) else []


def _is_record(path):
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8"))["starts"], list)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _is_written_config(path):
    try:
        return path.read_bytes().startswith(HEADER.encode())
    except OSError:
        return False


def _keep_others(path, is_ours):
    if path.exists() and not is_ours(path):
        others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        other = next(name for name in others if not name.exists())
        path.rename(other)
        logger.warning(f"{path} was not written by a training: it is {other.name} now")


def _write(path, text):
    make_parent(path)
    replace_file(path, lambda file: file.write(text.encode("utf-8")))
