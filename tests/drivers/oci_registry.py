"""The registry of the tests: Debian's docker-registry on loopback, with its data in a temporary folder.

It is the registry of the distribution project, which others are made from. It is started as it is, with a password, or
with an authority that gives tokens.
"""

import base64
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from drivers.oci.repository import OciSettings
from planvirt.secret import Secret
from tests.drivers.hostile_proxy import make_certificate
from tests.drivers.ports import free_ports

_PROGRAM = Path(__file__).parents[2] / ".demo" / "registry" / "usr" / "bin" / "docker-registry"
_CONFIGURATION = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: {deletes}}}
http: {{addr: "127.0.0.1:{port}", secret: planvirt}}
{auth}
"""
_HTPASSWD = "planvirt:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"  # of "secret"


@dataclass(frozen=True)
class Registry:
    """A running registry."""

    port: int
    folder: Path

    @property
    def secrets(self) -> dict[str, Secret]:
        """What an operator would have in [secrets]."""
        return {"registry_password": Secret("secret")}

    def settings(self, repository: str, *, port: int | None = None, username: str | None = None) -> OciSettings:
        """What an operator would write into planvirt.toml, for one repository."""
        return OciSettings(
            registry=f"127.0.0.1:{port or self.port}",
            repository=repository,
            insecure=True,
            username=username,
            password_secret=None if username is None else "registry_password",
        )

    def tags(self, repository: str) -> list[str]:
        """The tags in a repository, as the registry tells them."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/v2/{repository}/tags/list")
        return sorted(answer.json().get("tags") or ())

    def manifests(self, repository: str) -> list[str]:
        """The digests of all manifests in a repository, with and without tags, as they lie in the registry's folder."""
        revisions = self._of(repository) / "_manifests" / "revisions" / "sha256"
        return sorted(path.parent.name for path in revisions.glob("*/link"))

    def unfinished(self, repository: str) -> list[str]:
        """The uploads whose data the registry keeps."""
        return sorted(path.parent.name for path in (self._of(repository) / "_uploads").glob("*/data"))

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        name = digest.removeprefix("sha256:")
        return self.folder / "data" / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def collect_garbage(self) -> None:
        """Delete the blobs that no manifest names, as the registry's operator does now and then."""
        command = [str(_PROGRAM), "garbage-collect", str(self.folder / "config.yml")]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def _of(self, repository: str) -> Path:
        return self.folder / "data" / "docker/registry/v2/repositories" / repository


@contextmanager
def registry(*, auth: str = "", deletes: bool = True, largest_file: int | None = None) -> Iterator[Registry]:
    """Start a registry, and stop it. `largest_file` plays a disk that is full."""
    if not _PROGRAM.exists():
        pytest.fail(
            "cannot test the OCI store: there is no registry; run 'scripts/setup-registry.sh .demo/registry', or leave"
            " these tests out with -m 'not real'",
            pytrace=False,
        )
    with tempfile.TemporaryDirectory(prefix="planvirt-registry-") as temporary:
        folder = Path(temporary)
        (port,) = free_ports(1)
        configuration = folder / "config.yml"
        configuration.write_text(
            _CONFIGURATION.format(port=port, folder=folder, deletes=str(deletes).lower(), auth=auth)
        )
        limit = [] if largest_file is None else ["prlimit", f"--fsize={largest_file}"]
        command = ["setpriv", "--pdeathsig", "KILL", *limit, str(_PROGRAM), "serve", str(configuration)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "log")
            yield Registry(port, folder)
        finally:
            process.kill()
            process.wait(30)


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/v2/")
        except httpx.TransportError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"cannot start the registry: {log.read_text()}", pytrace=False)


@contextmanager
def registry_with_password() -> Iterator[Registry]:
    """A registry that wants to hear 'planvirt' and 'secret'."""
    with tempfile.NamedTemporaryFile("w", suffix=".htpasswd") as file:
        file.write(f"{_HTPASSWD}\n")
        file.flush()
        with registry(auth=f"auth: {{htpasswd: {{realm: planvirt, path: {file.name}}}}}") as running:
            yield running


# Tokens


@dataclass
class Authority:
    """What gives tokens to whoever knows the password; `given` counts them, and `allows` is what they are good for."""

    certificate: Path
    given: int = 0
    allows: tuple[str, ...] = ("pull", "push", "delete")
    good_for: int = 300  # seconds

    def token(self, scope: str) -> str:
        """A token as the registry wants it: a JSON web token, signed with the key of a certificate it knows."""
        self.given += 1
        kind, name, _ = scope.split(":")
        der = self.certificate.read_text().partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0]
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(der.split())]}
        now = int(time.time())
        claims = {
            "iss": "planvirt-tests",
            "sub": "planvirt",
            "aud": "registry",
            "exp": now + self.good_for,
            "nbf": now - 10,
            "iat": now - 10,
            "jti": str(self.given),
            "access": [{"type": kind, "name": name, "actions": list(self.allows)}],
        }
        text = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", str(self.certificate)]
        signature = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
        return f"{text}.{_encoded(signature)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def registry_with_tokens() -> Iterator[tuple[Registry, Authority]]:
    """A registry that sends everybody to an authority."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            expected = base64.b64encode(b"planvirt:secret").decode()
            scope = parse_qs(urlsplit(self.path).query)["scope"][0]
            if self.headers.get("Authorization") != f"Basic {expected}":
                self.send_error(401)
                return
            body = json.dumps({"token": authority.token(scope), "expires_in": authority.good_for}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to say."""

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planvirt-authority-")))
        authority = Authority(make_certificate(folder))
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        bundle = folder / "certificate.pem"
        realm = f"http://127.0.0.1:{server.server_address[1]}/token"
        token = f"{{realm: '{realm}', service: registry, issuer: planvirt-tests, rootcertbundle: {bundle}}}"
        running = stack.enter_context(registry(auth=f"auth: {{token: {token}}}"))
        yield running, authority
