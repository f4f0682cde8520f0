"""Layout 1: runs with their steps, the audit trail, and claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Integer, String, Text

if TYPE_CHECKING:
    from alembic.operations import Operations


def upgrade(op: Operations) -> None:
    """Make the tables, and the one that holds the layout's number."""
    op.create_table("layout", Column("version", Integer, primary_key=True, autoincrement=False))
    op.create_table(
        "runs",
        Column("id", String(64), primary_key=True),
        Column("kind", String(16), nullable=False),
        Column("plan", String(64), nullable=False),
        Column("path", Text, nullable=False),
        Column("text", Text, nullable=False),
        Column("hash", String(64), nullable=False),
        Column("commit", String(64)),
        Column("inputs", JSON, nullable=False),
        Column("on_failure", String(16), nullable=False),
        Column("parallel", JSON, nullable=False),
        Column("state", String(24), nullable=False),
        Column("error", JSON),
        Column("flow_run_id", String(64)),
        Column("owner", Text, nullable=False),
        Column("token", String(32), nullable=False),
        Column("lease_until", Float, nullable=False),
        Column("created", Float, nullable=False),
        Column("started", Float),
        Column("ended", Float),
    )
    op.create_index("ix_runs_plan", "runs", ["plan"])
    op.create_index("ix_runs_state", "runs", ["state"])
    op.create_table(
        "steps",
        Column("run", String(64), ForeignKey("runs.id"), primary_key=True),
        Column("id", String(160), primary_key=True),
        Column("position", Integer, nullable=False),
        Column("action", String(32), nullable=False),
        Column("instance", String(64), nullable=False),
        Column("uuid", String(36), nullable=False),
        Column("host", String(64), nullable=False),
        Column("operation", String(64)),
        Column("needs", JSON, nullable=False),
        Column("final", Boolean, nullable=False),
        Column("decided", JSON, nullable=False),
        Column("state", String(16), nullable=False),
        Column("phase", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("arguments", JSON, nullable=False),
        Column("undo", JSON, nullable=False),
        Column("outputs", JSON, nullable=False),
        Column("error", JSON),
        Column("undo_error", JSON),
        Column("started", Float),
        Column("ended", Float),
    )
    op.create_index("steps_by_instance", "steps", ["uuid"])
    op.create_table(
        "transitions",
        Column("id", Integer, primary_key=True),
        Column("run", String(64), ForeignKey("runs.id"), nullable=False),
        Column("step", String(160)),
        Column("before", String(24), nullable=False),
        Column("after", String(24), nullable=False),
        Column("at", Float, nullable=False),
        Column("who", Text, nullable=False),
        Column("why", Text, nullable=False),
    )
    op.create_index("transitions_by_run", "transitions", ["run", "id"])
    op.create_table(
        "claims",
        Column("uuid", String(36), primary_key=True),
        Column("instance", String(64), nullable=False),
        Column("host", String(64), nullable=False),
        Column("run", String(64), ForeignKey("runs.id"), nullable=False),
    )
    op.create_index("ix_claims_run", "claims", ["run"])
