"""Layout 2: the latest runs are found without sorting all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.operations import Operations


def upgrade(op: Operations) -> None:
    """Make the index."""
    op.create_index("runs_by_created", "runs", ["created", "id"])
