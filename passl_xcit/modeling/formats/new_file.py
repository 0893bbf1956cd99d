"""Writing a file so that nothing can leave half of it behind."""

import os
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write_through(temporary, write)
            if before_rename:
                before_rename(temporary)
            os.replace(temporary, path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


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
