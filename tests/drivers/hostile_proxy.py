"""A proxy in front of a real server, which does to chosen requests what networks and servers do at their worst."""

import http.client
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE = 1 << 16
_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


class Cut(Exception):
    """The connection ends here."""


@dataclass
class Exchange:
    """A request, and what becomes of it."""

    handler: "_Handler"
    upstream: int

    def pass_on(
        self,
        *,
        stop_after: int | None = None,
        damaged: bool = False,
        begun: Callable[[], object] = lambda: None,
        changed: Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]] | None = None,
        answer_ends_after: int | None = None,
        lose_answer: bool = False,
    ) -> None:
        """Send the request to the server and its answer back, with what is to happen to them on the way.

        `begun` is called when the first bytes of the body are there.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            self._send(connection, stop_after, damaged, begun)
            answer = connection.getresponse()
            body = answer.read()
            if lose_answer:
                raise Cut
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            if changed is not None:
                headers, body = changed(headers, body)
            self.answer(answer.status, body, headers, ends_after=answer_ends_after)
        finally:
            connection.close()

    def answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, ends_after: int | None = None
    ) -> None:
        """Answer in the server's place."""
        given = {name.lower(): value for name, value in (headers or {}).items()}
        self.handler.send_response_only(status)
        for name, value in ({"content-length": str(len(body))} | given).items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        if self.handler.command != "HEAD":
            self.handler.wfile.write(body[:ends_after])
        if ends_after is not None and ends_after < len(body):
            raise Cut

    def refuse(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Read the request to its end, and answer with an error."""
        for _ in self.body():
            pass
        self.answer(status, b"", headers)

    def body(self) -> Iterator[bytes]:
        """The body of the request."""
        reader = self.handler.rfile
        if self.handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(reader.readline().split(b";")[0], 16):
                yield reader.read(size)
                reader.readline()
            reader.readline()
            return
        left = int(self.handler.headers.get("Content-Length", 0))
        while left:
            piece = reader.read1(min(left, _PIECE))
            if not piece:
                raise Cut
            left -= len(piece)
            yield piece

    def _send(
        self,
        connection: http.client.HTTPConnection,
        stop_after: int | None,
        damaged: bool,
        begun: Callable[[], object],
    ) -> None:
        connection.putrequest(self.handler.command, self.handler.path, skip_host=True, skip_accept_encoding=True)
        chunked = "chunked" in self.handler.headers.get("Transfer-Encoding", "")
        for name, value in self.handler.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                connection.putheader(name, value)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        if isinstance(self.handler.connection, ssl.SSLSocket):
            connection.putheader("X-Forwarded-Proto", "https")
        connection.endheaders()
        done = 0
        for piece in self.body():
            if not done:
                begun()
                piece = bytes([piece[0] ^ damaged]) + piece[1:]
            if stop_after is not None and done + len(piece) > stop_after:
                connection.send(piece[: stop_after - done])
                raise Cut
            done += len(piece)
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            connection.send(b"0\r\n\r\n")


Action = Callable[[Exchange], object]


@dataclass
class Rule:
    """What is done to the next requests of a kind."""

    method: str
    path: str
    action: Action
    times: int


@dataclass
class HostileProxy:
    """A running proxy. Requests that no rule is for are passed on as they are."""

    port: int
    rules: list[Rule] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def on(self, method: str, path: str, action: Action, *, times: int = 1) -> None:
        """Do something to the next `times` requests of that method whose path and query hold that expression."""
        self.rules.append(Rule(method, path, action, times))

    @property
    def unused(self) -> list[str]:
        """The rules that met too few requests."""
        return [f"{rule.method} {rule.path}" for rule in self.rules if rule.times > 0]

    def action(self, method: str, path: str) -> Action:
        """What is to be done to a request."""
        with self.lock:
            for rule in self.rules:
                if rule.times > 0 and rule.method == method and re.search(rule.path, path):
                    rule.times -= 1
                    return rule.action
        return Exchange.pass_on


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: HostileProxy
    upstream: int

    def handle_any(self) -> None:
        try:
            self.proxy.action(self.command, self.path)(Exchange(self, self.upstream))
        except (Cut, OSError, http.client.HTTPException):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - the library's names

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to say."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what is wanted here."""


@contextmanager
def hostile_proxy(upstream: int, *, certificate: Path | None = None) -> Iterator[HostileProxy]:
    """Start a proxy in front of a port; with a certificate it speaks TLS."""

    class Handler(_Handler):
        pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        proxy = HostileProxy(server.server_address[1])
        Handler.proxy, Handler.upstream = proxy, upstream
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


# What the proxy can do to an exchange


def refused(status: int, **headers: str) -> Action:
    """Answer with that status, and with these headers, whose names have dashes for underscores."""
    return lambda exchange: exchange.refuse(status, {name.replace("_", "-"): value for name, value in headers.items()})


def cut(exchange: Exchange) -> None:
    """Cut the connection while the request is on its way."""
    exchange.pass_on(stop_after=100)


def lost(exchange: Exchange) -> None:
    """Pass the request on, and lose the answer."""
    exchange.pass_on(lose_answer=True)


def damaged(exchange: Exchange) -> None:
    """Change the request's body on its way."""
    exchange.pass_on(damaged=True)


def never_there(exchange: Exchange) -> None:
    """Cut the connection before anything has arrived."""
    raise Cut


def saying(**more: str) -> Action:
    """The server's answer, with other headers."""
    return lambda exchange: exchange.pass_on(changed=lambda headers, body: ({**headers, **more}, body))


def make_certificate(folder: Path) -> Path:
    """A certificate for loopback that signs itself, with its key, in one file."""
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / "both.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    both.write_text(key.read_text() + certificate.read_text())
    return both
