"""A web server on loopback, with files that can be read on from anywhere, which misbehaves when it is told to."""

import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE = 1 << 16


@dataclass
class File:
    """A file of the server. Without ranges it is always sent whole; without a tag nobody can tell its editions."""

    data: bytes
    etag: str = '"1"'
    ranges: bool = True
    modified: str = ""


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Web:
    """A running server. What `next` holds is done to the next requests, one each."""

    port: int
    scheme: str = "http"
    files: dict[str, File] = field(default_factory=dict)
    next: deque["Trick"] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/image", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    @property
    def ranges(self) -> list[str | None]:
        """Which part each request has asked for."""
        return [request.range for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        self.web.requests.append(Request(self.path, {name.lower(): value for name, value in self.headers.items()}))
        trick = self.web.next.popleft() if self.web.next else serve
        with suppress(ConnectionError):
            trick(self)

    def say(self, status: int, headers: Mapping[str, object], body: bytes = b"") -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": len(body)} | dict(headers)).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to say."""


Trick = Callable[[Handler], None]


def found(handler: Handler) -> tuple[int, dict[str, object], bytes]:
    """What an honest server answers."""
    file = handler.web.files.get(handler.path.partition("?")[0])
    if file is None:
        return 404, {}, b"nothing here"
    marks: dict[str, object] = {"ETag": file.etag or None, "Last-Modified": file.modified or None}
    asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    if asked is None or not file.ranges or condition not in (None, file.etag, file.modified or file.etag):
        return 200, marks, file.data
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start >= len(file.data):
        return 416, {"Content-Range": f"bytes */{len(file.data)}"}, b""
    place = f"bytes {start}-{len(file.data) - 1}/{len(file.data)}"
    return 206, {**marks, "Content-Range": place}, file.data[start:]


def serve(handler: Handler) -> None:
    handler.say(*found(handler))


def cut(after: int) -> Trick:
    """The connection ends after so many bytes of the body."""

    def trick(handler: Handler) -> None:
        status, headers, body = found(handler)
        handler.say(status, {**headers, "Content-Length": len(body)}, body[:after])
        handler.hang_up()

    return trick


def refuse(status: int, **headers: object) -> Trick:
    return lambda handler: handler.say(status, {name.replace("_", "-"): value for name, value in headers.items()})


def redirect(place: str, status: int = 302) -> Trick:
    return lambda handler: handler.say(status, {"Location": place})


def lie(**headers: object) -> Trick:
    """An honest answer but for these headers; a length that is too large ends with the connection."""

    def trick(handler: Handler) -> None:
        status, honest, body = found(handler)
        handler.say(status, {**honest, **{name.replace("_", "-"): value for name, value in headers.items()}}, body)
        handler.hang_up()

    return trick


def stall(after: int) -> Trick:
    """The connection stays, and nothing more comes, until `released`."""

    def trick(handler: Handler) -> None:
        status, headers, body = found(handler)
        handler.say(status, {**headers, "Content-Length": len(body)}, body[:after])
        handler.wfile.flush()
        handler.web.arrived.set()
        handler.web.released.wait(30)
        handler.wfile.write(body[after:])

    return trick


def endless(handler: Handler) -> None:
    handler.say(200, {"Content-Length": None, "Connection": "close"})
    while True:
        handler.wfile.write(bytes(_PIECE))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what is wanted here."""


@contextmanager
def web_server(certificate: Path | None = None) -> Iterator[Web]:
    """Start a server; with a certificate and its key in one file it speaks TLS."""

    class OwnHandler(Handler):
        pass

    with _Server(("127.0.0.1", 0), OwnHandler) as server:
        web = OwnHandler.web = Web(server.server_address[1])
        if certificate is not None:
            web.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield web
        finally:
            web.released.set()
            server.shutdown()
            thread.join()
