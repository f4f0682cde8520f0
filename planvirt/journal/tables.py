"""The journal's tables. They are plain SQL that SQLite and PostgreSQL share; only the latter holds to the lengths.

Whoever changes them adds a migration to `planvirt.journal.migrations`.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)


class Prose(TypeDecorator[str]):
    """Text of any length and origin. What databases refuse becomes a question mark: broken Unicode, and NUL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        """The text as it can be kept."""
        return value if value is None else value.encode(errors="replace").decode().replace("\0", "?")


metadata = MetaData()

# One row: how many migrations the tables have been through.
layout = Table("layout", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("plan", String(64), nullable=False, index=True),
    Column("path", Prose, nullable=False),
    Column("text", Prose, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("commit", String(64)),
    Column("inputs", JSON, nullable=False),
    Column("on_failure", String(16), nullable=False),
    Column("parallel", JSON, nullable=False),
    Column("state", String(24), nullable=False, index=True),
    Column("error", JSON(none_as_null=True)),
    Column("flow_run_id", String(64)),
    Column("owner", Prose, nullable=False),  # for people
    Column("token", String(32), nullable=False),  # of the journal whose run it is; empty when it is nobody's
    Column("lease_until", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Index("runs_by_created", "created", "id"),
)

steps = Table(
    "steps",
    metadata,
    Column("run", ForeignKey("runs.id"), primary_key=True),
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
    Column("phase", Prose, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("arguments", JSON, nullable=False),
    Column("undo", JSON, nullable=False),
    Column("outputs", JSON, nullable=False),
    Column("error", JSON(none_as_null=True)),
    Column("undo_error", JSON(none_as_null=True)),
    Column("started", Float),
    Column("ended", Float),
    Index("steps_by_instance", "uuid"),
)

transitions = Table(
    "transitions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", ForeignKey("runs.id"), nullable=False),
    Column("step", String(160)),
    Column("before", String(24), nullable=False),
    Column("after", String(24), nullable=False),
    Column("at", Float, nullable=False),
    Column("who", Prose, nullable=False),
    Column("why", Prose, nullable=False),
    Index("transitions_by_run", "run", "id"),
)

claims = Table(
    "claims",
    metadata,
    Column("uuid", String(36), primary_key=True),
    Column("instance", String(64), nullable=False),
    Column("host", String(64), nullable=False),
    Column("run", ForeignKey("runs.id"), nullable=False, index=True),
)
