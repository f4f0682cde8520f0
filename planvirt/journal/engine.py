"""Opening the journal's database: SQLite with a write-ahead log by default, or PostgreSQL."""

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from planvirt.errors import ConfigError, PlanvirtError
from planvirt.journal import tables
from planvirt.secret import Secret

_BUSY = 30.0  # seconds that a writer waits for another process


class JournalError(PlanvirtError):
    """The journal cannot be opened, read or written."""


def open_engine(url: str) -> Engine:
    """Connect to the journal's database and make its tables if they are not there.

    Raises ConfigError for a URL of another kind, JournalError when the database does not answer or has another layout.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("cannot read the journal's url", details=str(error)) from error
    backend = parsed.get_backend_name()
    in_memory = backend == "sqlite" and parsed.database in (None, "", ":memory:")
    if in_memory or backend not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"cannot keep the journal in {parsed.render_as_string(hide_password=True)}",
            resolution="name an SQLite file or a PostgreSQL database in [journal] url",
        )
    if backend == "sqlite":
        engine = _sqlite(url, Path(parsed.database or ""))
    else:
        try:
            engine = create_engine(
                parsed,
                json_serializer=_dumps,
                pool_pre_ping=True,
                isolation_level="READ COMMITTED",  # whoever waited for a row lock must see what it waited for
            )
        except (NoSuchModuleError, ImportError) as error:
            raise ConfigError(
                f"cannot open the journal: there is no driver for {parsed.drivername}",
                details=str(error),
                resolution="install that driver into planvirt's environment, or name another one in [journal] url",
            ) from error
    try:
        _lay_out(engine)
    except SQLAlchemyError as error:
        raise JournalError(
            f"cannot open the journal {parsed.render_as_string(hide_password=True)}",
            details=str(getattr(error, "orig", None) or error),
            resolution="check [journal] url in planvirt.toml, and that the place can be written to",
        ) from error
    return engine


def _sqlite(url: str, file: Path) -> Engine:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(
            f"cannot make the journal's folder {file.parent}",
            details=error.strerror or str(error),
            resolution="set PLANVIRT_HOME, or [journal] url in planvirt.toml, to a place that can be written to",
        ) from error
    engine = create_engine(url, json_serializer=_dumps, connect_args={"timeout": _BUSY, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We begin transactions ourselves: sqlite3's own habit would take the write lock too late, and two writers that
        # both hold a read lock can only fail.
        connection.isolation_level = None
        _write_ahead(connection)
        # Commits survive a killed process. After a power cut the last ones may be missing; names and ids are chosen
        # from the plan before anything happens, so recovery still finds what such a step made.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        if not connection.get_execution_options().get("reading"):  # a single query needs no transaction
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have a write-ahead log. Making one needs the file for oneself: the one lock for which SQLite does not wait."""
    patience = time.monotonic() + _BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > patience:
                raise
            time.sleep(0.01)
        else:
            return


def _lay_out(engine: Engine) -> None:
    known = _layout(engine)
    if known is None:
        try:
            with engine.begin() as connection:
                tables.metadata.create_all(connection)
                connection.execute(insert(tables.layout).values(version=tables.LAYOUT))
        except DBAPIError:
            known = _layout(engine)  # another process may have been quicker
            if known is None:
                raise
        else:
            known = tables.LAYOUT
    if known != tables.LAYOUT:
        raise JournalError(
            f"cannot use the journal: its layout is {known}, this planvirt knows {tables.LAYOUT}",
            resolution="use the planvirt version that wrote it, or another journal",
        )


def _layout(engine: Engine) -> int | None:
    with engine.connect().execution_options(reading=True) as connection:
        if not engine.dialect.has_table(connection, "layout"):
            return None
        return connection.execute(select(tables.layout.c.version)).scalar()


def _dumps(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: object) -> Any:
    if isinstance(value, Secret | Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"the journal cannot keep a {type(value).__name__}")
