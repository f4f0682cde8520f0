"""The journal itself: each method is one transaction, checked against the transition table and kept as audit trail."""

import getpass
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import MappingProxyType, TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Row, select

from planvirt.errors import Conflict, PlanvirtError
from planvirt.journal import statements, tables
from planvirt.journal.database import Database
from planvirt.journal.records import Claim, RunRecord, StepRecord, Transition
from planvirt.journal.transitions import ENDED, UNDOABLE, RunState, StepState, check_run, check_step

LEASE = 60.0  # seconds for which a run counts as alive after its last sign of life


class Claimed(Conflict):
    """Another run owns an instance, or another process owns the run."""


class LostClaim(Conflict):
    """This process does not own the run or the instance any more: it must not touch either again."""


class NotRecoverable(Conflict):
    """The run is in a state from which there is no way back, or no need of one."""


class UnknownRun(PlanvirtError):
    """There is no run with that id."""


class Journal:
    """Keeps runs, steps, transitions and claims. Safe to use from several threads, and from several processes at once.

    A run belongs to the journal that began it or took it over, until it ends, is given up or is taken over. Only that
    one may write to it, the others get LostClaim. A random token tells them apart; `who` is for people.

    Methods raise JournalError when the database fails, and IllegalTransition for a fault of the program.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time, who: str | None = None) -> None:
        self._database = Database(url)
        self._clock = clock
        self._who = who or f"{_user()}@{socket.gethostname()}:{os.getpid()}"
        self._token = secrets.token_hex(8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections to the database."""
        self._database.close()

    # Runs

    def begin(
        self, run: RunRecord, steps: Sequence[StepRecord], preempts: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Record a new run with all its steps and claim every instance that it names, or change nothing at all.

        Raises Claimed when another run owns one of the instances; the message says whether that run still lives.
        `preempts` names, by the UUID of an instance, a live run whose claim on it is taken.
        """
        with self._database.writing() as connection:
            row = _values(run) | self._ownership() | {"created": self._clock()}
            connection.execute(statements.INSERT_RUN, row)
            for uuid, holder in sorted(preempts.items()):
                self._preempt(connection, run.id, uuid, holder)
            if steps:
                connection.execute(statements.INSERT_STEP, [_values(step) | {"run": run.id} for step in steps])
                self._claim(connection, run.id, steps)
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
        """Change the state of a run of one's own. An end gives the run and its claims up in the same transaction."""
        with self._database.writing() as connection:
            row = self._my_run(connection, run)
            changes: dict[str, Any] = {}
            if error is not None:
                changes["error"] = error
            if flow_run_id is not None:
                changes["flow_run_id"] = flow_run_id
            self._move_run(connection, row, to, why, changes)

    def take_over(self, run: str, why: str, *, forward: bool = False) -> RunRecord:
        """Become the owner of a run that was kept, whose rollback is incomplete, or whose process is dead.

        What becomes of it begins at once: it is `rolling_back`, or `cancelled` if it had not begun; with `forward` one
        that was running or kept is `running`. A run that was committing goes on so. Instances with something to undo
        (or to do, going forward) are claimed again. Returns the run as it is then.

        Raises Claimed while its owner lives, or when another run owns one of the instances by now, and NotRecoverable
        when there is no way back.
        """
        with self._database.writing() as connection:
            row = self._run_row(connection, run)
            self._check_recoverable(connection, row, "resume" if forward else "roll back")
            state = RunState(row.state)
            if forward and state in (RunState.ROLLING_BACK, RunState.ROLLBACK_INCOMPLETE):
                raise NotRecoverable(
                    f"cannot resume run {run}: it is being rolled back",
                    resolution=f"finish that: 'planvirt rollback {run}'",
                )
            to = (_RESUMED if forward else _TAKEN_OVER).get(state, state)
            if state not in ENDED:
                self._give_up_preempted(connection, run)
            if to not in ENDED:
                which = statements.STEPS if forward else statements.UNDOABLE_STEPS
                left = connection.execute(which, {"the_run": run}).all()
                if left:
                    self._claim(connection, run, left)
            if to != row.state:
                self._move_run(connection, row, to, why, self._ownership())
            else:
                connection.execute(statements.UPDATE_RUN, {"the_run": run} | self._ownership())
                self._note(connection, run, None, to, to, why)
            return _run(self._run_row(connection, run))

    def check_recoverable(self, run: str) -> None:
        """Raise what `take_over` would raise now, short of a claim that another run holds, and change nothing."""
        with self._database.reading() as connection:
            self._check_recoverable(connection, self._run_row(connection, run), "roll back")

    def dead(self) -> tuple[RunRecord, ...]:
        """The runs that have not ended and that nobody works on any more, oldest first."""
        return tuple(run for run, left in self.open() if left == 0.0)

    def open(self) -> tuple[tuple[RunRecord, float], ...]:
        """The runs that have not ended, oldest first, and for how many seconds each still counts as alive."""
        with self._database.reading() as connection:
            rows = connection.execute(statements.OPEN_RUNS).all()
        return tuple((_run(row), max(0.0, row.lease_until - self._clock())) for row in rows)

    def let_go(self, run: str) -> None:
        """Give up a run that has not ended, so that it can be taken over at once. It keeps its claims.

        Does nothing to a run that is not one's own any more.
        """
        with self._database.writing() as connection:
            row = self._run_row(connection, run)
            if row.token == self._token:
                connection.execute(statements.UPDATE_RUN, {"the_run": run} | _NOBODYS)
                self._note(connection, run, None, row.state, row.state, "given up")

    def renew(self, run: str) -> None:
        """A sign of life: the run's lease lasts for another LEASE seconds. Raises LostClaim."""
        self._change_run(run, {"lease_until": self._clock() + LEASE})

    def set_flow_run(self, run: str, flow_run_id: str) -> None:
        """Remember under which id Prefect shows the run. Raises LostClaim."""
        self._change_run(run, {"flow_run_id": flow_run_id})

    def run(self, run: str) -> RunRecord:
        """One run, by its id or an unambiguous beginning of it. Raises UnknownRun."""
        with self._database.reading() as connection:
            exact = connection.execute(statements.RUN, {"the_run": run}).one_or_none()
            if exact is not None:
                return _run(exact)
            like = select(tables.runs).where(tables.runs.c.id.startswith(run, autoescape=True)).limit(2)
            found = connection.execute(like).all()
        if len(found) != 1:
            what = "no run has that id" if not found else "several runs begin with it"
            raise UnknownRun(f"cannot find run {run}: {what}", resolution="'planvirt runs' lists them")
        return _run(found[0])

    def runs(self, *, plan: str | None = None, limit: int = 50) -> tuple[RunRecord, ...]:
        """The latest runs, newest first."""
        query = statements.LATEST_RUNS if plan is None else statements.LATEST_RUNS.where(tables.runs.c.plan == plan)
        with self._database.reading() as connection:
            return tuple(_run(row) for row in connection.execute(query, {"the_limit": limit}))

    def later_runs(self, run: str) -> tuple[str, ...]:
        """Ids of later runs, oldest first, that did something on an instance on which this one is not undone."""
        with self._database.reading() as connection:
            return tuple(connection.execute(statements.LATER_RUNS, {"the_run": run}).scalars())

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """Let no run begin, be taken over or end in this block, which must be short: what `open` says in it holds."""
        with self._database.writing() as connection:
            if connection.dialect.name != "sqlite":  # which has one writer at a time anyway
                connection.execute(statements.LOCK_RUNS)
            yield

    # Steps

    def move_step(
        self,
        run: str,
        step: str,
        to: StepState,
        why: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        error: Mapping[str, str] | None = None,
        undo_error: Mapping[str, str] | None = None,
    ) -> None:
        """Change a step's state, and with it what else is given. Entering `doing` counts an attempt.

        Raises LostClaim unless the run is one's own and, except to skip the step, owns the instance.
        """
        now = self._clock()
        changes = {"arguments": arguments, "outputs": outputs, "error": error, "undo_error": undo_error}
        with self._database.writing() as connection:
            row = self._my_step(connection, run, step, touching=to != StepState.SKIPPED)
            check_step(StepState(row.state), to)
            values: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
            values["state"] = to
            if to == StepState.DOING:
                values |= {"attempts": row.attempts + 1, "started": row.started or now, "phase": ""}
            elif to in (StepState.DONE, StepState.FAILED, StepState.SKIPPED):
                values["ended"] = now
            self._update_step(connection, run, step, values)
            self._note(connection, run, step, row.state, to, why)

    def phase(self, run: str, step: str, phase: str, undo: Mapping[str, Any]) -> None:
        """Record what the step is about to do to the outside, and what undoing it will need, before it does it.

        It is also where a step finds out that it was pre-empted: raises LostClaim as `move_step` does.
        """
        with self._database.writing() as connection:
            row = self._my_step(connection, run, step)
            values: dict[str, Any] = {"phase": phase}
            if undo:
                values["undo"] = {**row.undo, **undo}
            self._update_step(connection, run, step, values)
            self._note(connection, run, step, row.state, row.state, phase)

    def note_error(self, run: str, step: str | None, error: Mapping[str, str]) -> None:
        """Keep an error of a step, or of the run, that changes no state. Raises LostClaim as `move_step` does."""
        why = ": ".join(part for part in (error.get("brief"), error.get("details")) if part)
        with self._database.writing() as connection:
            if step is None:
                state = self._my_run(connection, run).state
                connection.execute(statements.UPDATE_RUN, {"the_run": run, "error": error})
            else:
                state = self._my_step(connection, run, step).state
                self._update_step(connection, run, step, {"error": error})
            self._note(connection, run, step, state, state, why)

    def steps(self, run: str) -> tuple[StepRecord, ...]:
        """The steps of a run, in the order of the plan."""
        with self._database.reading() as connection:
            return tuple(_step(row) for row in connection.execute(statements.STEPS, {"the_run": run}))

    def step(self, run: str, step: str) -> StepRecord:
        """One step of a run; it is known to exist."""
        with self._database.reading() as connection:
            return _step(connection.execute(statements.STEP, {"the_run": run, "the_step": step}).one())

    def transitions(self, run: str) -> tuple[Transition, ...]:
        """The audit trail of a run, oldest first."""
        with self._database.reading() as connection:
            return tuple(
                Transition(row.step, row.before, row.after, row.at, row.who, row.why)
                for row in connection.execute(statements.TRANSITIONS, {"the_run": run})
            )

    # Claims

    def claims(self, uuids: Iterable[str] | None = None) -> tuple[Claim, ...]:
        """Who owns which instance: all claims, or those on the given instances."""
        with self._database.reading() as connection:
            if uuids is None:
                rows = connection.execute(statements.CLAIMS)
            else:
                rows = connection.execute(statements.CLAIMS_ON, {"the_uuids": list(uuids)})
            return tuple(self._as_claim(row) for row in rows)

    def _claim(self, connection: Connection, run: str, steps: Iterable[StepRecord | Row[Any]]) -> None:
        """Take all the instances if nobody has one: the insert is the swap, the primary key the comparison.

        Everybody takes them in the same order, so that no two runs wait for each other.
        """
        wanted = {step.uuid: step for step in steps}
        rows = [
            {"uuid": uuid, "instance": step.instance, "host": step.host, "run": run}
            for uuid, step in sorted(wanted.items())
        ]
        connection.execute(statements.insert_claims(connection.dialect.name), rows)
        held = connection.execute(statements.CLAIMS_ON, {"the_uuids": list(wanted)}).all()
        for row in held:
            if row.run != run:
                raise _claimed(self._as_claim(row))
        if len(held) != len(wanted):  # it was another run's, which gave it back between the two statements
            raise Claimed("cannot claim the instances: another run owned one until just now", resolution="try again")

    def _as_claim(self, row: Row[*tuple[Any, ...]]) -> Claim:
        left = max(0.0, row.lease_until - self._clock())
        alive = row.state not in ENDED and left > 0
        return Claim(row.uuid, row.instance, row.host, row.run, row.plan, RunState(row.state), alive, left)

    # Pre-emption: a terminate takes an instance from a run that is at work on it.

    def _preempt(self, connection: Connection, run: str, uuid: str, holder: str) -> None:
        """Swap the claim. Steps of the other run that are not on their way end here; those that are find out."""
        other = self._run_row(connection, holder)
        if other.state in ENDED or other.lease_until <= self._clock():
            return  # its claim is free, or has to be recovered first: claiming tells
        swap = {"the_uuid": uuid, "the_holder": holder, "the_run": run}
        if connection.execute(statements.PREEMPT_CLAIM, swap).rowcount:
            self._settle_preempted(connection, holder, uuid, f"run {run} has pre-empted it", on_their_way=False)

    def _settle_preempted(self, connection: Connection, run: str, uuid: str, why: str, *, on_their_way: bool) -> None:
        for row in connection.execute(statements.STEPS_ON, {"the_run": run, "the_uuid": uuid}).all():
            state = StepState(row.state)
            if state == StepState.PENDING:
                to = StepState.SKIPPED
            elif state in UNDOABLE and (on_their_way or state not in _ON_THEIR_WAY):
                to = StepState.UNDONE
            else:
                continue
            check_step(state, to)
            self._update_step(connection, run, row.id, {"state": to})
            self._note(connection, run, row.id, state, to, why)

    def _give_up_preempted(self, connection: Connection, run: str) -> None:
        """End the steps of a dead run on instances that it does not own any more: it was pre-empted before it died."""
        own = {row.uuid for row in connection.execute(statements.CLAIMS_OF, {"the_run": run})}
        lost = {row.uuid for row in connection.execute(statements.STEPS, {"the_run": run})} - own
        for uuid in sorted(lost):
            self._settle_preempted(connection, run, uuid, "it was pre-empted", on_their_way=True)

    def yields(self, run: str, step: str) -> str | None:
        """End a step of one's own on an instance that another run has pre-empted, and return that run.

        None, and nothing changes, when nobody has. Raises LostClaim when the run is not one's own any more.
        """
        with self._database.writing() as connection:
            self._my_run(connection, run)
            row = connection.execute(statements.STEP, {"the_run": run, "the_step": step}).one()
            holders = [claim.run for claim in connection.execute(statements.CLAIMS_ON, {"the_uuids": [row.uuid]})]
            if run in holders:
                return None
            by = holders[0] if holders else "another run"
            why = f"it is pre-empted by {by if not holders else f'run {by}'}: not touched any more"
            self._settle_preempted(connection, run, row.uuid, why, on_their_way=True)
            return by

    def at_work(self, run: str, uuid: str) -> bool:
        """Whether a run that lives has a step on its way on the instance, whoever owns that by now."""
        with self._database.reading() as connection:
            row = self._run_row(connection, run)
            if row.state in ENDED or row.lease_until <= self._clock():
                return False
            found = connection.execute(statements.STEPS_ON, {"the_run": run, "the_uuid": uuid})
            return any(StepState(step.state) in _ON_THEIR_WAY for step in found)

    # Whose a run is

    def _ownership(self) -> dict[str, Any]:
        """What makes a run one's own, for as long as a lease lasts."""
        return {"owner": self._who, "token": self._token, "lease_until": self._clock() + LEASE}

    def _my_run(self, connection: Connection, run: str) -> Row[Any]:
        """The run, locked. Raises LostClaim when it is not one's own."""
        row = self._run_row(connection, run)
        if row.token != self._token:
            raise _lost(f"cannot go on with run {run}", row)
        return row

    def _my_step(self, connection: Connection, run: str, step: str, *, touching: bool = True) -> Row[*tuple[Any, ...]]:
        """The step, locked together with its run. Raises LostClaim when the run or the instance is not one's own."""
        which = {"the_run": run, "the_step": step}
        row: Row[*tuple[Any, ...]] = connection.execute(statements.LOCKED_STEP, which).one()
        if row.token != self._token:
            raise _lost(f"cannot go on with {step}", self._run_row(connection, run))
        if touching and connection.execute(statements.HOLDER, {"the_uuid": row.uuid}).scalar() != run:
            raise LostClaim(
                f"cannot go on with {step}: this run does not own {row.instance} any more",
                resolution=f"'planvirt show {run}' tells what it did before",
            )
        return row

    def _check_recoverable(self, connection: Connection, row: Row[Any], what: str) -> None:
        left = row.lease_until - self._clock()
        if left > 0 and row.token != self._token:
            raise Claimed(
                f"cannot take over run {row.id}: it is still running",
                details=f"its owner {row.owner} gave a sign of life {LEASE - left:.0f} s ago",
                resolution=f"wait for it; if that process was killed, this works in {left:.0f} s",
            )
        if row.state in _OVER:
            raise NotRecoverable(
                f"cannot {what} run {row.id}: it has ended as {row.state.replace('_', ' ')}",
                resolution="'planvirt destroy' removes what a plan made",
            )
        # A run that has not ended owns its instances, except those of which it was pre-empted: these it lets alone.
        which = statements.LATER_RUNS_ANYWHERE if what == "resume" else statements.LATER_RUNS
        owns = what != "resume" and row.state not in ENDED
        later = None if owns else connection.execute(which, {"the_run": row.id}).scalars().first()
        if later is not None and row.state != RunState.PENDING:
            raise NotRecoverable(
                f"cannot {what} run {row.id}: run {later} has worked on its instances since",
                resolution="a later run relies on what is there now; 'planvirt destroy' removes all of it",
            )

    # Common

    def _run_row(self, connection: Connection, run: str) -> Row[Any]:
        row = connection.execute(statements.LOCKED_RUN, {"the_run": run}).one_or_none()
        if row is None:
            raise UnknownRun(f"cannot find run {run}", resolution="'planvirt runs' lists them")
        return row

    def _change_run(self, run: str, changes: Mapping[str, Any]) -> None:
        mine = {"the_run": run, "the_token": self._token}
        with self._database.writing() as connection:
            if connection.execute(statements.UPDATE_MY_RUN, {**changes, **mine}).rowcount != 1:
                self._my_run(connection, run)  # tells why

    def _move_run(
        self, connection: Connection, row: Row[Any], to: RunState, why: str, changes: Mapping[str, Any]
    ) -> None:
        now = self._clock()
        check_run(RunState(row.state), to)
        values: dict[str, Any] = {**changes, "state": to, "ended": now if to in ENDED else None}
        if to == RunState.RUNNING:
            values["started"] = now
        if to in ENDED:
            values |= _NOBODYS
            # After an incomplete rollback it goes on owning what is not undone.
            undone = to == RunState.ROLLBACK_INCOMPLETE
            release = statements.DELETE_UNDONE_CLAIMS if undone else statements.DELETE_CLAIMS
            connection.execute(release, {"the_run": row.id})
        connection.execute(statements.UPDATE_RUN, {"the_run": row.id} | values)
        self._note(connection, row.id, None, row.state, to, why)

    def _update_step(self, connection: Connection, run: str, step: str, values: Mapping[str, Any]) -> None:
        connection.execute(statements.UPDATE_STEP, {"the_run": run, "the_step": step, **values})

    def _note(self, connection: Connection, run: str, step: str | None, before: str, after: str, why: str) -> None:
        connection.execute(
            statements.INSERT_TRANSITION,
            {
                "run": run,
                "step": step,
                "before": before,
                "after": after,
                "at": self._clock(),
                "who": self._who,
                "why": why,
            },
        )


# A step in one of these is being carried out, or its process died while it was.
_ON_THEIR_WAY = frozenset({StepState.DOING, StepState.UNDOING})

_NOBODYS = {"token": "", "lease_until": 0.0}

# What a run becomes when somebody takes it over; in other states it stays what it is.
_RESUMED = {
    RunState.PENDING: RunState.CANCELLED,  # it did nothing yet: a new run is simpler
    RunState.KEPT: RunState.RUNNING,
}
_TAKEN_OVER = {
    RunState.PENDING: RunState.CANCELLED,  # it did nothing yet
    RunState.RUNNING: RunState.ROLLING_BACK,
    RunState.KEPT: RunState.ROLLING_BACK,
    RunState.ROLLBACK_INCOMPLETE: RunState.ROLLING_BACK,
}
_OVER = frozenset({RunState.SUCCEEDED, RunState.ROLLED_BACK, RunState.CANCELLED})


def _user() -> str:
    """The user's name, or the number where there is no name for it, as often in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _lost(what: str, row: Row[Any]) -> LostClaim:
    if row.state in ENDED:
        why = f"it has ended as {row.state.replace('_', ' ')}"
    elif not row.token:
        why = "it was given up"
    else:
        why = f"{row.owner} has taken it over"
    return LostClaim(f"{what}: {why}", resolution=f"'planvirt show {row.id}' tells what became of it")


def _claimed(claim: Claim) -> Claimed:
    what = str(claim).removesuffix(f"; {claim.remedy}")
    return Claimed(f"cannot claim {what}", resolution=claim.remedy)


def _values(record: RunRecord | StepRecord) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _run(row: Row[Any]) -> RunRecord:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for a row as a mapping
    return RunRecord(**(values | {"state": RunState(row.state)}))


def _step(row: Row[Any]) -> StepRecord:
    values = dict(row._mapping)  # noqa: SLF001 - as above
    del values["run"]
    return StepRecord(**(values | {"state": StepState(row.state), "needs": tuple(row.needs)}))
