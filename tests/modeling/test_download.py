"""Downloads from a server that misbehaves: the whole file, or one line that says what to do, and never a half file."""

import hashlib
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import bad_server as bad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.modeling import download
from passl_xcit.modeling.download import cache_folder, cached_download
from passl_xcit.utils.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
BODY = np.random.default_rng(0).bytes(200_003)
OTHER = np.random.default_rng(1).bytes(150_001)
SHA256 = hashlib.sha256(BODY).hexdigest()
HALF = 100_000


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """The cache is in the test's folder; nothing of this machine's settings counts."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "PASSL_XCIT_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("PASSL_XCIT_HOME", str(tmp_path / "home"))


@pytest.fixture
def server():
    with bad.running(BODY) as running:
        yield running


@pytest.fixture
def path(server):
    """Where the server's file is to be."""
    return cache_folder() / f"127.0.0.1_{server.server_port}" / "xcit" / "nano.pth"


def fetch(server, **options):
    return cached_download(server.url(), **{"timeout": 5.0, "pause": 0.001, **options})


def refusal(server, **options):
    with pytest.raises(CheckpointError) as caught:
        fetch(server, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def half_of(path):
    return path.with_name(f"{path.name}.part")


def names_beside(path):
    return sorted(found.name for found in path.parent.iterdir())


def ranges(server):
    return [request.get("range") for request in server.requests]


class TestTheCache:
    def test_a_file_is_downloaded_once_and_nothing_else_is_left(self, server, path):
        assert fetch(server) == path
        assert path.read_bytes() == BODY
        assert names_beside(path) == ["nano.pth"]
        assert fetch(server) == path
        assert len(server.requests) == 1

    def test_a_file_put_there_by_hand_is_found_without_the_network(self, server, path, monkeypatch):
        monkeypatch.setenv("PASSL_XCIT_OFFLINE", "1")
        path.parent.mkdir(parents=True)
        path.write_bytes(BODY)
        assert fetch(server, sha256=SHA256, size=len(BODY)) == path
        assert not server.requests

    def test_one_log_line_says_what_from_where_and_to_where(self, server, path, caplog):
        with caplog.at_level(logging.INFO, "passl"):
            fetch(server)
        assert [record.getMessage() for record in caplog.records] == [f"downloading {server.url()} to {path}"]

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"PASSL_XCIT_HOME": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b/weights"),
            ({"PASSL_XCIT_HOME": "~/b"}, "/home/me/b/weights"),
            ({"XDG_CACHE_HOME": "/c"}, "/c/passl_xcit/weights"),
            ({"PASSL_XCIT_HOME": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/passl_xcit/weights"),
            ({}, "/home/me/.cache/passl_xcit/weights"),
        ],
    )
    def test_the_environment_names_the_folder(self, variables, expected, monkeypatch):
        monkeypatch.delenv("PASSL_XCIT_HOME")
        monkeypatch.setenv("HOME", "/home/me")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_folder() == Path(expected)

    def test_folder_and_file_name_can_be_given(self, server, tmp_path):
        assert fetch(server, folder=tmp_path / "mine") == tmp_path / "mine" / f"127.0.0.1_{server.server_port}" / (
            "xcit/nano.pth"
        )
        assert fetch(server, folder=tmp_path / "mine", file_name="n.pth") == tmp_path / "mine" / "n.pth"

    def test_files_of_one_name_from_two_places_are_two_files(self, server):
        first = cached_download(server.url("a/w.pth"))
        server.body = OTHER
        second = cached_download(server.url("b/w.pth"))
        assert (first.read_bytes(), second.read_bytes()) == (BODY, OTHER)


class TestTheFileItself:
    @pytest.mark.parametrize("sha256", [SHA256, SHA256[:8], SHA256.upper(), ""])
    def test_the_digest_may_be_whole_or_its_beginning(self, server, sha256):
        assert fetch(server, sha256=sha256, size=len(BODY)).read_bytes() == BODY

    def test_a_wrong_digest_removes_what_came(self, server, path):
        text = refusal(server, sha256="0badcafe")
        assert (
            f"{server.url()}: the file that came has the sha256 {SHA256[:8]}, expected 0badcafe, and was removed; try"
            in text
        )
        assert f"; try again, or download it by hand and save it as {path}, or give the path of your copy" in text
        assert names_beside(path) == ["nano.pth.lock"]

    @pytest.mark.parametrize(
        ("content", "known", "text"),
        [
            (OTHER, {"sha256": SHA256[:8]}, f"has the sha256 {hashlib.sha256(OTHER).hexdigest()[:8]}, expected"),
            (OTHER, {"size": len(BODY)}, "has 150001 bytes, expected 200003"),
            (bad.PAGE, {}, "is an HTML page"),
            (b"", {}, "is empty"),
        ],
    )
    def test_a_file_that_is_there_but_another_is_named_and_left(self, server, path, content, known, text):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        message = refusal(server, **known)
        assert message.startswith(f"{path}: {text}")
        assert message.endswith(f"; remove it, and it is downloaded anew from {server.url()}")
        assert path.read_bytes() == content
        assert not server.requests

    def test_a_size_that_is_not_the_servers_is_refused_before_anything_comes(self, server, path):
        assert "the file there has 200003 bytes, expected 7" in refusal(server, size=7)
        assert names_beside(path) == ["nano.pth.lock"]

    @pytest.mark.parametrize("known", [{"size": len(BODY)}, {"sha256": SHA256}])
    def test_a_length_shorter_than_the_file_is_noticed(self, server, path, known):
        server.behave(bad.fine(Content_Length="1000"))
        assert "expected" in refusal(server, **known)
        assert not path.exists()

    def test_a_file_of_unknown_length_is_refused(self, server, path):
        server.behave(bad.fine(Content_Length=None))
        assert "the server does not say how long the file is" in refusal(server)
        assert not path.exists()

    @pytest.mark.parametrize("known", [{"size": len(BODY)}, {"sha256": SHA256}])
    def test_unless_its_size_or_digest_is_known(self, server, known):
        server.behave(bad.fine(Content_Length=None))
        assert fetch(server, **known).read_bytes() == BODY

    def test_a_file_in_chunks_says_itself_where_it_ends(self, server):
        server.behave(bad.chunked())
        assert fetch(server).read_bytes() == BODY

    def test_a_file_in_chunks_without_the_last_is_not_whole(self, server, path):
        server.behave(bad.chunked(stop=True))
        assert "the connection broke after" in refusal(server)
        assert not path.exists()

    def test_an_empty_file_is_refused(self, server, path):
        server.behave(bad.status(200))
        assert "the file that came is empty" in refusal(server)
        assert not path.exists()


class TestBrokenDownloads:
    def test_a_cut_connection_is_gone_on_with_where_it_stopped(self, server):
        server.behave(bad.fine(stop=HALF), bad.fine())
        assert fetch(server).read_bytes() == BODY
        assert ranges(server) == [None, f"bytes={HALF - 1}-"]
        assert server.requests[1]["if-range"] == '"first"'

    def test_a_server_that_sends_little_each_time_is_asked_as_long_as_it_helps(self, server, monkeypatch):
        monkeypatch.setattr(download, "CHUNK_BYTES", 10_000)
        server.behave(bad.fine(stop=20_000))
        assert fetch(server).read_bytes() == BODY
        assert len(server.requests) == 11

    def test_a_connection_cut_every_time_ends_in_one_line_and_the_next_run_goes_on(self, server, path):
        server.behave(bad.fine(stop=1000))
        text = refusal(server)
        assert "gave up after 4 tries: the connection ended after 3997 of 200003 bytes; try again later, or" in text
        assert not path.exists()
        assert half_of(path).read_bytes() == BODY[:3997]
        server.behave(bad.fine())
        assert fetch(server).read_bytes() == BODY
        assert ranges(server)[-1] == "bytes=3996-"

    def test_a_length_longer_than_the_file_never_makes_a_file(self, server, path):
        server.behave(bad.whole(Content_Length="200004"))
        assert "gave up after 4 tries: the connection ended after 200003 of 200004 bytes; " in refusal(server)
        assert not path.exists()

    def test_a_half_file_that_is_whole_already_brings_no_error(self, server, path):
        server.behave(bad.whole(Content_Length="200004"))
        refusal(server)
        assert half_of(path).read_bytes() == BODY
        server.behave(bad.fine())
        assert fetch(server).read_bytes() == BODY
        assert ranges(server)[-1] == "bytes=200002-"

    def test_a_server_without_ranges_sends_all_of_it_again(self, server):
        server.behave(bad.whole(stop=HALF), bad.whole())
        assert fetch(server).read_bytes() == BODY
        assert ranges(server)[1] == f"bytes={HALF - 1}-"

    @pytest.mark.parametrize("extent", ["bytes 0-200002/200003", "bytes 99999-200002/*", "lines 1-2/3", None])
    def test_a_wrong_content_range_begins_again(self, server, extent):
        server.behave(bad.fine(stop=HALF), bad.fine(Content_Range=extent), bad.fine())
        assert fetch(server).read_bytes() == BODY
        assert ranges(server) == [None, f"bytes={HALF - 1}-", None]

    def test_a_file_changed_meanwhile_comes_anew(self, server):
        server.behave(bad.fine(stop=HALF), change_file, bad.fine())
        assert fetch(server).read_bytes() == OTHER
        assert [request.get("if-range") for request in server.requests] == [None, '"first"', '"second"']

    def test_even_where_the_server_goes_on_with_another_version(self, server):
        server.behave(bad.fine(stop=HALF), bad.fine(ETag='"second"'), bad.fine())
        assert fetch(server).read_bytes() == BODY
        assert ranges(server) == [None, f"bytes={HALF - 1}-", None]

    def test_a_file_shorter_than_the_half_file_comes_anew(self, server):
        server.behave(bad.fine(stop=HALF), bad.status(416), bad.fine())
        assert fetch(server).read_bytes() == BODY
        assert ranges(server) == [None, f"bytes={HALF - 1}-", None]

    @pytest.mark.parametrize(
        ("headers", "known", "asked"),
        [
            ({"ETag": None}, {}, [None, None]),
            ({"ETag": 'W/"weak"'}, {}, [None, None]),
            ({"ETag": None}, {"sha256": SHA256[:8]}, [None, f"bytes={HALF - 1}-"]),
            ({"ETag": None, "Last_Modified": "Mon, 13 Feb 2023 10:00:00 GMT"}, {}, [None, f"bytes={HALF - 1}-"]),
        ],
    )
    def test_it_is_gone_on_with_only_where_a_change_would_be_noticed(self, server, headers, known, asked):
        server.etag = headers.get("Last_Modified")
        server.behave(bad.fine(stop=HALF, **headers), bad.fine(**headers))
        assert fetch(server, **known).read_bytes() == BODY
        assert ranges(server) == asked

    @pytest.mark.parametrize(
        "manner", [bad.status(503), bad.status(429), bad.status(500), bad.page(502), bad.hang_up, bad.babble]
    )
    def test_a_server_in_trouble_is_asked_again(self, server, manner):
        server.behave(manner, manner, bad.fine())
        assert fetch(server).read_bytes() == BODY

    def test_a_server_in_trouble_for_ever_is_not(self, server):
        server.behave(bad.page(503))
        assert f"{server.url()}: gave up after 4 tries: the server answers 503 Service Unavailable; " in refusal(server)
        assert len(server.requests) == 4

    def test_retries_wait_longer_each_time(self, server, monkeypatch):
        waits = []
        monkeypatch.setattr(download.time, "sleep", waits.append)
        server.behave(bad.status(503))
        refusal(server, pause=1.0)
        assert waits == [1.0, 2.0, 4.0]

    def test_a_server_that_stops_sending_is_left_and_asked_for_the_rest(self, server):
        server.behave(bad.stall(HALF), bad.fine())
        start = time.monotonic()
        assert fetch(server, timeout=0.2).read_bytes() == BODY
        assert time.monotonic() - start < 5
        assert ranges(server)[1] == f"bytes={HALF - 1}-"

    def test_a_server_that_never_goes_on_ends_in_one_line(self, server):
        server.behave(bad.stall(1000))
        assert "the connection broke after 3997 bytes: timed out; " in refusal(server, timeout=0.1)


def change_file(handler):
    handler.server.body, handler.server.etag = OTHER, '"second"'
    bad.fine(stop=1000)(handler)


class TestWhatIsNotTheFile:
    @pytest.mark.parametrize(
        ("manner", "text"),
        [
            (bad.page(404), "the server answers 404 Not Found"),
            (bad.page(403), "the server answers 403 Forbidden"),
            (bad.page(401), "the server answers 401 Unauthorized"),
            (bad.page(200), "an HTML page is there instead of the file"),
            (bad.status(200, bad.PAGE), "the file that came is an HTML page"),
            (bad.fine(Content_Encoding="gzip"), "the server sends it compressed (gzip), which was not asked for"),
        ],
    )
    def test_it_is_refused_at_once_with_the_way_out(self, server, path, manner, text):
        server.behave(manner)
        message = refusal(server)
        assert message.startswith(f"{server.url()}: {text}")
        assert message.endswith(f" download it by hand and save it as {path}, or give the path of your copy")
        assert len(server.requests) == 1
        assert names_beside(path) == ["nano.pth.lock"]

    def test_a_page_between_two_parts_leaves_the_half_file(self, server, path):
        server.behave(bad.fine(stop=HALF), bad.page(200), bad.fine())
        refusal(server)
        assert half_of(path).read_bytes() == BODY[:HALF]
        assert fetch(server).read_bytes() == BODY

    def test_no_compression_is_asked_for_and_who_asks_is_said(self, server):
        fetch(server)
        assert server.requests[0]["accept-encoding"] == "identity"
        assert server.requests[0]["user-agent"] == "passl_xcit"


class TestTheNetwork:
    def test_a_redirect_is_followed_and_ranges_with_it(self, server, path):
        there = bad.redirect(server.url("elsewhere/n.pth"))
        server.behave(there, bad.fine(stop=HALF), there, bad.fine())
        assert fetch(server) == path
        assert path.read_bytes() == BODY
        assert [request["path"] for request in server.requests] == ["/xcit/nano.pth", "/elsewhere/n.pth"] * 2

    @pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/w.pth", "data:,weights"])
    def test_a_redirect_to_anything_but_the_web_is_refused(self, server, path, target, monkeypatch):
        monkeypatch.setenv("ftp_proxy", server.url(""))
        server.behave(bad.redirect(target), bad.fine())
        text = refusal(server)
        assert "the server answers 302 " in text
        assert f"Redirection to url '{target}' is not allowed; download it by hand" in text
        assert len(server.requests) == 1
        assert not path.exists()

    def test_a_redirect_to_no_address_is_one_line(self, server):
        server.behave(bad.redirect("http://[x/w.pth"))
        assert "cannot be reached: Invalid IPv6 URL; " in refusal(server)

    def test_redirects_in_a_circle_end(self, server):
        server.behave(bad.redirect(server.url()))
        assert "would lead to an infinite loop" in refusal(server)

    def test_without_network_the_text_names_the_place_for_a_file_from_elsewhere(self, server, path):
        server.shutdown()
        server.server_close()
        text = refusal(server)
        assert (
            f"{server.url()}: gave up after 4 tries: cannot be reached: Connection refused; try again later, or" in text
        )
        assert f" and save it as {path}, or give" in text

    @pytest.mark.parametrize("value", ["1", "true"])
    def test_passl_xcit_offline_forbids_it(self, server, path, value, monkeypatch):
        monkeypatch.setenv("PASSL_XCIT_OFFLINE", value)
        text = refusal(server)
        assert "PASSL_XCIT_OFFLINE is set, and the file is not there; download it by hand and save it as" in text
        assert str(path) in text
        assert not server.requests
        assert not path.parent.exists()

    @pytest.mark.parametrize("value", ["", "0"])
    def test_unless_it_is_0(self, server, value, monkeypatch):
        monkeypatch.setenv("PASSL_XCIT_OFFLINE", value)
        assert fetch(server).read_bytes() == BODY

    def test_the_proxy_of_the_environment_is_used(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", server.url(""))
        assert cached_download("http://weights.invalid/w.pth").read_bytes() == BODY
        assert server.requests[0]["path"] == "http://weights.invalid/w.pth"


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("https://dl.example.org/xcit/nano_224.pth", "dl.example.org/xcit/nano_224.pth"),
            ("https://Example.ORG:8443/w.pth?download=1#top", "example.org_8443/w.pth"),
            ("https://e.org/a/../../../w.pth", "e.org/a/_/_/_/w.pth"),
            ("https://e.org/..%2f..%2fw.pth", "e.org/..%2f..%2fw.pth"),
            ("https://e.org/a\\b:c.pth", "e.org/a_b_c.pth"),
            ("https://e.org/..", "e.org/_"),
        ],
    )
    def test_the_address_says_where_the_file_lies(self, url, expected, tmp_path):
        place = tmp_path / expected
        place.parent.mkdir(parents=True)
        place.write_bytes(BODY)
        assert cached_download(url, folder=tmp_path) == place

    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
    def test_no_address_leads_out_of_the_folder(self, text):
        folder = Path("/cache/weights")
        for make in (
            lambda: download._path_of(f"http://h/{text}", folder, None),
            lambda: download._path_of("http://h", folder, text),
        ):
            try:
                path = make()
            except CheckpointError as error:
                assert "names no file" in str(error)
            else:
                assert folder in Path(os.path.normpath(path)).parents

    @pytest.mark.parametrize(
        "url",
        ["file:///etc/passwd", "ftp://e.org/w.pth", "w.pth", "C:\\w.pth", "http:///w.pth", "http://e.org:x/w.pth"]
        + ["http://[e/w.pth", "http://e.org/a b.pth", "http://e.org/w.pth\nHost: x", "http://e.org/\u00e9.pth", ""],
    )
    def test_what_is_no_web_address_is_refused(self, url):
        with pytest.raises(CheckpointError, match="expected the address of a file, which begins with http:// or http"):
            cached_download(url)

    @pytest.mark.parametrize("url", ["https://e.org", "https://e.org/", "https://e.org/folder/", "https://e.org?a=b"])
    def test_an_address_without_a_file_name_is_refused(self, url):
        with pytest.raises(CheckpointError, match="names no file, but a folder"):
            cached_download(url)


class TestTheDisk:
    def test_a_folder_that_cannot_be_made_is_one_line(self, server, tmp_path):
        (tmp_path / "home").write_text("a file, not a folder")
        text = refusal(server)
        assert text.startswith(f"{tmp_path}/home/weights/")
        assert ": cannot be read or written: Not a directory; PASSL_XCIT_HOME can name another folder" in text

    @pytest.mark.skipif(os.name != "posix", reason="a matter of POSIX permissions")
    def test_a_read_only_folder_is_one_line(self, server):
        user = os.geteuid()
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o555)
            os.seteuid(user or 65534)  # root may write everywhere, so be nobody
            try:
                text = refusal(server, folder=folder, file_name="w.pth")
            finally:
                os.seteuid(user)
        assert text.startswith(f"{folder}/w.pth: cannot be read or written: Permission denied; PASSL_XCIT_HOME can")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
    def test_a_disk_that_becomes_full_is_one_line(self, server, path):
        path.parent.mkdir(parents=True)
        half_of(path).symlink_to("/dev/full")
        assert f"{path}: cannot be read or written: No space left on device; " in refusal(server)
        assert not path.exists()

    def test_a_file_without_room_is_refused_before_anything_comes(self, server, path, monkeypatch):
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
        text = refusal(server)
        assert f"has 0.2 MB, but only 0.1 MB are free in {path.parent}; make room, or download it by hand" in text
        assert names_beside(path) == ["nano.pth.lock"]

    def test_what_has_come_needs_no_room_again(self, server, monkeypatch):
        server.behave(bad.fine(stop=HALF), bad.fine())
        room = iter([len(BODY), len(BODY) - HALF])
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(room)))
        assert fetch(server).read_bytes() == BODY


PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from passl_xcit.modeling.download import cached_download
print("has", cached_download(sys.argv[1]))
"""


def start(server):
    command = [sys.executable, "-u", "-c", PROGRAM, server.url()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class TestProcesses:
    def test_what_a_killed_process_had_is_gone_on_with(self, server, path):
        server.behave(bad.wait_then_fine(server.stopped), bad.fine())
        with start(server) as process:
            wait_for(lambda: half_of(path).exists() and half_of(path).stat().st_size > 0)
            process.kill()
        assert not path.exists()
        had = half_of(path).stat().st_size
        assert fetch(server).read_bytes() == BODY
        assert ranges(server) == [None, f"bytes={had - 1}-"]
        assert names_beside(path) == ["nano.pth"]

    def test_of_two_at_once_one_downloads_and_the_other_waits(self, server, path):
        go_on = threading.Event()
        server.behave(bad.wait_then_fine(go_on))
        with start(server) as first:
            wait_for(lambda: server.requests)
            with start(server) as second:
                assert second.stdout.readline() == f"{path}: waiting for another process, which downloads it\n"
                go_on.set()
                assert second.stdout.read() == f"has {path}\n"
            assert first.stdout.read() == f"downloading {server.url()} to {path}\nhas {path}\n"
        assert path.read_bytes() == BODY
        assert len(server.requests) == 1
        assert names_beside(path) == ["nano.pth"]

    def test_without_locks_every_process_has_its_own_half_file(self, server, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "fcntl", None)
        server.behave(bad.fine(stop=1000))
        refusal(server)
        assert f"nano.pth.{os.getpid()}.part" in names_beside(path)
        server.behave(bad.fine())
        assert fetch(server).read_bytes() == BODY
        assert names_beside(path) == ["nano.pth"]

    def test_an_interrupt_passes_and_leaves_the_half_file(self, server, path):
        main = threading.get_ident()

        def interrupt(handler):
            bad.fine(stop=HALF)(handler)
            handler.wfile.flush()
            wait_for(lambda: half_of(path).exists() and half_of(path).stat().st_size > 0)
            signal.pthread_kill(main, signal.SIGINT)
            handler.server.stopped.wait(20)

        server.behave(interrupt, bad.fine())
        with pytest.raises(KeyboardInterrupt):
            fetch(server)
        assert half_of(path).exists()
        assert not path.exists()
        assert fetch(server).read_bytes() == BODY
        assert ranges(server)[1] is not None


class TestTheBar:
    def test_a_terminal_shows_the_name_the_bytes_and_the_rate(self, server, monkeypatch):
        fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
        server.behave(bad.fine(stop=HALF), bad.fine())
        master, slave = os.openpty()
        with open(slave, "w") as terminal, open(master, "rb", buffering=0) as screen:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
            monkeypatch.setattr(sys, "stderr", terminal)
            fetch(server)
            print("end", file=terminal, flush=True)  # so that there is something to read in any case
            shown = screen.read(10_000).decode()
        assert re.search(r"nano.pth:  50%.* 97.7k/195k .*B/s", shown)
        assert re.search(r"nano.pth: 100%.* 195k/195k .*B/s", shown)

    def test_nothing_else_does(self, server, capfd):
        fetch(server)
        assert capfd.readouterr() == ("", "")
