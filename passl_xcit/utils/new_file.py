"""Writing a file so that nothing can leave half of it behind."""

import contextlib
import os
import re
from pathlib import Path

from passl_xcit.utils.errors import CheckpointError


def replace_file(path, write, before_rename=None):
    """Let `write(file)` fill a new file, and put it in the place of `path` when it is whole and on the disk.

    A link is followed: the file that it points to is replaced.

    It is written under the name `.<name>.<process id>.tmp` beside `path`, flushed to the disk and renamed; only a
    process that is killed leaves that name behind, and `path` is the old file or the new one, whatever happens.
    `before_rename(that name)` is called when the new file is whole, but not yet `path`.

    Raises:
        CheckpointError: the file cannot be written (disk full, read-only folder, ...), or `path` is no file's name.
    """
    path = _target(path)
    try:
        with renamed_to(path) as temporary:
            _write_through(temporary, write)
            if before_rename:
                before_rename(temporary)
        _flush_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def make_parent(path):
    """Make the folder of the file `path` where it is not there; CheckpointError if it cannot be."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def renamed_to(path):
    """Yields a name beside `path`, at first of no file, for one that takes the place of `path` at the end.

    After an error it is removed, and `path` is what it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # to rename one name of a file to another of its names does nothing


def remove_unfinished(folder):
    """Remove what killed processes were writing in `folder`."""
    for path in folder.glob(".*.tmp"):
        owner = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if owner and not _is_writing(int(owner[1])):
            path.unlink()


def _is_writing(process):
    """Whether the process of this number may still write; ours does not, but a killed one can have had its number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _target(path):
    """The regular file, there or not yet there, that is to be written; a device must not be replaced by one."""
    if not path or Path(path).is_dir():
        raise CheckpointError(f"{path or 'an empty text'}: cannot be written: expected the name of a file")
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{path}: cannot be written: it is not a regular file")
    return target


def _write_through(path, write):
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder):
    """A rename is on the disk only when the folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
