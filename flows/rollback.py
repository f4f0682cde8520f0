"""Undoing a run from the journal alone: newest first along the graph, side by side where steps are independent.

An undo that fails is tried again; when it fails for good the others still go on, and the run says what is left.
"""

from collections.abc import Iterable, Sequence

from flows.actions import ACTIONS
from flows.call import Call
from flows.context import RunContext
from flows.executor import Executor, Work
from flows.late_work import late_work
from flows.walk import walk
from planvirt.errors import Conflict
from planvirt.journal.records import StepRecord
from planvirt.journal.transitions import UNDOABLE, RunState, StepState
from planvirt.verbs import verb_for


def roll_back(
    context: RunContext, executor: Executor, why: str, error: dict[str, str] | None = None, *, to: str | None = None
) -> RunState:
    """Undo every step of the run that began, or every one after the step `to`. Returns the state the run ends in."""
    if context.journal.run(context.run.id).state != RunState.ROLLING_BACK:  # else its process died while rolling back
        context.journal.move_run(context.run.id, RunState.ROLLING_BACK, why, error=error)
    records = context.journal.steps(context.run.id)
    first = next((record.position + 1 for record in records if record.id == to), 0)
    for record in records:
        if record.state == StepState.PENDING and to is None:
            context.journal.move_step(context.run.id, record.id, StepState.SKIPPED, "the run ended before it")
    todo = {record.id: record for record in records if record.state in UNDOABLE and record.position >= first}
    dependents = _dependents(records, todo)
    walk(
        [record.id for record in reversed(records) if record.id in todo],
        dependents,
        lambda key: _work(context, todo[key]),
        executor,
        on_error="go on",
        workers=context.workers,
        stop=context.abandoned.is_set,
    )
    left = [
        record for record in context.journal.steps(context.run.id) if record.id in todo and record.state in UNDOABLE
    ]
    if left:
        names = ", ".join(record.id for record in left)
        end, why = RunState.ROLLBACK_INCOMPLETE, f"cannot undo {names}"
    elif to is not None:
        end, why = RunState.KEPT, f"every step after {to} is undone"
    else:
        end, why = RunState.ROLLED_BACK, "every step is undone"
    context.journal.move_run(context.run.id, end, why)
    return end


def leftovers(end: RunState, records: Iterable[StepRecord]) -> list[str]:
    """What is still there, by name, after a rollback that stayed incomplete."""
    names: list[str] = []
    if end != RunState.ROLLBACK_INCOMPLETE:
        return names
    for record in records:
        if record.state in UNDOABLE:
            names += ACTIONS[record.action].leftovers(record) or [f"{record.action} of {record.instance}"]
    return names


def _dependents(records: Sequence[StepRecord], todo: dict[str, StepRecord]) -> dict[str, set[str]]:
    """For each step to undo, the steps to undo before it: those that came after it, also through steps with no undo."""
    after: dict[str, set[str]] = {record.id: set() for record in records}
    for record in reversed(records):
        for need in record.needs:
            after[need] |= {record.id} if record.id in todo else after[record.id]
    return {key: after[key] for key in todo}


def _work(context: RunContext, record: StepRecord) -> Work:
    journal, run = context.journal, context.run.id

    def begin(number: int) -> None:
        journal.move_step(run, record.id, StepState.UNDOING, f"attempt {number}")
        context.tell("undo", record)

    def end() -> None:
        journal.move_step(run, record.id, StepState.UNDONE, "undone")
        context.tell("undone", record)

    def failed(error: dict[str, str]) -> None:
        journal.move_step(run, record.id, StepState.UNDO_FAILED, error["brief"], undo_error=error)
        context.tell("undo-failed", record, error["brief"])

    def carry_out(call: Call) -> None:
        _guard(call, record)
        ACTIONS[record.action].undo(call)

    return late_work(context, record, "undo", begin=begin, carry_out=carry_out, end=end, failed=failed)


def _guard(call: Call, record: StepRecord) -> None:
    """A lock that somebody else has put there since holds against an undo, too; the run's own is undone first."""
    found = call.facts()
    if call.undo and found is not None and found.locked and verb_for(record.action, record.arguments).changing:
        raise Conflict(
            f"cannot undo {record.action} {record.instance}: it is locked",
            resolution=f"unlock it, then 'planvirt rollback {call.run.id}' goes on",
        )
