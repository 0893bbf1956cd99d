"""Reading and writing weight files: what a file is, the values in it, and the named arrays among those.

A file is known by its first bytes, never by its extension, and read by one reader only: nothing is tried in turn.
"""

import difflib
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from passl_xcit.modeling import safe_pickle
from passl_xcit.utils.errors import CheckpointError

HEAD_BYTES = 512
DIGEST = "digest"
_DIGEST_FORM = "sha256:"


class Format(NamedTuple):
    """A kind of file: `matches(head)` knows it by its first bytes; without `read(data, name)` it is refused."""

    label: str
    matches: Callable[[bytes], bool]
    hint: str = "this format is not read yet"
    read: Optional[Callable[[bytes, str], object]] = None


def _starts(pattern):
    return re.compile(pattern, re.DOTALL).match


def _is_safetensors(head):
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27


FORMATS = (
    # The legacy torch file is a pickle as well, which starts with this magic number.
    Format("a torch weight file in the form from before torch 1.6", _starts(rb"\x80\x02\x8a\nl\xfc\x9cF")),
    Format("a Paddle weight file", _starts(rb"\x80[\x02-\x05]"), read=safe_pickle.loads),
    Format("a torch weight file", _starts(rb"PK\x03\x04.{26}[^\x00]{1,200}/data\.pkl")),
    Format("a zip archive", _starts(rb"PK\x03\x04"), "unpack it and give the weight file in it"),
    Format("a safetensors file", _is_safetensors),
    # checkpoint.proto: repeated Value{1: tag, 2: tensor or 3: map}, here its first field, tag and next field.
    Format("a MindSpore checkpoint", _starts(rb"\n[\x80-\xff]{0,9}[\x00-\x7f]\n[\x01-\x7f][ -~]+[\x12\x1a]")),
    Format("an exported Paddle model (.pdiparams)", _starts(rb"\0{16}"), "give the .pdparams file it was made from"),
    Format("a git-lfs pointer", _starts(rb"version https://git-lfs"), "fetch the file itself with `git lfs pull`"),
    Format("an HTML page", _starts(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)"), "the download went wrong"),
)


def read_file(path, limit=8 * 2**30):
    """The dict in a weight file or checkpoint, as plain values and numpy arrays.

    A file of `write_file` is compared with its digest, which is not part of the result; one without is accepted.

    Args:
        path: str or path; its extension does not matter.
        limit: bytes; a larger file is refused before it is read.

    Raises:
        CheckpointError: there is no such file, it is not a weight file, damaged, or holds more than plain data.
    """
    data = _read_bytes(Path(path), limit)
    tree = _format_of(data, path).read(data, str(path))
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, not a dict of weights")
    _check_digest(tree, path)
    return tree


def _read_bytes(path, limit):
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise CheckpointError(f"{path}: is {kind}; give the weight file itself")
        if info.st_size > limit:
            raise CheckpointError(f"{path}: has {info.st_size:,} bytes, more than the limit of {limit:,}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file{_nearest_files(path)}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    return data


def _nearest_files(path):
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    names = os.listdir(path.parent) if os.access(path.parent, os.R_OK) else []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?" if near else ""


def _format_of(data, path):
    head = data[:HEAD_BYTES]
    found = next((form for form in FORMATS if form.matches(head)), None)
    if found is None:
        raise CheckpointError(f"{path}: is not a weight file; it starts with {head[:16]!r}")
    if found.read is None:
        raise CheckpointError(f"{path}: is {found.label}; {found.hint}")
    return found


def digest_of(tree):
    """SHA-256 over the values of `tree` in order: names, types, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    safe_pickle.dump(tree, sha.update)
    return _DIGEST_FORM + sha.hexdigest()


def _check_digest(tree, path):
    """Take the digest out of `tree` and compare. It is known by its form as well: its key may be what is damaged."""
    forms = [value for value in tree.values() if isinstance(value, str) and value.startswith(_DIGEST_FORM)]
    if not forms and DIGEST not in tree:
        return
    recorded = tree.pop(DIGEST, None)
    try:
        right = recorded == digest_of(tree)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise CheckpointError(f"{path}: is damaged: digest differs; use an older checkpoint or copy the file again")


def write_file(path, tree):
    """Write `tree` so that `path` holds the whole new file or, whatever happens, still the old one.

    The file is a pickle as PASSL's checkpoints are: `paddle.load` reads it, and so does `read_file`. It is written
    under the name `.<name>.<process id>.tmp` beside `path`, flushed to the disk and renamed; only a process that is
    killed leaves that name behind. A digest is added under the key `digest`.

    Args:
        path: str or path, in a folder that exists.
        tree: dict of numpy arrays, str, int, float, bool, None, and dicts, lists and tuples of these.

    Raises:
        TypeError, ValueError: a value that cannot be stored; the text names its place in the tree.
        CheckpointError: the file cannot be written (disk full, read-only folder, ...).
    """
    if DIGEST in tree:
        raise ValueError(f"{DIGEST}: this key is kept for the file's own digest")
    path, complete = Path(path), {**tree, DIGEST: digest_of(tree)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write_through(temporary, complete)
            os.replace(temporary, path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def _write_through(path, tree):
    with open(path, "wb") as file:
        safe_pickle.dump(tree, file.write)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder):
    """A rename is on the disk only when the folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
