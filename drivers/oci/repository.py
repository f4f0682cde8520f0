"""A repository of a registry: the only place that speaks its API, which is the OCI distribution specification's."""

import ssl
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import httpx

from drivers.errors import DriverError
from drivers.oci.auth import RegistryAuth
from drivers.oci.faults import refused, translated
from drivers.oci.manifest import MANIFEST
from drivers.reading import PIECE
from planvirt.errors import ConfigError
from planvirt.secret import Secret

_TIMEOUT = httpx.Timeout(60, connect=10)  # seconds
_PAGE = 500  # tags
_MANIFESTS = ", ".join(
    (
        MANIFEST,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_BYTES = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class OciSettings:
    """The keys of an OCI store in planvirt.toml."""

    registry: str
    repository: str
    insecure: bool = False
    trust_network: bool = False
    username: str | None = None
    password_secret: str | None = None
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """An upload on its way: where the next bytes go, and how many at least."""

    url: httpx.URL
    least: int = 0


class Repository:
    """The repository of a store, connected when it is first used. Every method tells `brief` when it fails."""

    def __init__(self, store: str, settings: OciSettings, secrets: Mapping[str, Secret]) -> None:
        self.name = f"{settings.registry}/{settings.repository}"
        self._store = store
        self._settings = settings
        self._secrets = secrets
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._url = httpx.URL(f"{'http' if settings.insecure else 'https'}://{settings.registry}")
        self._root = f"/v2/{settings.repository}"

    # Manifests

    def manifest(self, reference: str, brief: str) -> bytes | None:
        """The manifest that has a tag or digest, or None."""
        answer = self._asked("GET", f"{self._root}/manifests/{reference}", brief, {200, 404}, accept=_MANIFESTS)
        return answer.content if answer.status_code == 200 else None

    def put_manifest(self, tag: str, body: bytes, brief: str) -> None:
        """Give a tag to a manifest."""
        url = f"{self._root}/manifests/{tag}"
        self._asked("PUT", url, brief, {201}, content=body, headers={"Content-Type": MANIFEST})

    def delete_manifest(self, digest: str, brief: str) -> None:
        """Delete a manifest, and with it its tags. A missing one counts as deleted."""
        self._asked("DELETE", f"{self._root}/manifests/{digest}", brief, {200, 202, 404})

    def tags(self, brief: str) -> Sequence[str]:
        """All tags, page by page; none when there is no such repository yet."""
        found: list[str] = []
        pages: list[httpx.URL] = [self._url.join(f"{self._root}/tags/list?n={_PAGE}")]
        for page in pages:
            answer = self._asked("GET", page, brief, {200, 404})
            if answer.status_code == 404:
                break
            try:
                found += [str(tag) for tag in answer.json()["tags"] or ()]
            except (ValueError, KeyError, TypeError) as error:
                raise self._odd(brief) from error
            if following := answer.links.get("next", {}).get("url"):
                pages.append(self._within_tls(following, brief))
                if pages[-1] in pages[:-1]:
                    raise self._odd(brief)
        return found

    # Blobs

    def blob_size(self, digest: str, brief: str) -> int | None:
        """How large a blob is, or None when there is none."""
        answer = self._asked("HEAD", f"{self._root}/blobs/{digest}", brief, {200, 404})
        return int(answer.headers.get("content-length", -1)) if answer.status_code == 200 else None

    def put_blob(self, digest: str, content: bytes, brief: str) -> None:
        """Write a small blob, unless it is there."""
        if self.blob_size(digest, brief) != len(content):
            self._finished(self.begin(brief).url, digest, content, brief)

    @contextmanager
    def read_blob(self, digest: str, start: int, brief: str) -> Iterator[Iterator[bytes]]:
        """A blob from an offset on."""
        wanted = {"Range": f"bytes={start}-"} if start else {}
        request = self._request("GET", f"{self._root}/blobs/{digest}", wanted | {"Accept-Encoding": "identity"})
        with translated(brief):
            answer = self._connected().send(request, stream=True, follow_redirects=True)
        try:
            if answer.status_code not in (200, 206):
                with translated(brief):
                    answer.read()
                raise refused(brief, answer)
            yield _received(answer, start if answer.status_code == 200 else 0, brief)
        finally:
            answer.close()

    # Uploads

    def begin(self, brief: str) -> Session:
        """Begin to upload a blob."""
        answer = self._asked("POST", f"{self._root}/blobs/uploads/", brief, {202})
        least = answer.headers.get("oci-chunk-min-length", "")
        return Session(self._next(answer, brief), int(least) if least.isdecimal() else 0)

    def send(self, url: httpx.URL, start: int, size: int, body: Iterable[bytes], brief: str) -> httpx.URL:
        """Append bytes to an upload; returns where the next ones go."""
        place = {"Content-Length": str(size), "Content-Range": f"{start}-{start + size - 1}"}
        answer = self._asked("PATCH", url, brief, {202, 204}, content=body, headers=_BYTES | place)
        return self._next(answer, brief)

    def progress(self, url: httpx.URL, brief: str) -> tuple[httpx.URL, int]:
        """Where an upload goes on after a connection was cut, and how many bytes the registry has."""
        answer = self._asked("GET", url, brief, {200, 202, 204})
        last = answer.headers.get("range", "").removeprefix("bytes=").partition("-")[2]
        # Of one byte and of none a registry says the same. One alone is never sent.
        return self._next(answer, brief), int(last) + 1 if last.isdecimal() and last != "0" else 0

    def finish(self, url: httpx.URL, digest: str, brief: str) -> None:
        """Make a blob of an upload; the registry compares it with the digest."""
        self._finished(url, digest, b"", brief)

    def cancel(self, url: httpx.URL, brief: str) -> None:
        """Make the registry forget an upload."""
        self._asked("DELETE", url, brief, {200, 202, 204, 404})

    def _finished(self, url: httpx.URL, digest: str, content: bytes, brief: str) -> None:
        url = url.copy_merge_params({"digest": digest})
        self._asked("PUT", url, brief, {201, 204}, content=content, headers=_BYTES)

    def _next(self, answer: httpx.Response, brief: str) -> httpx.URL:
        """Where an answer says that an upload goes on."""
        location = answer.headers.get("location")
        if location is None:
            raise self._odd(brief)
        return self._within_tls(location, brief)

    def _within_tls(self, location: str, brief: str) -> httpx.URL:
        """Where the registry sends us, if it is not from TLS to where there is none."""
        url = self._url.join(location)
        if url.scheme != self._url.scheme:
            raise DriverError(
                brief,
                details=f"the registry sends us to {url.scheme}://{url.host}",
                resolution="have the registry, or what stands before it, name the address at which it is reached",
            )
        return url

    def _odd(self, brief: str) -> DriverError:
        return DriverError(brief, details=f"{self.name} does not answer as a registry does")

    # The connection

    def _asked(
        self,
        method: str,
        url: httpx.URL | str,
        brief: str,
        hoped: set[int],
        *,
        accept: str = "*/*",
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> httpx.Response:
        """The answer to a request, if it is one of those hoped for."""
        request = self._request(method, url, {"Accept": accept, **(headers or {})}, content)
        with translated(brief):
            answer = self._connected().send(request, follow_redirects=method in ("GET", "HEAD"))
        if answer.status_code not in hoped:
            raise refused(brief, answer)
        return answer

    def _request(
        self,
        method: str,
        url: httpx.URL | str,
        headers: Mapping[str, str],
        content: bytes | Iterable[bytes] | None = None,
    ) -> httpx.Request:
        return self._connected().build_request(method, self._url.join(url), headers=dict(headers), content=content)

    def _connected(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
                weakref.finalize(self, self._client.close)
            return self._client

    def _connect(self) -> httpx.Client:
        settings, store = self._settings, self._store
        brief = f"cannot open image store {store}"
        if settings.insecure and not settings.trust_network and not _is_loopback(self._url.host):
            raise ConfigError(
                brief,
                details=f"without TLS everybody on the way to {self._url.host} could read and change images",
                resolution=f"remove insecure from [stores.{store}], or say trust_network = true",
            )
        if settings.ca_file is not None and not Path(settings.ca_file).is_file():
            details = f"there is no file {settings.ca_file}"
            raise ConfigError(brief, details=details, resolution=f"check ca_file in [stores.{store}]")
        auth = RegistryAuth(self._url, settings.repository, settings.username, self._password)
        if settings.insecure:
            return httpx.Client(auth=auth, timeout=_TIMEOUT, verify=False)  # noqa: S501 - there is no TLS
        try:
            trusted = ssl.create_default_context(cafile=settings.ca_file)
        except ssl.SSLError as error:
            resolution = f"check ca_file in [stores.{store}]"
            raise ConfigError(brief, details=f"{settings.ca_file}: {error}", resolution=resolution) from error
        return httpx.Client(auth=auth, timeout=_TIMEOUT, verify=trusted, event_hooks={"response": [_stay_private]})

    def _password(self) -> str:
        own = self._settings.password_secret
        return "" if own is None else self._secrets[own].reveal()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _stay_private(answer: httpx.Response) -> None:
    """Refuse to follow a registry from TLS to where there is none."""
    if answer.has_redirect_location:
        there = answer.url.join(answer.headers["location"])
        if there.scheme != "https":
            raise httpx.UnsupportedProtocol(f"{there.scheme}://{there.host}, without TLS")


def _received(answer: httpx.Response, skip: int, brief: str) -> Iterator[bytes]:
    """The bytes of an answer; `skip` of them first where the registry knows no ranges."""
    pieces = answer.iter_raw(PIECE)
    while True:
        with translated(brief):
            piece = next(pieces, b"")
        if not piece:
            return
        skipped = min(skip, len(piece))
        skip -= skipped
        if piece[skipped:]:
            yield piece[skipped:]
