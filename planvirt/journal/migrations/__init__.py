"""How the journal's tables became what they are: number n of these functions makes layout n of layout n - 1.

A migration that was released is never changed. It says in full what it does, without `planvirt.journal.tables`, which
goes on changing. Alembic is imported for the types only: most journals that are opened need no migration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from planvirt.journal.migrations import m0001_first_tables, m0002_runs_by_created

if TYPE_CHECKING:
    from alembic.operations import Operations

Migration = Callable[["Operations"], None]

MIGRATIONS: tuple[Migration, ...] = (
    m0001_first_tables.upgrade,
    m0002_runs_by_created.upgrade,
)
