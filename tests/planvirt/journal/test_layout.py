"""The layout of the tables: made at once by many, the same however a journal came to it, and never a newer one."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Engine, String, select
from sqlalchemy.exc import SQLAlchemyError

from planvirt.journal import tables
from planvirt.journal.engine import JournalError, open_engine
from planvirt.journal.journal import Claimed, Journal
from planvirt.journal.layout import lay_out
from planvirt.journal.migrations import MIGRATIONS
from planvirt.journal.transitions import RunState, StepState
from tests.planvirt.journal.samples import Clock, execute, record, step

KEPT, KILLED = "20261101-030000-aaaaaa", "20261102-030000-bbbbbb"


@pytest.fixture
def old_url(url: str) -> str:
    """A journal of layout 1."""
    text = Path(__file__).with_name("layout-1.sql").read_text()
    if url.startswith("postgresql"):
        text = text.replace("    id INTEGER NOT NULL", "    id SERIAL NOT NULL")
    execute(url, *text.split(";\n\n"))
    return url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    yield engine
    engine.dispose()


def differences(url: str) -> list[Any]:
    """What alembic would change to make a journal what `tables` says."""
    engine = open_engine(url)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
    engine.dispose()
    return found


def layout(url: str) -> list[str]:
    return execute(url, "SELECT version FROM layout")


def test_a_new_journal_has_the_tables_of_the_program(url: str) -> None:
    Journal(url).close()
    assert differences(url) == []
    assert layout(url) == [f"({len(MIGRATIONS)},)"]


def test_an_old_journal_gets_the_tables_of_the_program(old_url: str) -> None:
    assert differences(old_url) != []
    Journal(old_url).close()
    assert differences(old_url) == []
    assert layout(old_url) == [f"({len(MIGRATIONS)},)"]


def test_an_old_journal_keeps_what_it_held(old_url: str) -> None:
    with Journal(old_url, clock=Clock()) as journal:
        assert [run.id for run in journal.runs()] == [KILLED, KEPT]
        kept, (stop,) = journal.run(KEPT), journal.steps(KEPT)
        assert (kept.state, kept.inputs, kept.parallel, kept.ended) == (RunState.KEPT, {"n": 2}, {"image": 2}, 1009.0)
        assert (kept.error or {})["details"] == "it hangs"
        assert (stop.state, stop.attempts, stop.undo, stop.final) == (StepState.FAILED, 3, {"was": "running"}, False)
        (launch,) = journal.steps(KILLED)
        assert (launch.needs, launch.final, launch.arguments) == (("a", "b"), True, {"memory": 1024})
        assert [line.why for line in journal.transitions(KILLED)] == ["define"]
        with pytest.raises(Claimed, match="web-2"):
            journal.begin(record("r3"), [step("b"), step("web-2", 1)])


def test_a_run_of_an_old_journal_can_be_taken_over(old_url: str) -> None:
    clock = Clock()
    clock.now = 3000.0
    with Journal(old_url, clock=clock) as journal:
        assert journal.take_over(KILLED, "by hand").state == RunState.ROLLING_BACK
        assert journal.take_over(KEPT, "by hand").state == RunState.ROLLING_BACK
        journal.move_step(KILLED, "launch.web-2", StepState.UNDOING, "rollback")
        assert len(journal.transitions(KILLED)) == 3


def test_a_journal_of_a_newer_planvirt_is_refused(url: str) -> None:
    Journal(url).close()
    execute(url, "UPDATE layout SET version = 99")
    with pytest.raises(JournalError, match=f"its layout is 99, this planvirt knows {len(MIGRATIONS)}") as caught:
        Journal(url)
    assert "planvirt version" in caught.value.resolution
    assert layout(url) == ["(99,)"]


def _a_table_made_anew(op: Operations) -> None:
    """What SQLite can only do by copying a table to which others refer."""
    with op.batch_alter_table("runs") as runs:
        runs.alter_column("kind", type_=String(32), existing_type=String(16))
        runs.add_column(Column("reason", String(16), nullable=False, server_default="none"))


def _a_failure(op: Operations) -> None:
    op.execute("UPDATE runs SET kind = 'changed'")
    op.drop_table("claims")
    op.execute("SELECT * FROM nowhere")


def test_a_table_that_others_refer_to_can_be_made_anew(old_url: str, engine: Engine) -> None:
    before = execute(old_url, "SELECT * FROM steps", "SELECT * FROM claims", "SELECT * FROM transitions")
    lay_out(engine, (*MIGRATIONS, _a_table_made_anew))
    assert execute(old_url, "SELECT * FROM steps", "SELECT * FROM claims", "SELECT * FROM transitions") == before
    assert execute(old_url, "SELECT reason FROM runs") == ["('none',)", "('none',)"]
    with pytest.raises(SQLAlchemyError, match=r"(?i)foreign key"):
        execute(old_url, "DELETE FROM runs")
    with engine.connect() as connection, pytest.raises(SQLAlchemyError, match=r"(?i)foreign key"):
        connection.execute(tables.runs.delete())


def test_a_migration_that_fails_leaves_everything_as_it_was(old_url: str, engine: Engine) -> None:
    before = execute(old_url, "SELECT * FROM runs", "SELECT * FROM claims")
    with pytest.raises(SQLAlchemyError, match="nowhere"):
        lay_out(engine, (*MIGRATIONS, _a_failure))
    assert execute(old_url, "SELECT * FROM runs", "SELECT * FROM claims") == before
    assert layout(old_url) == ["(1,)"]
    lay_out(engine)
    assert differences(old_url) == []


def test_many_may_bring_one_journal_up_to_date(old_url: str) -> None:
    gate = threading.Barrier(6)
    runs: list[object] = []

    def once(op: Operations) -> None:
        runs.append(op.get_bind().execute(select(tables.runs.c.id)).all())

    def work(_number: int) -> None:
        engine = open_engine(old_url)
        gate.wait()
        lay_out(engine, (*MIGRATIONS, once))
        engine.dispose()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert len(runs) == 1
    assert layout(old_url) == [f"({len(MIGRATIONS) + 1},)"]


def test_many_may_make_a_new_journal(url: str) -> None:
    gate = threading.Barrier(6)

    def make(_number: int) -> int:
        gate.wait()
        with Journal(url) as journal:
            return len(journal.runs())

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(make, range(6))) == [0] * 6


def test_many_may_make_new_journals(tmp_path: Path) -> None:
    gate = threading.Barrier(6)

    def make(number: int) -> int:
        gate.wait()
        with Journal(f"sqlite:///{tmp_path}/{number // 6}/journal.sqlite") as journal:
            return len(journal.runs())

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(make, range(60))) == [0] * 60


def test_alembic_is_imported_for_a_migration_only(sqlite_url: str) -> None:
    program = (
        "import sys\nfrom planvirt.journal.journal import Journal\n"
        "Journal(sys.argv[1]).close()\nprint('alembic' in sys.modules)"
    )

    def opened() -> str:
        command = [sys.executable, "-c", program, sqlite_url]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert [opened(), opened()] == ["True", "False"]
