"""Two journals of one database, as two processes have them: of an SQLite file, and of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from planvirt.journal.journal import Journal
from tests.planvirt.journal.samples import Clock

if TYPE_CHECKING:
    from tests.planvirt.journal.postgresql import Server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    from tests.planvirt.journal.postgresql import server

    with server() as started:
        yield started


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/journal.sqlite"


@pytest.fixture
def postgresql_url(postgresql: Server) -> Iterator[str]:
    name = postgresql.new_database()
    yield postgresql.url(name)
    postgresql.drop(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest) -> str:
    """A database without tables. Whoever asks for it, also through a journal, is run on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def journal(url: str, clock: Clock) -> Iterator[Journal]:
    with Journal(url, clock=clock, who="me") as journal:
        yield journal


@pytest.fixture
def other(url: str, clock: Clock) -> Iterator[Journal]:
    """Another process. It has the same name, as it happens between containers."""
    with Journal(url, clock=clock, who="me") as journal:
        yield journal
