"""Carrying out what was prepared, and finishing what an earlier run left: under Prefect, journalled, interruptible."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.call import RunFacts
from flows.context import Event, RunContext, timestamp
from flows.executor import Executor
from flows.interrupt import Signals, interruptible
from flows.preemption import let_notice, preemptions
from flows.prepare import Prepared
from flows.preview import Refused
from flows.records import run_record, step_records
from flows.recovery import recover
from flows.rollback import leftovers
from flows.saga import carry_out
from flows.world import World
from planvirt.errors import Exit, PlanvirtError
from planvirt.journal.engine import JournalError
from planvirt.journal.journal import LEASE, Journal, LostClaim
from planvirt.journal.records import RunRecord
from planvirt.journal.transitions import ENDED, RunState
from planvirt.plan import OnFailure, Plan
from planvirt.secret import Redactor, Secret

EXITS = {
    RunState.SUCCEEDED: Exit.OK,
    RunState.ROLLED_BACK: Exit.FAILED,
    RunState.CANCELLED: Exit.FAILED,
    RunState.COMMITTING: Exit.FAILED,
    RunState.ROLLBACK_INCOMPLETE: Exit.ROLLBACK_INCOMPLETE,
    RunState.KEPT: Exit.KEPT,
}


# What Prefect shows as completed: a rollback that was asked for, and is complete, went well.
_GOOD_ENDS = {"rollback ": frozenset({RunState.SUCCEEDED, RunState.ROLLED_BACK, RunState.KEPT})}


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. `error` is the first one; `leftovers` names what could not be undone."""

    run: str
    state: RunState
    error: PlanvirtError | None
    leftovers: tuple[str, ...]


class CutShort(PlanvirtError):
    """The run did not end, and what it did stands: it is as if its process had been killed."""

    exit = Exit.ROLLBACK_INCOMPLETE


def new_run_id() -> str:
    """An id that sorts by time and that people can read to each other."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def carry_out_prepared(
    prepared: Prepared,
    world: World,
    journal: Journal,
    *,
    again: Callable[[], Prepared],
    secret_values: Mapping[str, Secret],
    redact: Redactor,
    notify: Callable[[Event], None],
    say: Callable[[str], None],
) -> Result:
    """Run the plan as it was prepared. Raises Claimed, touching nothing, when another run owns an instance of it."""
    plan, found = prepared.plan, prepared.preview
    run = new_run_id()
    record = run_record(run, prepared.kind, plan, found.parallel)
    facts = RunFacts(run, plan.name, plan.commit or "", timestamp(time.time()), plan.images)
    context = RunContext(facts, journal, world, notify, plan=plan, secrets=secret_values, redact=redact)

    def body(executor: Executor) -> tuple[RunState, PlanvirtError | None]:
        return carry_out(context, found.steps, found.parallel, OnFailure(plan.on_failure), executor)

    with interruptible(context, say) as signals:
        losers = preemptions(plan.name, found.steps)
        journal.begin(record, step_records(plan.name, found.steps), losers)
        with _left_in_order(journal, run):
            for uuid, loser in losers.items():
                let_notice(journal, loser, uuid, context.interrupted.wait)
            _check_unchanged(prepared, again)
            return _under_prefect(context, body, record, signals, "destroy " if prepared.kind == "destroy" else "")


def _check_unchanged(prepared: Prepared, again: Callable[[], Prepared]) -> None:
    """What was decided before the instances were claimed must still hold now that nobody else may change them."""
    now = again().preview
    if (now.changes, now.destroys) != (prepared.preview.changes, prepared.preview.destroys):
        raise Refused(
            f"cannot {prepared.kind} {prepared.plan.name}: what is there has changed since the preview",
            resolution="look at the new preview and confirm that",
        )


@contextmanager
def _left_in_order(journal: Journal, run: str) -> Iterator[None]:
    """Whatever happens: a run that did not begin is cancelled, and one that did not end can be taken over at once.

    Raises CutShort for a run that did not end because of its journal.
    """
    try:
        yield
    except JournalError as error:
        if _leave(journal, run):
            raise
        raise CutShort(
            f"cannot finish run {run}: its journal cannot be used",
            details=error.details,
            resolution="check that its disk has space and its database answers, "
            "then let 'planvirt recover --wait' finish the run",
        ) from error
    except BaseException:
        _leave(journal, run)
        raise
    else:
        _leave(journal, run)


def _leave(journal: Journal, run: str) -> bool:
    """Whether the run has ended by now. One that has not is given up, if the journal takes that."""
    with suppress(PlanvirtError):  # an error that is on its way matters more
        state = journal.run(run).state
        if state == RunState.PENDING:
            journal.move_run(run, RunState.CANCELLED, "its flow did not begin")
        elif state not in ENDED:
            journal.let_go(run)
            return False
        return True
    return False


def recover_run(
    run: str,
    world: World,
    journal: Journal,
    *,
    plan: Plan | None,
    to: str | None = None,
    secret_values: Mapping[str, Secret],
    redact: Redactor,
    notify: Callable[[Event], None],
    say: Callable[[str], None],
) -> Result:
    """Finish a run that was kept, whose rollback stayed incomplete, or whose process died.

    With its `plan` it goes forward, without one back (to the step `to`, if one is named). A run that died while it
    committed finishes that in any case: it was past its point of no return. Raises Conflict for a run that lives, or
    that has ended for good.
    """
    record = journal.take_over(run, "resume asked for" if plan else "rollback asked for", forward=plan is not None)
    images = plan.images if plan else {}
    facts = RunFacts(record.id, record.plan, record.commit or "", timestamp(record.created), images)
    context = RunContext(facts, journal, world, notify, plan=plan, secrets=secret_values, redact=redact)
    with interruptible(context, say) as signals:
        if record.state == RunState.CANCELLED:
            return Result(record.id, record.state, None, ())
        prefix = "resume " if plan else "rollback "
        with _left_in_order(journal, record.id):
            return _under_prefect(
                context, lambda executor: recover(context, record, executor, to), record, signals, prefix
            )


def _under_prefect(
    context: RunContext,
    body: Callable[[Executor], tuple[RunState, PlanvirtError | None]],
    record: RunRecord,
    signals: Signals,
    prefix: str = "",
) -> Result:
    from flows.prefect_flow import log_event, run_as_flow  # a second's import, only when there is something to run

    told = context.notify

    def tell_both(event: Event) -> None:
        log_event(event)
        told(event)

    def inside(executor: Executor, flow_run_id: str) -> tuple[RunState, PlanvirtError | None]:
        context.journal.set_flow_run(record.id, flow_run_id)
        with _sign_of_life(context):
            return body(executor)

    context.notify = tell_both
    state, error = run_as_flow(
        inside,
        name=record.plan,
        run_name=f"{prefix}{record.plan} {record.id}",
        tags=[f"plan:{record.plan}", f"commit:{(record.commit or 'none')[:12]}"],
        workers=context.workers,
        parameters={
            "plan": Path(record.path).name,
            "run": record.id,
            "commit": record.commit or "",
            "inputs": context.redact(dict(record.inputs)),
        },
        glance=signals.tell,
        good=_GOOD_ENDS.get(prefix, frozenset({RunState.SUCCEEDED})),
    )
    return Result(record.id, state, error, tuple(leftovers(state, context.journal.steps(record.id))))


@contextmanager
def _sign_of_life(context: RunContext) -> Iterator[None]:
    """Renew the run's lease while this process works on it; stop everything when somebody else took it over."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE / 4):
            try:
                context.journal.renew(context.run.id)
            except LostClaim:
                context.interrupted.set()
                context.abandoned.set()
                return
            except PlanvirtError:
                continue  # the steps will meet the same trouble, and they tell the user

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
