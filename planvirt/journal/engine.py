"""Opening the journal's database: SQLite with a write-ahead log by default, or PostgreSQL."""

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from planvirt.errors import ConfigError, PlanvirtError
from planvirt.secret import Secret

_BUSY = 30.0  # seconds that a writer waits for another process, if the url has no `timeout`
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}  # for urls that name none
_SPELLING = (
    "name an SQLite file (sqlite:////FILE) or a PostgreSQL database (postgresql://USER@HOST/NAME) in [journal] url"
)


class JournalError(PlanvirtError):
    """The journal cannot be opened, read or written."""


def open_engine(url: str) -> Engine:
    """Connect to the journal's database, whatever it holds. PostgreSQL is spoken to through psycopg if nothing is said.

    Raises ConfigError for a URL of another kind, JournalError when there is no place for the file.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # what they say may hold the password
        raise ConfigError("cannot read the journal's url", resolution=_SPELLING) from error
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    backend = parsed.get_backend_name()
    in_memory = backend == "sqlite" and parsed.database in (None, "", ":memory:")
    if in_memory or backend not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"cannot keep the journal in {parsed.render_as_string(hide_password=True)}", resolution=_SPELLING
        )
    if backend == "sqlite":
        return _sqlite(parsed, Path(parsed.database or ""))
    return _postgresql(parsed)


def _postgresql(url: URL) -> Engine:
    try:
        return create_engine(
            url,
            json_serializer=_dumps,
            pool_pre_ping=True,
            isolation_level="READ COMMITTED",  # whoever waited for a row lock must see what it waited for
        )
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(
            f"cannot open the journal: there is no driver for {url.drivername}",
            details=str(error),
            resolution="install planvirt as 'planvirt[postgresql]', or name another driver in [journal] url",
        ) from error


def _sqlite(url: URL, file: Path) -> Engine:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(
            f"cannot make the journal's folder {file.parent}",
            details=error.strerror or str(error),
            resolution="set PLANVIRT_HOME, or [journal] url in planvirt.toml, to a place that can be written to",
        ) from error
    patience = _patience(url)
    engine = create_engine(url, json_serializer=_dumps, connect_args={"timeout": patience, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We begin transactions ourselves: sqlite3's own habit would take the write lock too late, and two writers that
        # both hold a read lock can only fail.
        connection.isolation_level = None
        _write_ahead(connection, patience)
        # Commits survive a killed process. After a power cut the last ones may be missing; names and ids are chosen
        # from the plan before anything happens, so recovery still finds what such a step made.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        if not connection.get_execution_options().get("reading"):  # a single query needs no transaction
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _patience(url: URL) -> float:
    try:
        return float(str(url.query.get("timeout", _BUSY)))
    except ValueError as error:
        raise ConfigError(
            "cannot read the journal's url: its timeout is no number of seconds", resolution=_SPELLING
        ) from error


def _write_ahead(connection: sqlite3.Connection, patience: float) -> None:
    """Have a write-ahead log. Making one needs the file for oneself: the one lock for which SQLite does not wait."""
    end = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _dumps(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: object) -> Any:
    if isinstance(value, Secret | Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"the journal cannot keep a {type(value).__name__}")
