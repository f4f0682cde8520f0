"""Who planvirt is for a registry: a password, or a token that the registry's own authority gives for it."""

import base64
import re
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import httpx

from drivers.errors import DriverError
from drivers.oci.faults import refused

_LEAST_SECONDS = 60  # that a token is good for, when nobody says how long
_SPARE_SECONDS = 10


class RegistryAuth(httpx.Auth):
    """Answers the challenges of one registry. Whatever else a request leads to gets neither password nor token."""

    def __init__(
        self,
        registry: httpx.URL,
        repository: str,
        username: str | None,
        password: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._scope = f"repository:{repository}:pull,push,delete"
        self._username = username
        self._password = password
        self._clock = clock
        self._lock = threading.Lock()
        self._authority: httpx.URL | None = None
        self._header: str | None = None
        self._until = 0.0

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with what is known, and once more if the registry wants something else."""
        if not _same_place(request.url, self._registry):
            yield request
            return
        header, authority = self._known()
        if header is None and authority is not None:
            header = self._taken((yield self._token_request(authority)))
        if header is not None:
            request.headers["Authorization"] = header
        answer = yield request
        if answer.status_code == 401 and (challenge := answer.headers.get("www-authenticate")):
            kind, told = _challenge(challenge)
            if kind == "bearer":
                request.headers["Authorization"] = self._taken((yield self._token_request(self._asked(told))))
                yield request
            elif kind == "basic" and self._username is not None and header is None:
                request.headers["Authorization"] = self._basic(self._username)
                yield request

    def _known(self) -> tuple[str | None, httpx.URL | None]:
        """The header to send, or where to get a new one."""
        with self._lock:
            return (self._header if self._clock() < self._until else None), self._authority

    def _basic(self, username: str) -> str:
        words = f"{username}:{self._password()}".encode()
        header = f"Basic {base64.b64encode(words).decode()}"
        with self._lock:
            self._header, self._until = header, float("inf")
        return header

    def _asked(self, told: dict[str, str]) -> httpx.URL:
        """Where the registry says that tokens are to be had."""
        realm = httpx.URL(told.get("realm", ""))
        if realm.scheme != "https" and self._registry.scheme == "https":
            raise DriverError(
                f"cannot log in to {self._registry.host}: it sends us to {realm.scheme or 'nowhere'} for a token",
                resolution="have the registry name an https address as its realm",
            )
        wanted = {"service": told["service"]} if "service" in told else {}
        with self._lock:
            self._authority = realm.copy_merge_params(wanted | {"scope": self._scope})
            return self._authority

    def _token_request(self, authority: httpx.URL) -> httpx.Request:
        request = httpx.Request("GET", authority)
        if self._username is not None:
            request = next(httpx.BasicAuth(self._username, self._password()).auth_flow(request))
        return request

    def _taken(self, answer: httpx.Response) -> str:
        """The header for the token in an answer."""
        brief = f"cannot log in to {self._registry.host}"
        answer.read()
        if answer.status_code != 200:
            raise refused(brief, answer)
        try:
            told: dict[str, Any] = answer.json()
            header = f"Bearer {told.get('token') or told['access_token']}"
            seconds = float(told.get("expires_in") or _LEAST_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DriverError(brief, details="what gives tokens gave none") from error
        with self._lock:
            self._header = header
            self._until = self._clock() + max(seconds, _LEAST_SECONDS) - _SPARE_SECONDS
        return header


def _same_place(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _challenge(header: str) -> tuple[str, dict[str, str]]:
    """What a registry wants: the kind, and what it says about it."""
    kind = header.strip().partition(" ")[0].lower()
    if kind != "bearer" and "bearer " in header.lower():
        kind = "bearer"
    return kind, dict(re.findall(r'(\w+)="([^"]*)"', header))
