"""The image service: the only place that speaks keystoneauth."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import requests
from keystoneauth1 import exceptions, noauth
from keystoneauth1.identity import v3
from keystoneauth1.identity.base import BaseIdentityPlugin
from keystoneauth1.session import Session
from urllib3 import Timeout

from drivers.errors import DriverError, Transient
from drivers.glance.body import Body
from drivers.glance.connections import Adapter
from drivers.glance.faults import cause, failed, refused
from drivers.reading import PIECE
from planvirt.deadline import Deadline
from planvirt.errors import ConfigError
from planvirt.secret import Secret

_CONNECT, _ANSWER = 10.0, 60.0  # seconds
_SEND, _STORED = 60.0, 300.0  # for a piece of an upload to leave, and for the server to have all of it in place
_PATCH = "application/openstack-images-v2.1-json-patch"


@dataclass(frozen=True, slots=True)
class GlanceSettings:
    """The keys of a Glance store in planvirt.toml. Either `url` or `auth_url` is given, or both."""

    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    auth_url: str | None = None
    username: str | None = None
    password_secret: str | None = None
    user_domain: str = "Default"
    project: str | None = None
    project_domain: str = "Default"
    application_credential_id: str | None = None
    application_credential_secret: str | None = None
    region: str | None = None
    interface: Literal["public", "internal", "admin"] = "public"
    ca_file: str | None = None
    visibility: Literal["private", "shared", "community", "public"] = "private"


@dataclass(frozen=True, slots=True)
class _Connection:
    session: Session
    url: str  # without a version
    project: str | None  # its id; None where nobody is asked who he is
    admin: bool


class ImageService:
    """The image service of a store, reached when it is first used. Every method tells `brief` when it fails.

    Paths are below /v2/. What is put into them is an id, and nothing else.
    """

    def __init__(self, store: str, settings: GlanceSettings, secrets: Mapping[str, Secret]) -> None:
        self._store = store
        self._settings = settings
        self._secrets = secrets
        self._lock = threading.Lock()
        self._connection: _Connection | None = None

    def project(self, brief: str) -> str | None:
        """The id of the project that the store's images belong to, if the server knows projects."""
        return self._connected(brief).project

    def admin(self, brief: str) -> bool:
        """Whether the server shows the private images of everybody."""
        return self._connected(brief).admin

    def get(self, path: str, brief: str, params: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        """What is there."""
        return self._json(self._ask("GET", path, brief, params=params), brief)

    def post(self, path: str, body: Mapping[str, Any], brief: str) -> dict[str, Any]:
        """Make something; returns what it is now."""
        return self._json(self._ask("POST", path, brief, json=body), brief)

    def add(self, path: str, properties: Mapping[str, str], brief: str) -> dict[str, Any]:
        """Add properties to an image; returns what it is now."""
        changes = [{"op": "add", "path": f"/{key}", "value": value} for key, value in properties.items()]
        return self._json(self._ask("PATCH", path, brief, json=changes, headers={"Content-Type": _PATCH}), brief)

    def delete(self, path: str, brief: str) -> None:
        """Delete what is there."""
        self._ask("DELETE", path, brief)

    def put(self, path: str, body: Body, deadline: Deadline, brief: str) -> None:
        """Send data, once. It is never sent again, as it is read while it is sent."""
        headers = {"Content-Type": "application/octet-stream"}
        if body.size is not None:
            headers["x-openstack-image-size"] = str(body.size)
        timeout = Timeout(total=deadline.left(), connect=_SEND, read=_STORED)
        try:
            self._ask("PUT", path, brief, data=body.data, headers=headers, timeout=timeout, allow_reauth=False)
        except BaseException as error:
            if body.failure is not None:
                raise body.failure from None
            if isinstance(error, Transient):
                deadline.check()
            raise

    @contextmanager
    def read_from(self, path: str, start: int, brief: str) -> Iterator[Iterator[bytes]]:
        """Data from an offset on. Transient where the server begins at the start all the same."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with closing(self._ask("GET", path, brief, headers=headers, stream=True)) as response:
            if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise Transient(brief, details=f"the server cannot go on after the {start} bytes that have arrived")
            yield _received(response, brief)

    # Requests

    def _ask(self, method: str, path: str, brief: str, **more: Any) -> requests.Response:
        connection = self._connected(brief)
        more = {"timeout": (_CONNECT, _ANSWER), "headers": {}} | more
        more["headers"] = {"Accept": "application/json"} | more["headers"]
        try:
            # A redirection could lead to a server that must not see the token.
            response = connection.session.request(
                f"{connection.url}/v2/{path}", method, raise_exc=False, redirect=False, log=False, **more
            )
        except exceptions.ClientException as error:
            raise failed(brief, error) from error
        if response.status_code >= 300:
            with closing(response):
                raise refused(brief, response)
        return response

    def _json(self, response: requests.Response, brief: str) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            details = f"{response.url} does not answer as an image service does"
            raise DriverError(brief, details=details, resolution="check the store's url")
        return answer

    # The connection

    def _connected(self, brief: str) -> _Connection:
        with self._lock:
            if self._connection is None:
                try:
                    self._connection = self._connect()
                except exceptions.ClientException as error:
                    raise failed(brief, error) from error
            return self._connection

    def _connect(self) -> _Connection:
        settings = self._settings
        if settings.ca_file is not None and not Path(settings.ca_file).is_file():
            raise self._misconfigured(f"there is no file {settings.ca_file}", "check ca_file")
        headers = {name.lower(): value for name, value in settings.headers.items()}
        auth = self._identity() if settings.auth_url else noauth.NoAuth(endpoint=settings.url)
        transport = requests.Session()
        for scheme in ("http://", "https://"):
            transport.mount(scheme, Adapter())
        session = Session(
            auth,
            transport,
            verify=settings.ca_file or True,
            timeout=_ANSWER,
            app_name="planvirt",
            additional_headers=dict(settings.headers),
        )
        if isinstance(auth, BaseIdentityPlugin):
            access = auth.get_access(session)
            project, roles = access.project_id, list(access.role_names or ())
        else:
            project, roles = headers.get("x-project-id"), headers.get("x-roles", "").lower().split(",")
        url = settings.url or session.get_endpoint(
            service_type="image", interface=settings.interface, region_name=settings.region, skip_discovery=True
        )
        if not url:
            raise exceptions.EndpointNotFound
        return _Connection(session, _without_version(url), project, "admin" in roles)

    def _identity(self) -> BaseIdentityPlugin:
        settings = self._settings
        url = f"{(settings.auth_url or '').rstrip('/').removesuffix('/v3')}/v3"
        if settings.application_credential_id:
            return v3.ApplicationCredential(
                url,
                application_credential_id=settings.application_credential_id,
                application_credential_secret=self._revealed("application_credential_secret"),
            )
        return v3.Password(
            url,
            username=settings.username,
            password=self._revealed("password_secret"),
            user_domain_name=settings.user_domain,
            project_name=settings.project,
            project_domain_name=settings.project_domain,
        )

    def _revealed(self, key: str) -> str:
        name = getattr(self._settings, key)
        if name is None:
            raise self._misconfigured(f"it has no {key}", f"give it a {key}")
        return self._secrets[name].reveal()

    def _misconfigured(self, details: str, wanted: str) -> ConfigError:
        brief = f"cannot open image store {self._store}"
        return ConfigError(brief, details=details, resolution=f"{wanted} in [stores.{self._store}]")


def _without_version(url: str) -> str:
    """An endpoint as catalogs have it, with or without the version of the API."""
    url = url.rstrip("/")
    return url.removesuffix("/v2").removesuffix("/v2.0").rstrip("/")


def _received(response: requests.Response, brief: str) -> Iterator[bytes]:
    try:
        yield from response.iter_content(PIECE)
    except requests.RequestException as error:
        raise Transient(brief, details=f"the connection was cut: {cause(error)}") from error
