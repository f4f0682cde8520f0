"""Two journals of one database, as two processes have them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from planvirt.journal.journal import Journal
from tests.planvirt.journal.samples import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/journal.sqlite"


@pytest.fixture
def journal(url: str, clock: Clock) -> Iterator[Journal]:
    with Journal(url, clock=clock, who="me") as journal:
        yield journal


@pytest.fixture
def other(url: str, clock: Clock) -> Iterator[Journal]:
    """Another process. It has the same name, as it happens between containers."""
    with Journal(url, clock=clock, who="me") as journal:
        yield journal
