"""One answer from the web: redirects followed as far as they are safe, faults in planvirt's words, and no endless wait.

TLS is verified against certifi's authorities, or those that SSL_CERT_FILE or SSL_CERT_DIR name; HTTPS_PROXY and
NO_PROXY count, except that this machine itself is never asked through a proxy.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from drivers.errors import DriverError, NotFound, Transient
from planvirt.deadline import Deadline
from planvirt.web import AddressRefused, check_address, is_loopback, shown

if TYPE_CHECKING:
    from types import TracebackType

    import httpx

PATIENCE = 30.0  # seconds without a byte
_CONNECT = 8.0
_GLANCE = 0.2
_MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429}


@contextmanager
def answer(
    url: str, headers: Mapping[str, str], deadline: Deadline, *, patience: float = PATIENCE
) -> "Iterator[httpx.Response]":
    """The answer to a GET, whatever its status, with its body still to be read. Its faults are told as of `url`."""
    place = url
    for _ in range(_MOST_REDIRECTS + 1):
        with _Line(deadline) as line, _translated(url, deadline, patience), _client(place, patience) as client:
            request = client.build_request("GET", place, headers=headers, extensions={"trace": line.hear})
            response = client.send(request, stream=True)
            with contextlib.closing(response):
                if response.status_code not in _REDIRECTS:
                    yield response
                    return
                place = redirected(url, place, response.headers.get("Location", ""))
    raise DriverError(
        f"cannot fetch {shown(url)}",
        details=f"it leads on more than {_MOST_REDIRECTS} times",
        resolution="name a better address",
    )


def refused(url: str, response: "httpx.Response") -> DriverError:
    """What an answer that brings no file means."""
    brief, status = f"cannot fetch {shown(url)}", response.status_code
    details = f"the server says {status} {response.reason_phrase}".rstrip()
    if (place := str(response.url)) != url:
        details += f", for {shown(place)}"
    if status in _PASSING or status >= 500:
        wait = response.headers.get("Retry-After", "").strip()
        return Transient(brief, details=f"{details}, and to come back in {wait} s" if wait.isdecimal() else details)
    if status in (404, 410):
        return NotFound(brief, details=details, resolution="check the address; its publisher may have moved the file")
    if status in (401, 403):
        resolution = "planvirt fetches without a password: use a public address, or keep the image in a store"
        return DriverError(brief, details=details, resolution=resolution)
    return DriverError(brief, details=details, resolution="check the address")


def redirected(url: str, place: str, location: str) -> str:
    """Where an answer leads to, if it may: not to what is not encrypted, and from outside not to this machine."""
    import httpx

    brief = f"cannot fetch {shown(url)}"
    try:
        there = httpx.URL(place).join(location)
    except (httpx.InvalidURL, ValueError) as error:
        details = "it leads to what is no address"
        raise DriverError(brief, details=details, resolution="name a better address") from error
    found = str(there.copy_with(fragment=None))
    try:
        check_address(found)
    except AddressRefused as error:
        details = f"it leads to {there.host or 'nowhere'}: {error}"
        raise DriverError(brief, details=details, resolution="name a better address") from error
    if is_loopback(found) and not is_loopback(place):
        raise DriverError(brief, details="it leads to this machine itself", resolution="name a better address")
    return found


def _client(place: str, patience: float) -> "httpx.Client":
    import httpx

    direct = {f"all://{urlsplit(place).netloc.rpartition('@')[2]}": None} if is_loopback(place) else {}
    try:
        return httpx.Client(
            timeout=httpx.Timeout(patience, connect=min(_CONNECT, patience)),
            headers={"User-Agent": "planvirt", "Accept": "*/*", "Accept-Encoding": "identity"},
            mounts=direct,
        )
    except (OSError, ssl.SSLError) as error:
        raise DriverError(
            "cannot read the certificates of authorities", details=str(error), resolution="check SSL_CERT_FILE"
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise DriverError(
            "cannot use the configured proxy", details=str(error), resolution="check HTTP_PROXY and HTTPS_PROXY"
        ) from error


@contextmanager
def _translated(url: str, deadline: Deadline, patience: float) -> Iterator[None]:
    import httpx

    brief = f"cannot fetch {shown(url)}"
    try:
        yield
    except httpx.TimeoutException as error:
        deadline.check()
        raise Transient(brief, details=f"the server says nothing for {patience:g} s") from error
    except httpx.TransportError as error:
        deadline.check()
        if (untrusted := _untrusted(error)) is not None:
            raise DriverError(
                brief,
                details=f"its certificate is not trusted: {untrusted.verify_message}",
                resolution="if an authority of your own has signed it, name that authority's file in SSL_CERT_FILE",
            ) from error
        raise Transient(brief, details=str(error).lower() or type(error).__name__) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise DriverError(brief, details=str(error).lower(), resolution="check the address") from error


def _untrusted(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


class _Line:
    """The connection of a request. It is cut when nobody waits for the data any more: a read cannot be interrupted."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._stream: Any = None
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._cut_in_time, name="download", daemon=True)

    def __enter__(self) -> Self:
        self._deadline.check()
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._done.set()
        self._watch.join()

    def hear(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpx tells of the request's progress."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._stream = info["return_value"]

    def _cut_in_time(self) -> None:
        while not self._done.wait(_GLANCE):
            if self._deadline.over and self._stream is not None:
                # Not the method of a TLS socket, which would take its state away from the thread that reads.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._stream.get_extra_info("socket"), socket.SHUT_RDWR)
