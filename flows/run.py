"""Carrying out what was prepared, and finishing what an earlier run left: under Prefect, journalled, interruptible."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.call import RunFacts
from flows.commit import commit
from flows.context import Event, RunContext, timestamp
from flows.executor import Executor
from flows.interrupt import interruptible
from flows.prepare import Prepared
from flows.rollback import leftovers, roll_back
from flows.saga import carry_out
from flows.world import World
from planvirt.errors import Conflict, Exit, PlanvirtError
from planvirt.journal.journal import LEASE, Journal
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import RunState
from planvirt.mark import instance_uuid
from planvirt.plan import OnFailure
from planvirt.secret import Secret

WORKERS = 8  # steps that run side by side at the most

EXITS = {
    RunState.SUCCEEDED: Exit.OK,
    RunState.ROLLED_BACK: Exit.FAILED,
    RunState.CANCELLED: Exit.FAILED,
    RunState.COMMITTING: Exit.FAILED,
    RunState.ROLLBACK_INCOMPLETE: Exit.ROLLBACK_INCOMPLETE,
    RunState.KEPT: Exit.KEPT,
}


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. `error` is the first one; `leftovers` names what could not be undone."""

    run: str
    state: RunState
    error: PlanvirtError | None
    leftovers: tuple[str, ...]


class NothingToRollBack(Conflict):
    """The run is in a state from which there is no way back, or no need of one."""


def new_run_id() -> str:
    """An id that sorts by time and that people can read to each other."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def carry_out_prepared(
    prepared: Prepared,
    world: World,
    journal: Journal,
    *,
    secret_values: Mapping[str, Secret],
    notify: Callable[[Event], None],
    say: Callable[[str], None],
) -> Result:
    """Run the plan as it was prepared. Raises Claimed, touching nothing, when another run owns an instance of it."""
    plan, found = prepared.plan, prepared.preview
    run = new_run_id()
    record = RunRecord(
        id=run,
        kind=prepared.kind,
        plan=plan.name,
        path=str(plan.path),
        text=plan.text,
        hash=plan.hash,
        commit=plan.commit,
        inputs=dict(plan.inputs),
        on_failure=plan.on_failure,
    )
    steps = [
        StepRecord(
            id=step.id,
            position=position,
            action=step.action,
            instance=step.instance.name,
            uuid=instance_uuid(plan.name, step.instance.name),
            host=step.instance.host,
            operation=step.operation,
            needs=step.needs,
        )
        for position, step in enumerate(found.steps)
    ]
    journal.begin(record, steps)
    facts = RunFacts(run, plan.name, plan.commit or "", timestamp(time.time()), plan.images)
    context = RunContext(facts, journal, world, notify, plan=plan, secrets=secret_values)

    def body(executor: Executor) -> tuple[RunState, PlanvirtError | None]:
        return carry_out(context, found.steps, found.parallel, OnFailure(plan.on_failure), executor)

    try:
        return _under_prefect(context, body, record, say)
    finally:
        if journal.run(run).state == RunState.PENDING:
            journal.move_run(run, RunState.CANCELLED, "its flow did not begin")


def check_rollback(record: RunRecord, journal: Journal) -> None:
    """Raise NothingToRollBack for a run that cannot be, need not be, or must not be rolled back any more."""
    if record.state in (RunState.SUCCEEDED, RunState.ROLLED_BACK, RunState.CANCELLED):
        raise NothingToRollBack(
            f"cannot roll back run {record.id}: it has ended as {record.state.replace('_', ' ')}",
            resolution="'planvirt destroy' removes what a plan made",
        )
    later = journal.later_runs(record.id)
    if later:
        raise NothingToRollBack(
            f"cannot roll back run {record.id}: run {later[0]} has worked on its instances since",
            resolution="an older run cannot be undone beneath a later one; 'planvirt destroy' removes all of it",
        )


def roll_back_run(
    record: RunRecord, world: World, journal: Journal, *, notify: Callable[[Event], None], say: Callable[[str], None]
) -> Result:
    """Undo a run that was kept, whose rollback was incomplete, or whose process died.

    Of a run that died while it committed, the commit is finished: it was past its point of no return.
    """
    check_rollback(record, journal)
    journal.take_over(record.id, "rollback asked for")
    facts = RunFacts(record.id, record.plan, record.commit or "", timestamp(record.created))
    context = RunContext(facts, journal, world, notify)

    def body(executor: Executor) -> tuple[RunState, PlanvirtError | None]:
        if record.state == RunState.PENDING:
            journal.move_run(record.id, RunState.CANCELLED, "its process died before it began")
            return RunState.CANCELLED, None
        if record.state == RunState.COMMITTING:
            return commit(context, executor), None
        return roll_back(context, executor, "rollback asked for"), None

    return _under_prefect(context, body, record, say)


def _under_prefect(
    context: RunContext,
    body: Callable[[Executor], tuple[RunState, PlanvirtError | None]],
    record: RunRecord,
    say: Callable[[str], None],
) -> Result:
    from flows.prefect_flow import log_event, run_as_flow  # a second's import, only when there is something to run

    told = context.notify

    def tell_both(event: Event) -> None:
        told(event)
        log_event(event)

    context.notify = tell_both

    def inside(executor: Executor, flow_run_id: str) -> tuple[RunState, PlanvirtError | None]:
        context.journal.set_flow_run(record.id, flow_run_id)
        with interruptible(context, say):
            return body(executor)

    with _sign_of_life(context):
        state, error = run_as_flow(
            inside,
            name=record.plan,
            run_name=f"{record.plan} {record.id}" if record.kind == "run" else f"destroy {record.plan} {record.id}",
            description="",
            tags=[f"plan:{record.plan}", f"commit:{(record.commit or 'none')[:12]}"],
            workers=WORKERS,
            parameters={
                "plan": Path(record.path).name,
                "run": record.id,
                "commit": record.commit or "",
                "inputs": dict(record.inputs),
            },
        )
    return Result(record.id, state, error, tuple(leftovers(context.journal.steps(record.id))))


@contextmanager
def _sign_of_life(context: RunContext) -> Iterator[None]:
    """Renew the run's lease for as long as this process works on it."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE / 4):
            try:
                context.journal.renew(context.run.id)
            except PlanvirtError:
                continue  # the steps will meet the same trouble, and they tell the user

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
