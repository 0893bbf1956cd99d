"""One run a folder: a second one would overwrite its checkpoints."""

import contextlib
import os
import socket

from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.logger import TRAINER, get_logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = get_logger(TRAINER)
NAME = ".lock"


@contextlib.contextmanager
def run_lock(folder):
    """Hold the lock of `folder` inside the context; the system opens it when the process ends, however it ends.

    Raises:
        ConfigError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with open(folder / NAME, "a+", encoding="utf-8") as file:
        _lock(file, folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file, folder):
    try:
        # A record lock, which forked data workers do not hold on to when this process is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise ConfigError(
            f"another run ({file.read() or 'a process'}) writes to {folder}: wait for it, stop it, or choose another "
            "output_dir",
            "output_dir",
        ) from None
    except OSError as error:
        logger.warning(f"{folder}: this file system has no locks ({error.strerror}): start no second run in it")
