"""Published weights, downloaded once and kept in a folder.

An address says where its file lies: `https://host/folder/name.pth` is `<cache folder>/host/folder/name.pth`. So
`wget -x -P <cache folder> <address>` puts it there too, for machines without network, and files of one name from two
places are never confused. While it is not whole there are `<name>.part`, what has come so far; `<name>.part.version`,
the ETag or date of the file it is a part of; and `<name>.lock`, held by the one process that downloads.
"""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

from tqdm import tqdm

from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.logger import get_logger

logger = get_logger(__name__)

TRIES = 4
CHUNK_BYTES = 2**20
_SCHEMES = ("http", "https")
_PAGE = re.compile(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)")


def cache_folder():
    """Path of the folder of downloaded weights: $PASSL_XCIT_HOME/weights, or where that is not set
    $XDG_CACHE_HOME/passl_xcit/weights, or ~/.cache/passl_xcit/weights.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("PASSL_XCIT_HOME") or caches / "passl_xcit").expanduser() / "weights"


def cached_download(url, sha256="", size=None, folder=None, file_name=None, timeout=30.0, pause=1.0):
    """The path of the file at `url` in the cache folder; it is downloaded only when it is not there.

    A download that broke off is gone on with, by this process or a later one; of several processes one downloads and
    the others wait. A file that is there is compared with `size` and `sha256` every time, since hashing it takes less
    time than the reading that follows. With PASSL_XCIT_OFFLINE=1 the network is not used.

    Args:
        url: http or https address; what follows a `?` is no part of the path.
        sha256: hex digest of the file, or how it begins (published names carry the first 8 digits); "" if not known.
        size: in bytes, if known.
        folder: instead of `cache_folder()`.
        file_name: the path is `folder`/`file_name`, whatever the address; the caller keeps names of two files apart.
        timeout: seconds without an answer or a further byte after which a connection counts as broken.
        pause: seconds before the first retry; every further one waits twice as long.

    Raises:
        CheckpointError: the file cannot be had, written, or is not the published one. The text says what to do.
    """
    path = _path_of(url, Path(folder or cache_folder()), file_name)
    try:
        if not path.is_file():
            _download_alone(path, _Source(url, path, sha256, size, timeout, pause))
        elif difference := _difference(path, sha256, size):
            raise CheckpointError(f"{path}: {difference}; remove it, and it is downloaded anew from {url}")
    except OSError as error:
        what = f"{path}: cannot be read or written: {error.strerror or error}"
        raise CheckpointError(f"{what}; PASSL_XCIT_HOME can name another folder for downloads") from error
    return path


def _path_of(url, folder, file_name):
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname + (f"_{parts.port}" if parts.port else "")
    except (TypeError, ValueError):  # no host, or a port that is no number
        host = ""
    if not host or parts.scheme not in _SCHEMES or not re.fullmatch("[!-~]+", url):
        raise CheckpointError(f"{url}: expected the address of a file, which begins with http:// or https://")
    names = [file_name] if file_name else [host, *parts.path.split("/")[1:]]
    if not file_name and (len(names) == 1 or not names[-1]):
        raise CheckpointError(f"{url}: names no file, but a folder")
    return folder.joinpath(*[re.sub(r"[^\w.%+=@~-]|^\.+$", "_", name) for name in names])


def _difference(path, sha256, size):
    """How the file differs from what is known of it; "" if it does not."""
    with open(path, "rb") as file:
        head = file.read(64)
        if not head or _PAGE.match(head):
            return "is an HTML page" if head else "is empty"
        if size not in (None, path.stat().st_size):
            return f"has {path.stat().st_size} bytes, expected {size}"
        digest = hashlib.sha256(head)
        while sha256 and (chunk := file.read(CHUNK_BYTES)):
            digest.update(chunk)
    found = digest.hexdigest()[: len(sha256)]
    return f"has the sha256 {found}, expected {sha256}" if found != sha256.lower() else ""


def _download_alone(path, source):
    """Make `path` the whole file, unless another process does so first."""
    if os.environ.get("PASSL_XCIT_OFFLINE", "0") not in ("", "0"):
        raise source.refusal("PASSL_XCIT_OFFLINE is set, and the file is not there")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with open(lock, "w") as file:
        own = "" if _locked(file, path) else f".{os.getpid()}"
        if not path.is_file():
            part = path.with_name(f"{path.name}{own}.part")
            source.fetch(part)
            os.replace(part, path)
    with contextlib.suppress(OSError):  # Windows keeps it while another process waits, who then finds the file
        lock.unlink()


def _locked(file, path):
    """Wait for the lock; False where the system or the file system has none."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info(f"{path}: waiting for another process, which downloads it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        return False
    return True


def _size_of(path):
    return path.stat().st_size if path.exists() else 0


def _version_of(response):
    """What changes with the file: the ETag, unless it is a weak one, or the date; "" if there is neither."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _reason(error):
    error = getattr(error, "reason", error)
    return " ".join(str(getattr(error, "strerror", None) or error).split())


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, body, code, message, headers, url):
        if urllib.parse.urlsplit(url).scheme not in _SCHEMES:
            raise HTTPError(request.full_url, code, f"Redirection to url '{url}' is not allowed", headers, body)
        return super().redirect_request(request, body, code, message, headers, url)


class _BrokenOff(Exception):
    """What another try may mend."""


class _Source:
    """A file on a server. The arguments are those of `cached_download`, and the path where the file is to be."""

    def __init__(self, url, path, sha256, size, timeout, pause):
        self.url, self.path, self.sha256, self.size = url, path, sha256, size
        self.timeout, self.pause = timeout, pause

    def refusal(self, why, first=""):
        by_hand = f"download it by hand and save it as {self.path}, or give the path of your copy"
        return CheckpointError(f"{self.url}: {why}; {first}{by_hand}")

    def fetch(self, part):
        """Make `part` the whole file, in up to TRIES tries; one that brings a chunk or more is not counted."""
        logger.info(f"downloading {self.url} to {self.path}")
        version, failures = part.with_name(f"{part.name}.version"), 0
        while True:
            before = _size_of(part)
            try:
                self._try(part, version)
                break
            except _BrokenOff as error:
                failures = 1 if _size_of(part) >= before + CHUNK_BYTES else failures + 1
                if failures == TRIES:
                    raise self.refusal(f"gave up after {TRIES} tries: {error}", "try again later, or ") from error
                logger.warning(f"{self.url}: {error}; trying again")
            time.sleep(self.pause * 2 ** (failures - 1))
        version.unlink(missing_ok=True)
        if difference := _difference(part, self.sha256, self.size):
            part.unlink()
            raise self.refusal(f"the file that came {difference}, and was removed", "try again, or ")

    def _try(self, part, version):
        """Go on with `part`, or begin again where a change of the file since then could not be noticed."""
        known = version.read_text("latin-1") if version.is_file() else ""
        # The last byte is asked for again: a range that begins behind the end of a file is an error.
        have = max(0, _size_of(part) - 1) if known or self.sha256 else 0
        with self._answer(part, have, known) as response:
            start, total = self._extent(response, part, have, known)
            self._check_answer(response, total, part)
            with open(part, "r+b" if start else "wb") as file:
                if not start:
                    version.write_text(_version_of(response), "latin-1")
                file.seek(start)
                self._copy(response, file, start, total)
                file.flush()
                os.fsync(file.fileno())

    def _answer(self, part, have, known):
        wanted = {"Range": f"bytes={have}-", "If-Range": known} if have else {}
        wanted.update({"User-Agent": "passl_xcit", "Accept-Encoding": "identity"})
        request = urllib.request.Request(self.url, headers={key: text for key, text in wanted.items() if text})
        try:
            return urllib.request.build_opener(_WebRedirects).open(request, timeout=self.timeout)
        except HTTPError as error:
            error.close()
            answer = f"the server answers {error.code} {_reason(error)}"
            if error.code == 416:  # the file has become shorter than the part
                part.unlink()
            if error.code in (408, 416, 429) or error.code >= 500:
                raise _BrokenOff(answer) from error
            raise self.refusal(answer) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _BrokenOff(f"cannot be reached: {_reason(error)}") from error

    def _extent(self, response, part, have, known):
        """The first byte that comes, and how many the file has; None where neither the server nor the caller knows."""
        if response.status != 206:
            return 0, self.size if response.length is None else response.length
        found = re.match(r"bytes (\d+)-\d+/(\d+)$", response.headers.get("Content-Range", ""))
        start, total = map(int, found.groups()) if found else (-1, 0)
        if start != have or (known and _version_of(response) not in ("", known)):
            part.unlink(missing_ok=True)
            raise _BrokenOff("the server goes on with something else")
        return start, total

    def _check_answer(self, response, total, part):
        """Refuse, before anything is written, what cannot be the file or has no room on the disk."""
        encoding = response.headers.get("Content-Encoding", "identity")
        free = shutil.disk_usage(part.parent).free + _size_of(part)
        if "html" in response.headers.get("Content-Type", "").lower():
            raise self.refusal("an HTML page is there instead of the file")
        if encoding != "identity":
            raise self.refusal(f"the server sends it compressed ({encoding}), which was not asked for")
        if self.size not in (None, total):
            raise self.refusal(f"the file there has {total} bytes, expected {self.size}")
        if total is None and not response.chunked and not self.sha256:
            raise self.refusal("the server does not say how long the file is")
        if total is not None and total > free:
            missing = f"has {total / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free in {part.parent}"
            raise self.refusal(missing, "make room, or ")

    def _copy(self, response, file, start, total):
        style = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": None}
        with tqdm(desc=self.path.name, initial=start, total=total, **style) as progress:
            while total is None or start < total:
                try:
                    chunk = response.read1(CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _BrokenOff(f"the connection broke after {start} bytes: {_reason(error)}") from error
                if not chunk:
                    break
                file.write(chunk)
                progress.update(len(chunk))
                start += len(chunk)
        if total not in (None, start):
            raise _BrokenOff(f"the connection ended after {start} of {total} bytes")
