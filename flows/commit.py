"""The end of a successful run: what was set aside is deleted. From here a run only goes forward."""

from flows.actions import ACTIONS
from flows.context import RunContext
from flows.executor import Executor, Work
from flows.step import as_error
from flows.walk import walk
from planvirt.deadline import Deadline
from planvirt.journal.records import StepRecord
from planvirt.journal.transitions import RunState, StepState

_ATTEMPTS = 3
_LIMIT = 300.0


def commit(context: RunContext, executor: Executor) -> RunState:
    """Carry out the deferred deletions and end the run. Where one fails for good the run stays `committing`."""
    records = [
        record
        for record in context.journal.steps(context.run.id)
        if record.state == StepState.DONE and ACTIONS[record.action].commit is not None
    ]
    by_id = {record.id: record for record in records}
    ended = walk(
        list(by_id),
        dict.fromkeys(by_id, ()),
        lambda key: _commit_work(context, by_id[key]),
        executor,
        on_error="go on",
    )
    if any(error is not None for error in ended.values()):
        return RunState.COMMITTING
    context.journal.move_run(context.run.id, RunState.SUCCEEDED, "all done")
    return RunState.SUCCEEDED


def _commit_work(context: RunContext, record: StepRecord) -> Work:
    return Work(
        key=record.id,
        name=f"commit {record.action} {record.instance}",
        attempt=lambda number: _commit(context, record, number),
        attempts=_ATTEMPTS,
        again=lambda _: True,
        tags=("commit", f"instance:{record.instance}", f"host:{record.host}"),
    )


def _commit(context: RunContext, record: StepRecord, number: int) -> None:
    deadline = Deadline(_LIMIT, interrupted=context.abandoned)
    if number > 1:
        deadline.sleep(context.undo_pause * 2 ** (number - 2))
    carry_out = ACTIONS[record.action].commit
    context.tell("commit", record)
    call = context.call(record, deadline, record.arguments, None)
    try:
        if carry_out is not None:
            context.attempts_of(record.id).carry_out(
                lambda: carry_out(call), deadline, f"commit {record.action} {record.instance}"
            )
    except Exception as raised:
        context.tell("failed", record, str(as_error(raised)))
        raise
    context.journal.move_step(context.run.id, record.id, StepState.COMMITTED, "deleted for good")
    context.tell("committed", record)
