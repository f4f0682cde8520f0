"""Transactions of the journal's database. What the database says against one becomes a JournalError."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from planvirt.journal.engine import JournalError, open_engine
from planvirt.journal.layout import lay_out

_OPENING = "check [journal] url in planvirt.toml, and that the place can be written to"
_USING = "check that its disk has space and its database answers, then see 'planvirt runs'"


class Database:
    """Hands out one transaction at a time to a thread: to read with, or to write with.

    SQLite has one writer at a time, whatever the program does. Threads that take turns at one connection are served
    sooner than connections that wait for each other's locks, and spare themselves the pool. Reading has a connection
    of its own, so that it never waits for a writer. Other databases are reached through SQLAlchemy's pool.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self._writer: _Held | None = None
        self._reader: _Held | None = None
        try:
            with _translated(f"cannot open the journal {self._engine.url.render_as_string()}", _OPENING):
                lay_out(self._engine)
                if self._engine.dialect.name == "sqlite":
                    self._writer = _Held(self._engine.connect())
                    self._reader = _Held(self._engine.connect().execution_options(reading=True))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back the connections."""
        for held in (self._writer, self._reader):
            if held is not None:
                held.close()
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is kept when the block ends, and undone when it raises."""
        with _translated("cannot write to the journal"):
            if self._writer is not None:
                with self._writer.lock, self._writer.connection.begin():
                    yield self._writer.connection
            else:
                with self._engine.begin() as connection:
                    yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that changes nothing."""
        with _translated("cannot read the journal"):
            if self._reader is not None:
                with self._reader.lock, self._reader.connection.begin():
                    yield self._reader.connection
            else:
                with self._engine.connect() as connection:
                    yield connection


class _Held:
    """A connection that stays open, and the lock of the thread that uses it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()

    def close(self) -> None:
        with self.lock:
            self.connection.close()


@contextmanager
def _translated(what: str, resolution: str = _USING) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise JournalError(
            what,
            details=str(getattr(error, "orig", None) or error),
            resolution=resolution,
        ) from error
