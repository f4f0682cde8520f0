"""A PostgreSQL server of the tests' own: a folder, a socket in it, no port, and nothing left of it afterwards."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

_NOBODY = 65534  # PostgreSQL refuses to run as root
_PROGRAMS = "/usr/lib/postgresql"  # Debian keeps them out of PATH


class Server:
    """A running server. Everybody who reaches its socket is its superuser."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)

    def new_database(self) -> str:
        """Make an empty database, and tell its name."""
        name = f"journal{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop(self, name: str) -> None:
        """Remove a database. A connection that is left open to it is an error."""
        self.execute(f"DROP DATABASE {name}")

    def url(self, name: str) -> str:
        """What an operator would write into planvirt.toml."""
        return f"postgresql://planvirt@/{name}?host={self._folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Carry out statements that may not be in a transaction, and give back the last one's rows."""
        with psycopg.connect(
            host=str(self._folder), user="planvirt", dbname=database, autocommit=True, connect_timeout=10
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def server() -> Iterator[Server]:
    """Start a server, and stop it."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="planvirt-postgresql-"))  # pytest's own folders are closed to other users
    try:
        _make_cluster(folder, programs)
        with _started(folder, programs) as process:
            started = Server(folder)
            _wait(started, process, folder / "log")
            yield started
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    found = sorted(Path(_PROGRAMS).glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    if on_path:
        return Path(on_path).resolve().parent
    pytest.fail(
        "cannot test the journal on PostgreSQL: there is none; run 'scripts/setup-system.sh test', which installs"
        " Debian's package postgresql, or leave these tests out with -m 'not real'",
        pytrace=False,
    )


def _as_nobody(folder: Path) -> list[str]:
    """What runs a program as a user whom PostgreSQL accepts, and ends it with us, even if we are killed."""
    if os.getuid() != 0:
        return ["setpriv", "--pdeathsig", "INT"]
    os.chown(folder, _NOBODY, _NOBODY)
    return ["setpriv", "--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups", "--pdeathsig", "INT"]


def _make_cluster(folder: Path, programs: Path) -> None:
    options = ["--no-sync", "--auth=trust", "--username=planvirt", "--encoding=UTF8", "--locale=C"]
    command = [*_as_nobody(folder), str(programs / "initdb"), *options, "-D", str(folder / "data")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        pytest.fail(f"cannot make a PostgreSQL cluster: {done.stderr}", pytrace=False)


@contextmanager
def _started(folder: Path, programs: Path) -> Iterator["subprocess.Popen[bytes]"]:
    settings = {"listen_addresses": "", "unix_socket_directories": folder}
    settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = [*_as_nobody(folder), str(programs / "postgres"), "-D", str(folder / "data"), *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # it ends its connections, then itself
        process.wait(30)


def _wait(started: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(f"cannot start PostgreSQL: {log.read_text()}", pytrace=False)
        try:
            started.execute("SELECT 1")
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"cannot reach PostgreSQL: {log.read_text()}", pytrace=False)
