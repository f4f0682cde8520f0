"""The Glance server of the tests, on loopback, with its data in a temporary folder; and a Keystone for it.

The first trusts whoever says who he is: every test is another project. The second asks Keystone, as clouds do.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from drivers.glance.service import GlanceSettings
from planvirt.secret import Secret
from tests.drivers.ports import free_ports

_HOME = Path(__file__).parents[2] / ".demo" / "glance"
QUOTA = 32 << 20  # bytes that a project may store
_PASSWORD = "administrator"  # noqa: S105 - of a server that lives for a minute; scripts/setup-glance.sh knows it, too
_GUNICORN = """
import sqlalchemy

wsgi_app = "{application}"
bind = ["127.0.0.1:{port}"]
threads = 8
timeout = 600
graceful_timeout = 1
control_socket_disable = True


# SQLite lets no two transactions write that have both begun to read; the databases of real clouds do.
@sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute", retval=True)
def begin(connection, cursor, statement, parameters, context, many):
    return statement + " IMMEDIATE" if statement == "BEGIN" else statement, parameters
"""
_GLANCE = """
[DEFAULT]
enabled_backends = local:file
node_staging_uri = file://{folder}/staging/
worker_self_reference_url = http://127.0.0.1:{port}
user_storage_quota = {quota}B
[database]
connection = sqlite:///{folder}/glance.sqlite?timeout=60
sqlite_synchronous = false
[glance_store]
default_backend = local
[local]
filesystem_store_datadir = {folder}/images/
[os_glance_staging_store]
filesystem_store_datadir = {folder}/staging/
[os_glance_tasks_store]
filesystem_store_datadir = {folder}/tasks/
[oslo_concurrency]
lock_path = {folder}/lock
[paste_deploy]
config_file = {folder}/glance-{flavor}/paste.ini
flavor = {flavor}
"""
_TRUST = """
[keystone_authtoken]
auth_type = password
auth_url = {url}
www_authenticate_uri = {url}
username = admin
password = {password}
user_domain_id = default
project_name = admin
project_domain_id = default
interface = public
region_name = north
"""
_PASTE = """
[composite:glance-api-headers]
paste.composite_factory = glance.api:root_app_factory
/: api
[composite:glance-api-keystone]
paste.composite_factory = glance.api:root_app_factory
/: api
[composite:api]
paste.composite_factory = glance.api:pipeline_factory
headers = versionnegotiation context rootapp
keystone = versionnegotiation authtoken context rootapp
[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app
[app:apiversions]
paste.app_factory = glance.api.versions:create_resource
[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory
[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory
[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
delay_auth_decision = true
"""
_KEYSTONE = """
[database]
connection = sqlite:///{folder}/keystone.sqlite?timeout=60
sqlite_synchronous = false
[fernet_tokens]
key_repository = {home}/keys
[fernet_receipts]
key_repository = {home}/keys
[identity]
password_hash_rounds = 4
"""


@dataclass(frozen=True)
class Glance:
    """A running server that trusts identity headers, and a project in it."""

    port: int
    folder: Path
    project: str

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def headers(self, *roles: str) -> dict[str, str]:
        """Who a client says that he is."""
        return {
            "X-Identity-Status": "Confirmed",
            "X-User-Id": "tester",
            "X-Project-Id": self.project,
            "X-Roles": ",".join(roles or ("member", "reader")),
        }

    def settings(self, *roles: str, port: int | None = None, **more: Any) -> GlanceSettings:
        """What an operator would write into planvirt.toml."""
        url = f"http://127.0.0.1:{port or self.port}"
        return GlanceSettings(**{"url": url, "headers": self.headers(*roles)} | more)

    def elsewhere(self) -> "Glance":
        """Another project of the same server."""
        return Glance(self.port, self.folder, uuid.uuid4().hex)

    def ask(self, method: str, path: str, *roles: str, **more: Any) -> requests.Response:
        """A request beside the store."""
        headers = self.headers(*roles) | more.pop("headers", {})
        return requests.request(method, f"{self.url}/v2/{path}", headers=headers, timeout=30, **more)

    def images(self) -> list[dict[str, Any]]:
        """What the server says of all images of the project."""
        found: list[dict[str, Any]] = self.ask("GET", f"images?owner={self.project}&limit=1000").json()["images"]
        return found

    def contents(self) -> list[int]:
        """The sizes of the files with data of the project's images; those of others that are gone count as its own."""
        with closing(sqlite3.connect(self.folder / "glance.sqlite", timeout=60)) as database:
            wanted = "select id from images where deleted = 0 and owner != ?"
            others = {row[0] for row in database.execute(wanted, (self.project,))}
        files = (self.folder / "images").iterdir()
        return sorted(file.stat().st_size for file in files if file.name not in others)


@dataclass(frozen=True)
class Cloud:
    """A Glance that asks Keystone, in whose catalog it is; the project `site` has the user `operator`."""

    auth_url: str
    image_url: str
    project: str
    credential: str
    region: str = "north"

    @property
    def secrets(self) -> Mapping[str, Secret]:
        """What an operator would have in [secrets]."""
        return {"password": Secret("correct horse"), "key": Secret("battery staple"), "wrong": Secret("let me in")}

    def settings(self, **more: Any) -> GlanceSettings:
        """What an operator would write into planvirt.toml."""
        return GlanceSettings(
            **{
                "auth_url": self.auth_url,
                "username": "operator",
                "password_secret": "password",
                "project": "site",
                "region": self.region,
            }
            | more
        )

    def credential_settings(self, **more: Any) -> GlanceSettings:
        """The same with an application credential."""
        return GlanceSettings(
            auth_url=self.auth_url,
            application_credential_id=self.credential,
            application_credential_secret="key",  # noqa: S106 - a name
            **more,
        )


@contextmanager
def server() -> Iterator[Glance]:
    """Start a server that trusts identity headers, and stop it."""
    if not (_HOME / "installed.txt").exists():
        pytest.fail(
            "cannot test the Glance store: there is no Glance; run 'scripts/setup-glance.sh .demo/glance', or leave"
            " these tests out with -m 'not real'",
            pytrace=False,
        )
    with tempfile.TemporaryDirectory(prefix="planvirt-glance-") as temporary:
        folder = Path(temporary)
        shutil.copy(_HOME / "glance.sqlite", folder)
        for name in ("images", "staging", "tasks"):
            (folder / name).mkdir()
        (port,) = free_ports(1)
        with _glance(folder, port, "headers"):
            yield Glance(port, folder, uuid.uuid4().hex)


@contextmanager
def cloud(glance: Glance) -> Iterator[Cloud]:
    """Start a Keystone, and a second process of the same Glance that asks it; stop both."""
    folder = glance.folder
    shutil.copy(_HOME / "keystone.sqlite", folder)
    identity_port, image_port = free_ports(2)
    url = f"http://127.0.0.1:{identity_port}/v3"
    trust = _TRUST.format(url=url, password=_PASSWORD)
    with ExitStack() as running:
        running.enter_context(_glance(folder, image_port, "keystone", trust))
        configuration = folder / "keystone"
        configuration.mkdir()
        (configuration / "keystone.conf").write_text(_KEYSTONE.format(folder=folder, home=_HOME))
        running.enter_context(_served(configuration, "keystone.wsgi.api:application", identity_port, "KEYSTONE"))
        for port in (identity_port, image_port):
            _wait(port, folder)
        yield _populated(url, {"identity": url, "image": f"http://127.0.0.1:{image_port}"})


@contextmanager
def _glance(folder: Path, port: int, flavor: str, more: str = "") -> Iterator[None]:
    configuration = folder / f"glance-{flavor}"
    configuration.mkdir()
    text = _GLANCE.format(folder=folder, port=port, flavor=flavor, quota=QUOTA)
    (configuration / "glance-api.conf").write_text(text + more)
    (configuration / "paste.ini").write_text(_PASTE)
    with _served(configuration, "glance.wsgi.api:application", port, "GLANCE"):
        if not more:
            _wait(port, folder)
        yield


@contextmanager
def _served(configuration: Path, application: str, port: int, kind: str) -> Iterator[None]:
    """A server in a process of its own. Arguments of its command line would be taken for Keystone's own."""
    (configuration / "gunicorn.py").write_text(_GUNICORN.format(application=application, port=port))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "PYTHON"))} | {
        f"OS_{kind}_CONFIG_DIR": str(configuration),
        "GUNICORN_CMD_ARGS": f"--config {configuration / 'gunicorn.py'}",
    }
    command = ["setpriv", "--pdeathsig", "KILL", str(_HOME / "bin" / "gunicorn")]
    with (configuration / "log").open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=configuration
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait(port: int, folder: Path) -> None:
    for _ in range(600):
        try:
            requests.get(f"http://127.0.0.1:{port}/", timeout=30)
        except requests.RequestException:
            time.sleep(0.05)
        else:
            return
    logs = "\n".join(log.read_text()[-3000:] for log in folder.glob("*/log"))
    pytest.fail(f"cannot reach the server on port {port}: {logs}", pytrace=False)


def _populated(url: str, services: Mapping[str, str]) -> Cloud:
    """Have Keystone know a project, a user with an application credential, and the services of two regions."""
    admin = Identity(url, _login("admin", _PASSWORD, "admin"))
    for region in ("north", "south"):
        admin.post("regions", region={"id": region})
    for kind, endpoint in services.items():
        service = admin.post("services", service={"type": kind, "name": kind})["id"]
        for region in ("north",) if kind == "image" else ("north", "south"):
            place = {"service_id": service, "region_id": region, "interface": "public", "url": endpoint}
            admin.post("endpoints", endpoint=place)
    project = admin.post("projects", project={"name": "site", "domain_id": "default"})["id"]
    user = {"name": "operator", "password": "correct horse", "domain_id": "default"}
    operator = admin.post("users", user=user)["id"]
    reader = admin.post("users", user=user | {"name": "reader"})["id"]
    roles = {role["name"]: role["id"] for role in admin.get("roles")}
    admin.put(f"projects/{project}/users/{operator}/roles/{roles['member']}")
    admin.put(f"projects/{project}/users/{reader}/roles/{roles['reader']}")
    own = Identity(url, _login("operator", "correct horse", "site"))
    credential = own.post(
        f"users/{operator}/application_credentials",
        application_credential={"name": "planvirt", "secret": "battery staple"},
    )["id"]
    return Cloud(url, services["image"], project, credential)


class Identity:
    """Requests to Keystone, as one user."""

    def __init__(self, url: str, login: Mapping[str, Any]) -> None:
        answer = requests.post(f"{url}/auth/tokens", json=login, timeout=30)
        answer.raise_for_status()
        self._url = url
        self._headers = {"X-Auth-Token": answer.headers["X-Subject-Token"]}

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Make one thing."""
        (name,) = body
        made: dict[str, Any] = self._ask("POST", path, body).json()[name]
        return made

    def get(self, path: str) -> Sequence[dict[str, Any]]:
        """All things of a kind."""
        found: Sequence[dict[str, Any]] = self._ask("GET", path).json()[path]
        return found

    def put(self, path: str) -> None:
        """Say that something holds."""
        self._ask("PUT", path)

    def delete(self, path: str) -> None:
        """Remove something."""
        self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: Any = None) -> requests.Response:
        answer = requests.request(method, f"{self._url}/{path}", json=body, headers=self._headers, timeout=30)
        answer.raise_for_status()
        return answer


def _login(user: str, password: str, project: str) -> Mapping[str, Any]:
    domain = {"id": "default"}
    who = {"methods": ["password"], "password": {"user": {"name": user, "domain": domain, "password": password}}}
    return {"auth": {"identity": who, "scope": {"project": {"name": project, "domain": domain}}}}
