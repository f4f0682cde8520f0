"""The layout of the journal's tables. Its number stands in the journal, and migrations raise it when one is opened."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, delete, func, insert, select

from planvirt.journal import tables
from planvirt.journal.engine import JournalError
from planvirt.journal.migrations import MIGRATIONS, Migration

_LOCK = int.from_bytes(b"planvirt")  # PostgreSQL numbers its locks; they are the database's own


def lay_out(engine: Engine, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Make the tables, or bring those of an older planvirt up to date: wholly or not at all, and once if many come.

    Raises JournalError for a journal of a newer planvirt.
    """
    with engine.connect().execution_options(reading=True) as connection:
        found = _layout(connection)
    if found < len(migrations):
        with _alone(engine) as connection:
            found = _layout(connection)  # another process may have been quicker
            if found < len(migrations):
                _migrate(connection, migrations, found)
                found = len(migrations)
    if found > len(migrations):
        raise JournalError(
            f"cannot use the journal: its layout is {found}, this planvirt knows {len(migrations)}",
            resolution="use the planvirt version that wrote it, or another journal",
        )


def _layout(connection: Connection) -> int:
    if not connection.dialect.has_table(connection, tables.layout.name):
        return 0
    return connection.execute(select(tables.layout.c.version)).scalar() or 0


def _migrate(connection: Connection, migrations: Sequence[Migration], found: int) -> None:
    from alembic.migration import MigrationContext  # takes a tenth of a second, which most journals need not wait for
    from alembic.operations import Operations

    operations = Operations(MigrationContext.configure(connection))
    for migration in migrations[found:]:
        migration(operations)
    connection.execute(delete(tables.layout))
    connection.execute(insert(tables.layout).values(version=len(migrations)))


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction while which no other planvirt looks at the layout in order to change it."""
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
                yield connection
            return
        # SQLite changes most of a table by making it anew, for which nothing may hold on to its rows meanwhile. That
        # can be said only before the transaction, which takes the lock as all of ours do.
        _pragma(connection, "foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
        finally:
            _pragma(connection, "foreign_keys=ON")


def _pragma(connection: Connection, what: str) -> None:
    """Tell SQLite something without a transaction, which SQLAlchemy would begin."""
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 - for the type checker: it is there as long as the connection is open
    driver.execute(f"PRAGMA {what}")
