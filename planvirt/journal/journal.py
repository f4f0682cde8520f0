"""The journal itself: each method is one transaction, checked against the transition table and kept as audit trail."""

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from planvirt.errors import Conflict, PlanvirtError
from planvirt.journal import tables
from planvirt.journal.engine import JournalError, open_engine
from planvirt.journal.records import Claim, RunRecord, StepRecord, Transition
from planvirt.journal.transitions import ENDED, UNDOABLE, RunState, StepState, check_run, check_step

LEASE = 60.0  # seconds for which a run counts as alive after its last sign of life


class Claimed(Conflict):
    """Another run owns an instance."""


class LostClaim(Conflict):
    """This run does not own the instance any more: it must not touch it again."""


class UnknownRun(PlanvirtError):
    """There is no run with that id."""


class Journal:
    """Keeps runs, steps, transitions and claims. Safe to use from several threads, and from several processes at once.

    Methods raise JournalError when the database fails, and IllegalTransition for a fault of the program.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time, who: str | None = None) -> None:
        self._engine = open_engine(url)
        self._clock = clock
        self._who = who or f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections to the database."""
        self._engine.dispose()

    # Runs

    def begin(self, run: RunRecord, steps: Sequence[StepRecord]) -> None:
        """Record a new run with all its steps and claim every instance that it names, or change nothing at all.

        Raises Claimed when another run owns one of the instances; the message says whether that run still lives.
        """
        now = self._clock()
        with _Transaction(self) as connection:
            row = asdict(run) | {"owner": self._who, "lease_until": now + LEASE, "created": now}
            connection.execute(insert(tables.runs).values(row))
            connection.execute(
                insert(tables.steps),
                [asdict(step) | {"run": run.id, "needs": list(step.needs)} for step in steps],
            ) if steps else None
            for uuid, step in {step.uuid: step for step in steps}.items():
                self._claim(connection, run.id, uuid, step.instance, step.host)
            self._note(connection, run.id, None, "", run.state, "planned")

    def move_run(
        self,
        run: str,
        to: RunState,
        why: str,
        *,
        error: Mapping[str, str] | None = None,
        flow_run_id: str | None = None,
    ) -> None:
        """Change a run's state. An end releases the run's claims in the same transaction."""
        now = self._clock()
        with _Transaction(self) as connection:
            before = RunState(self._run_row(connection, run).state)
            check_run(before, to)
            changes: dict[str, Any] = {"state": to}
            if error is not None:
                changes["error"] = dict(error)
            if flow_run_id is not None:
                changes["flow_run_id"] = flow_run_id
            if to == RunState.RUNNING:
                changes["started"] = now
            changes["ended"] = now if to in ENDED else None
            connection.execute(update(tables.runs).where(tables.runs.c.id == run).values(changes))
            if to in ENDED:
                connection.execute(delete(tables.claims).where(tables.claims.c.run == run, *self._finished(run, to)))
            self._note(connection, run, None, before, to, why)

    def take_over(self, run: str, why: str) -> None:
        """Become the owner of a run that has ended, or whose owner died, and claim its instances again.

        Raises Claimed when its owner still lives, or when another run owns one of the instances by now.
        """
        now = self._clock()
        with _Transaction(self) as connection:
            row = self._run_row(connection, run)
            if row.state not in ENDED and row.lease_until > now and row.owner != self._who:
                raise Claimed(
                    f"cannot take over run {run}: it is still running",
                    details=f"its owner {row.owner} gave a sign of life {LEASE - (row.lease_until - now):.0f} s ago",
                    resolution="wait for it, or end that process first",
                )
            connection.execute(
                update(tables.runs).where(tables.runs.c.id == run).values(owner=self._who, lease_until=now + LEASE)
            )
            held = select(tables.steps).where(tables.steps.c.run == run).order_by(tables.steps.c.position)
            for uuid, step in {step.uuid: step for step in connection.execute(held)}.items():
                self._claim(connection, run, uuid, step.instance, step.host)
            self._note(connection, run, None, row.state, row.state, why)

    def renew(self, run: str) -> None:
        """A sign of life: the run's lease lasts for another LEASE seconds."""
        with _Transaction(self) as connection:
            connection.execute(
                update(tables.runs)
                .where(tables.runs.c.id == run, tables.runs.c.owner == self._who)
                .values(lease_until=self._clock() + LEASE)
            )

    def set_flow_run(self, run: str, flow_run_id: str) -> None:
        """Remember under which id Prefect shows the run."""
        with _Transaction(self) as connection:
            connection.execute(update(tables.runs).where(tables.runs.c.id == run).values(flow_run_id=flow_run_id))

    def run(self, run: str) -> RunRecord:
        """One run, by its id or an unambiguous beginning of it. Raises UnknownRun."""
        with self._reading() as connection:
            query = select(tables.runs).where(tables.runs.c.id.startswith(run, autoescape=True)).limit(2)
            rows = connection.execute(query).all()
        exact = [row for row in rows if row.id == run]
        found = exact or rows
        if len(found) != 1:
            what = "no run has that id" if not found else "several runs begin with it"
            raise UnknownRun(f"cannot find run {run}: {what}", resolution="'planvirt runs' lists them")
        return _run(found[0])

    def runs(self, *, plan: str | None = None, limit: int = 50) -> tuple[RunRecord, ...]:
        """The latest runs, newest first."""
        query = select(tables.runs).order_by(tables.runs.c.created.desc(), tables.runs.c.id.desc()).limit(limit)
        if plan is not None:
            query = query.where(tables.runs.c.plan == plan)
        with self._reading() as connection:
            return tuple(_run(row) for row in connection.execute(query))

    def later_runs(self, run: str) -> tuple[str, ...]:
        """Ids of later runs, oldest first, that did something on an instance of this run and did not undo it."""
        mine = select(tables.steps.c.uuid).where(tables.steps.c.run == run)
        began = select(tables.runs.c.created).where(tables.runs.c.id == run).scalar_subquery()
        kept = (StepState.DONE, StepState.COMMITTED, StepState.DOING, StepState.FAILED)
        query = (
            select(tables.runs.c.id)
            .join(tables.steps, tables.steps.c.run == tables.runs.c.id)
            .where(
                tables.runs.c.id != run,
                tables.runs.c.created > began,
                tables.steps.c.uuid.in_(mine),
                tables.steps.c.state.in_(kept),
            )
            .group_by(tables.runs.c.id, tables.runs.c.created)
            .order_by(tables.runs.c.created)
        )
        with self._reading() as connection:
            return tuple(connection.execute(query).scalars())

    # Steps

    def move_step(self, run: str, step: str, to: StepState, why: str, **changes: Any) -> None:
        """Change a step's state, and with it `arguments`, `outputs`, `error` or `undo_error`.

        Entering `doing` counts an attempt and needs the claim on the instance: raises LostClaim without it.
        """
        now = self._clock()
        with _Transaction(self) as connection:
            row = self._step_row(connection, run, step)
            before = StepState(row.state)
            check_step(before, to)
            values: dict[str, Any] = {"state": to} | changes
            if to == StepState.DOING:
                self._hold(connection, run, step, row.uuid, row.instance)
                values |= {"attempts": row.attempts + 1, "started": row.started or now, "phase": ""}
            elif to in (StepState.DONE, StepState.FAILED, StepState.SKIPPED):
                values["ended"] = now
            self._update_step(connection, run, step, values)
            self._note(connection, run, step, before, to, why)

    def phase(self, run: str, step: str, phase: str, undo: Mapping[str, Any]) -> None:
        """Record what the step is about to do to the outside, and what undoing it will need, before it does it.

        It is also where a pre-empted step finds out: raises LostClaim when the run does not own the instance any more.
        """
        with _Transaction(self) as connection:
            row = self._step_row(connection, run, step)
            self._hold(connection, run, step, row.uuid, row.instance)
            self._update_step(connection, run, step, {"phase": phase, "undo": dict(row.undo) | dict(undo)})
            self._note(connection, run, step, row.state, row.state, phase)

    def steps(self, run: str) -> tuple[StepRecord, ...]:
        """The steps of a run in their order."""
        query = select(tables.steps).where(tables.steps.c.run == run).order_by(tables.steps.c.position)
        with self._reading() as connection:
            return tuple(_step(row) for row in connection.execute(query))

    def step(self, run: str, step: str) -> StepRecord:
        """One step of a run; it is known to exist."""
        with self._reading() as connection:
            return _step(self._step_row(connection, run, step))

    def transitions(self, run: str) -> tuple[Transition, ...]:
        """The audit trail of a run, oldest first."""
        query = select(tables.transitions).where(tables.transitions.c.run == run).order_by(tables.transitions.c.id)
        with self._reading() as connection:
            return tuple(
                Transition(row.step, row.before, row.after, row.at, row.who, row.why)
                for row in connection.execute(query)
            )

    # Claims

    def claims(self, uuids: Iterable[str] | None = None) -> tuple[Claim, ...]:
        """Who owns which instance: all claims, or those on the given instances."""
        query = _CLAIMS if uuids is None else _CLAIMS.where(tables.claims.c.uuid.in_(list(uuids)))
        with self._reading() as connection:
            return tuple(self._as_claim(row) for row in connection.execute(query))

    def _claim(self, connection: Connection, run: str, uuid: str, instance: str, host: str) -> None:
        """Take the instance if nobody has it: the insert is the swap, the primary key the comparison."""
        try:
            with connection.begin_nested():
                connection.execute(
                    insert(tables.claims).values(uuid=uuid, instance=instance, host=host, run=run, step=None)
                )
        except IntegrityError:
            row = connection.execute(_CLAIMS.where(tables.claims.c.uuid == uuid)).one()
            if row.run != run:
                raise _claimed(self._as_claim(row)) from None

    def _finished(self, run: str, end: RunState) -> tuple[ColumnElement[bool], ...]:
        """Which claims an end releases: all, but after an incomplete rollback only those on what is really undone."""
        if end != RunState.ROLLBACK_INCOMPLETE:
            return ()
        left = select(tables.steps.c.uuid).where(tables.steps.c.run == run, tables.steps.c.state.in_(sorted(UNDOABLE)))
        return (tables.claims.c.uuid.not_in(left),)

    def _hold(self, connection: Connection, run: str, step: str, uuid: str, instance: str) -> None:
        """Put the step's name on the run's own claim; no row changed means that the claim is gone."""
        swapped = connection.execute(
            update(tables.claims).where(tables.claims.c.uuid == uuid, tables.claims.c.run == run).values(step=step)
        )
        if swapped.rowcount != 1:
            raise LostClaim(
                f"cannot go on with {step}: this run does not own {instance} any more",
                resolution=f"'planvirt show {run}' tells what it did before",
            )

    def _as_claim(self, row: Row[*tuple[Any, ...]]) -> Claim:
        alive = row.state not in ENDED and row.lease_until > self._clock()
        return Claim(row.uuid, row.instance, row.host, row.run, row.plan, RunState(row.state), alive)

    # Common

    def _reading(self) -> Connection:
        return self._engine.connect().execution_options(reading=True)

    def _run_row(self, connection: Connection, run: str) -> Row[Any]:
        row = connection.execute(select(tables.runs).where(tables.runs.c.id == run)).one_or_none()
        if row is None:
            raise UnknownRun(f"cannot find run {run}", resolution="'planvirt runs' lists them")
        return row

    def _step_row(self, connection: Connection, run: str, step: str) -> Row[Any]:
        where = (tables.steps.c.run == run, tables.steps.c.id == step)
        return connection.execute(select(tables.steps).where(*where)).one()

    def _update_step(self, connection: Connection, run: str, step: str, values: Mapping[str, Any]) -> None:
        where = (tables.steps.c.run == run, tables.steps.c.id == step)
        connection.execute(update(tables.steps).where(*where).values(values))

    def _note(self, connection: Connection, run: str, step: str | None, before: str, after: str, why: str) -> None:
        connection.execute(
            insert(tables.transitions).values(
                run=run, step=step, before=before, after=after, at=self._clock(), who=self._who, why=why
            )
        )


class _Transaction:
    """One writing transaction of a journal; what the database says against it becomes a JournalError."""

    def __init__(self, journal: Journal) -> None:
        self._context = journal._engine.begin()  # noqa: SLF001 - the two are one

    def __enter__(self) -> Connection:
        try:
            return self._context.__enter__()
        except DBAPIError as error:
            raise _failed(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._context.__exit__(kind, value, trace)
        except DBAPIError as error:
            raise _failed(error) from error
        if isinstance(value, DBAPIError):
            raise _failed(value) from value


def _failed(error: DBAPIError) -> JournalError:
    return JournalError(
        "cannot write to the journal",
        details=str(error.orig),
        resolution="check that its disk has space and its database answers; 'planvirt runs' then shows what it knows",
    )


_CLAIMS = select(
    tables.claims.c.uuid,
    tables.claims.c.instance,
    tables.claims.c.host,
    tables.claims.c.run,
    tables.runs.c.plan,
    tables.runs.c.state,
    tables.runs.c.lease_until,
).join(tables.runs, tables.claims.c.run == tables.runs.c.id)


def _claimed(claim: Claim) -> Claimed:
    what, _, _ = str(claim).rpartition("; ")
    return Claimed(f"cannot claim {what}", resolution=claim.remedy)


def _run(row: Row[Any]) -> RunRecord:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for a row as a mapping
    return RunRecord(**(values | {"state": RunState(row.state)}))


def _step(row: Row[Any]) -> StepRecord:
    values = dict(row._mapping)  # noqa: SLF001 - as above
    del values["run"]
    return StepRecord(**(values | {"state": StepState(row.state), "needs": tuple(row.needs)}))
