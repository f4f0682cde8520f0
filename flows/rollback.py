"""Undoing a run from the journal alone: newest first along the graph, side by side where steps are independent.

An undo that fails is tried again; when it fails for good the others still go on, and the run says what is left.
"""

from collections.abc import Iterable, Sequence

from flows.actions import ACTIONS
from flows.context import RunContext
from flows.executor import Executor, Work
from flows.step import as_error
from flows.walk import walk
from planvirt.deadline import Deadline
from planvirt.journal.records import StepRecord
from planvirt.journal.transitions import UNDOABLE, RunState, StepState

_ATTEMPTS = 3
_LIMIT = 300.0  # seconds that one attempt to undo a step may take


def roll_back(context: RunContext, executor: Executor, why: str, error: dict[str, str] | None = None) -> RunState:
    """Undo every step of the run that began. Returns the state that the run ends in."""
    if context.journal.run(context.run.id).state != RunState.ROLLING_BACK:  # else its process died while rolling back
        context.journal.move_run(context.run.id, RunState.ROLLING_BACK, why, error=error)
    records = context.journal.steps(context.run.id)
    for record in records:
        if record.state == StepState.PENDING:
            context.journal.move_step(context.run.id, record.id, StepState.SKIPPED, "the run ended before it")
    todo = {record.id: record for record in records if record.state in UNDOABLE}
    dependents = _dependents(records, todo)
    walk(
        [record.id for record in reversed(records) if record.id in todo],
        dependents,
        lambda key: _undo_work(context, todo[key]),
        executor,
        on_error="go on",
        stop=context.abandoned.is_set,
    )
    left = [record for record in context.journal.steps(context.run.id) if record.state in UNDOABLE]
    if left:
        names = ", ".join(record.id for record in left)
        end, why = RunState.ROLLBACK_INCOMPLETE, f"cannot undo {names}"
    else:
        end, why = RunState.ROLLED_BACK, "every step is undone"
    context.journal.move_run(context.run.id, end, why)
    return end


def leftovers(records: Iterable[StepRecord]) -> list[str]:
    """What is still there of steps whose undo failed, by name."""
    names: list[str] = []
    for record in records:
        if record.state in (StepState.UNDO_FAILED, StepState.UNDOING):
            names += ACTIONS[record.action].leftovers(record) or [f"{record.action} of {record.instance}"]
    return names


def _dependents(records: Sequence[StepRecord], todo: dict[str, StepRecord]) -> dict[str, set[str]]:
    """For each step to undo, the steps to undo before it: those that came after it, also through steps with no undo."""
    after: dict[str, set[str]] = {record.id: set() for record in records}
    for record in reversed(records):
        for need in record.needs:
            after[need] |= {record.id} if record.id in todo else after[record.id]
    return {key: after[key] for key in todo}


def _undo_work(context: RunContext, record: StepRecord) -> Work:
    return Work(
        key=record.id,
        name=f"undo {record.action} {record.instance}",
        attempt=lambda number: _undo(context, record.id, number),
        attempts=_ATTEMPTS,
        again=lambda _: not context.abandoned.is_set(),
        tags=("undo", f"instance:{record.instance}", f"host:{record.host}"),
    )


def _undo(context: RunContext, step: str, number: int) -> None:
    deadline = Deadline(_LIMIT, interrupted=context.abandoned)
    if number > 1:
        deadline.sleep(context.undo_pause * 2 ** (number - 2))
    journal, run = context.journal, context.run.id
    journal.move_step(run, step, StepState.UNDOING, f"attempt {number}")
    record = journal.step(run, step)
    context.tell("undo", record)
    call = context.call(record, deadline, record.arguments, None)
    try:
        context.attempts_of(step).carry_out(
            lambda: ACTIONS[record.action].undo(call), deadline, f"undo {record.action} {record.instance}"
        )
    except Exception as raised:
        error = as_error(raised)
        journal.move_step(run, step, StepState.UNDO_FAILED, str(error), undo_error=error.as_dict())
        context.tell("undo-failed", record, str(error))
        raise
    journal.move_step(run, step, StepState.UNDONE, "undone")
    context.tell("undone", record)
