"""An HTTP server on 127.0.0.1 that has one file and answers each request as a test tells it to."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html><html><body>Not here</body></html>"


class BadServer(ThreadingHTTPServer):
    """Serves `body` under every path, by `manners`: one function of the handler per request, the last one for the rest.

    `requests` are the headers that came, as dicts with small-letter names and `path`.
    """

    daemon_threads = True

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.etag, self.manners, self.requests = body, '"first"', [fine()], []
        self.stopped, self.counting = threading.Event(), threading.Lock()

    def url(self, path="xcit/nano.pth"):
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def behave(self, *manners):
        self.manners = list(manners)

    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.counting:
            server.requests.append({"path": self.path, **{key.lower(): text for key, text in self.headers.items()}})
            manner = server.manners.pop(0) if len(server.manners) > 1 else server.manners[0]
        manner(self)

    def answer(self, status, headers, data):
        self.send_response(status)
        for name, text in headers.items():
            if text is not None:
                self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running(body):
    server = BadServer(body)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()


def fine(stop=None, **headers):
    """What a good server does: ranges, and the whole file when it is not the one asked for.

    Args:
        stop: bytes after which the connection is cut.
        headers: changes, with `_` for `-`; None takes one away.
    """

    def manner(handler):
        server = handler.server
        wanted = handler.headers.get("Range")
        if handler.headers.get("If-Range", server.etag) != server.etag:
            wanted = None
        first = int(wanted[len("bytes=") : -1]) if wanted else 0
        length, data = len(server.body), server.body[first:]
        all_headers = {"Content-Length": str(len(data)), "ETag": server.etag}
        if wanted:
            all_headers["Content-Range"] = f"bytes {first}-{length - 1}/{length}"
        all_headers.update({name.replace("_", "-"): text for name, text in headers.items()})
        handler.answer(206 if wanted else 200, all_headers, data[:stop])

    return manner


def whole(stop=None, **headers):
    """A server that knows no ranges."""

    def manner(handler):
        del handler.headers["Range"]
        fine(stop, **headers)(handler)

    return manner


def status(code, data=b"", **headers):
    def manner(handler):
        handler.answer(code, {"Content-Length": str(len(data)), **headers}, data)

    return manner


def page(code):
    return status(code, PAGE, **{"Content-Type": "text/html; charset=utf-8"})


def redirect(to):
    return status(302, Location=to)


def stall(after):
    """Stop sending after some bytes, but keep the connection."""

    def manner(handler):
        fine(after)(handler)
        handler.wfile.flush()
        handler.server.stopped.wait(20)

    return manner


def chunked(stop=None):
    """Transfer-Encoding: chunked, in two chunks; without the end if `stop` says so."""

    def manner(handler):
        body, half = handler.server.body, len(handler.server.body) // 2
        handler.protocol_version = "HTTP/1.1"
        parts = [body[:half]] if stop else [body[:half], body[half:], b""]
        data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        handler.close_connection = True
        handler.answer(200, {"Transfer-Encoding": "chunked"}, data)

    return manner


def hang_up(handler):
    """Close without a word."""
    handler.close_connection = True


def babble(handler):
    """Answer in something that is not HTTP."""
    handler.wfile.write(b"220 mail.example.org\r\n\r\n")


def wait_then_fine(event):
    """Send half, wait until the test sets `event`, send the rest."""

    def manner(handler):
        body, half = handler.server.body, len(handler.server.body) // 2
        handler.answer(200, {"Content-Length": str(len(body)), "ETag": handler.server.etag}, body[:half])
        handler.wfile.flush()
        event.wait(20)
        handler.wfile.write(body[half:])

    return manner
