"""The Prefect server: the configured one, or one of our own on this machine, started once and kept."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from planvirt.errors import PlanvirtError

_USUAL_PORT = 4200
_START_LIMIT = 90.0  # seconds that a server gets to answer for the first time; a fresh database takes a while


class ServerError(PlanvirtError):
    """No Prefect server answers, and none can be started."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """The server that planvirt started here."""

    pid: int
    url: str  # of the API

    @property
    def ui(self) -> str:
        """The address of its pages."""
        return self.url.removesuffix("/api")


def configured_url(environ: Mapping[str, str]) -> str | None:
    """The API that the user has chosen: PREFECT_API_URL, or that of the active Prefect profile. None: our own."""
    if url := environ.get("PREFECT_API_URL"):
        return url
    home = Path(environ.get("PREFECT_HOME") or Path(environ.get("HOME", "/")) / ".prefect").expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text())
    except (OSError, ValueError):
        return None
    active = environ.get("PREFECT_PROFILE") or profiles.get("active")
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether a Prefect API is alive at this address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=seconds) as reply:  # noqa: S310 - the operator's own URL
            return bool(reply.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def reachable(url: str) -> bool:
    """Whether anything answers at the address of an API, if only to say that it wants to know who asks."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10.0):  # noqa: S310 - the operator's own URL
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def local_server(home: Path) -> LocalServer | None:
    """The server that planvirt started here before, if it still answers."""
    try:
        known = LocalServer(**json.loads(_note(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return known if answers(known.url) else None


def ensure_server(home: Path) -> tuple[LocalServer, bool]:
    """The local server, and whether this call started it. Of several calls at once only one starts it."""
    if known := local_server(home):
        return known, False
    with _locked(home):
        if known := local_server(home):
            return known, False
        return _start(home), True


def stop_server(home: Path) -> LocalServer | None:
    """End the local server. Returns it, or None when there was none."""
    with _locked(home):
        try:
            known = LocalServer(**json.loads(_note(home).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        _note(home).unlink(missing_ok=True)
        return known if _end(known.pid) else None


def server_environment(home: Path) -> dict[str, str]:
    """What a local server, and those who talk to it, need in their environment: a home of its own, and no telemetry."""
    return {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }


def _start(home: Path) -> LocalServer:
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    log = home / "prefect" / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            # Without its own address the server would send its pages to the usual port, whoever listens there.
            env=_without_prefect(os.environ) | server_environment(home) | {"PREFECT_UI_API_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = LocalServer(pid=process.pid, url=url)
    end = time.monotonic() + _START_LIMIT
    while not answers(server.url, 1.0):
        if process.poll() is not None or time.monotonic() > end:
            _end(process.pid)
            raise ServerError(
                "cannot start a Prefect server on this machine",
                details=_last_lines(log),
                resolution=f"see {log}, or name a running server in PREFECT_API_URL",
            )
        time.sleep(0.1)
    temporary = _note(home).with_suffix(".new")
    temporary.write_text(json.dumps(asdict(server)))
    temporary.replace(_note(home))
    return server


def _without_prefect(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings that are meant for another server."""
    return {name: value for name, value in environ.items() if name not in ("PREFECT_API_URL", "PREFECT_PROFILE")}


def _free_port() -> int:
    for port in (_USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerError("cannot start a Prefect server: no port is free", resolution="end a program that listens")


def _end(pid: int) -> bool:
    """End a server with the processes it started. The number may belong to somebody else by now: look first."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    if b"prefect" not in command:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return True
        for _ in range(100):
            if _gone(pid):
                return True
            time.sleep(0.1)
    return True


def _gone(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # when it is our own child
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def _note(home: Path) -> Path:
    return home / "prefect" / "server.json"


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
