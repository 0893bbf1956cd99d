"""Reading and writing weight files of every kind.

A file is known by its first bytes, never by its extension, and read by one reader only: nothing is tried in turn.
"""

import difflib
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from passl_xcit.modeling.formats import (
    mindspore_file,
    paddle_pickle,
    safetensors_file,
    torch_legacy,
    torch_writer,
    torch_zip,
)
from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.new_file import replace_file
from passl_xcit.utils.shipped import shipped

HEAD_BYTES = 512
DIGEST = "digest"
_DIGEST_FORM = "sha256:"


class Format(NamedTuple):
    """A kind of file: `matches(head)` knows it by its first bytes; without `read(data, name)` it is refused."""

    label: str
    matches: Callable[[bytes], bool]
    hint: str = ""
    read: Optional[Callable[[bytes, str], object]] = None


def _starts(pattern):
    return re.compile(pattern, re.DOTALL).match


def _is_safetensors(head):
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27


FORMATS = (
    # The legacy torch file is a pickle as well, which starts with this magic number.
    Format("a torch file from before torch 1.6", _starts(rb"\x80\x02\x8a\nl\xfc\x9cF"), read=torch_legacy.read),
    Format("a Paddle file", _starts(rb"\x80[\x02-\x05]"), read=paddle_pickle.read),
    Format("a torch file", _starts(rb"PK\x03\x04"), read=torch_zip.read),
    Format("a safetensors file", _is_safetensors, read=safetensors_file.read),
    # Its first field, and in that the tag and the next field: see `mindspore_file`.
    Format(
        "a MindSpore checkpoint",
        _starts(rb"\n[\x80-\xff]{0,9}[\x00-\x7f]\n[\x01-\x7f][ -~]+[\x12\x1a]"),
        read=mindspore_file.read,
    ),
    Format("an encrypted MindSpore checkpoint", _starts(rb"[\xd8-\xdb]\^:\x7f"), "save it without enc_key"),
    Format("an exported Paddle model (.pdiparams)", _starts(rb"\0{16}"), "give the .pdparams file it was made from"),
    Format("a git-lfs pointer", _starts(rb"version https://git-lfs"), "fetch the file itself with `git lfs pull`"),
    Format("an HTML page", _starts(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)"), "the download went wrong"),
)


def read_file(path, limit=8 * 2**30):
    """The dict in a weight file or checkpoint, as plain values and numpy arrays.

    A file of `write_file` is compared with its digest, which is not part of the result; one without is accepted.

    Args:
        path: str or path; its extension does not matter. The demo's `weights/...` are found everywhere
            (`utils/shipped.py`).
        limit: bytes; a larger file is refused before it is read.

    Raises:
        CheckpointError: there is no such file, it is not a weight file, damaged, or holds more than plain data.
    """
    data = _read_bytes(_as_path(path), limit)
    tree = _format_of(data, path).read(data, str(path))
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, not a dict of weights")
    _check_digest(tree, path)
    return tree


def _as_path(path):
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise CheckpointError(f"{path!r} is not the path of a weight file")
    return shipped(path)


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
    paddle_pickle.dump(tree, sha.update)
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


def write_file(path, tree, before_rename=None):
    """Write `tree` so that `path` holds the whole new file or, whatever happens, still the old one.

    The file is a pickle as PASSL's checkpoints are: `paddle.load` reads it, and so does `read_file`. A digest is
    added under the key `digest`.

    Args:
        path: str or path, in a folder that exists.
        tree: dict of numpy arrays, str, int, float, bool, None, and dicts, lists and tuples of these.
        before_rename: see `replace_file`.

    Raises:
        TypeError, ValueError: a value that cannot be stored; the text names its place in the tree.
        CheckpointError: the file cannot be written (disk full, read-only folder, ...).
    """
    if DIGEST in tree:
        raise ValueError(f"{DIGEST}: this key is kept for the file's own digest")
    complete = {**tree, DIGEST: digest_of(tree)}
    replace_file(path, lambda file: paddle_pickle.dump(complete, file.write), before_rename)


def write_torch(path, tree):
    """As `write_file`, a file that `torch.load(path, weights_only=True)` reads: arrays become tensors."""
    replace_file(path, lambda file: torch_writer.write(tree, file))


def write_safetensors(path, arrays, metadata=None):
    """As `write_file`, {name: array} in the safetensors format; `metadata` are texts, without it {"format": "pt"}."""
    replace_file(path, lambda file: safetensors_file.write(arrays, file, metadata or {"format": "pt"}))


def write_weights(path, arrays, wrapper=None):
    """Write {name: array} in the format that the extension of `path` stands for.

    Args:
        path: str or path; .pdparams is Paddle's format, .pth, .pt and .bin are torch's, or .safetensors.
        arrays: {name: numpy array}.
        wrapper: a key, such as "model" or "state_dict": the file then holds a dict with the weights under it.

    Raises:
        TypeError, ValueError: as `write_file`.
        CheckpointError: another extension, a wrapper that the format cannot hold, or as `write_file`.
    """
    write = _WRITERS.get(Path(path).suffix)
    if write is None:
        raise CheckpointError(f"{path}: weights are written as .pdparams, .safetensors or .pth (.pt, .bin)")
    if wrapper and write is write_safetensors:
        raise CheckpointError(f"{path}: a safetensors file holds tensors only, nothing under a key '{wrapper}'")
    write(path, {wrapper: arrays} if wrapper else arrays)


_WRITERS = {
    ".pdparams": write_file,
    ".pth": write_torch,
    ".pt": write_torch,
    ".bin": write_torch,
    ".safetensors": write_safetensors,
}
