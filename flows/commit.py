"""The end of a successful run: what was set aside is deleted. From here a run only goes forward."""

from flows.actions import ACTIONS
from flows.call import Call
from flows.context import RunContext
from flows.executor import Executor, Work
from flows.late_work import late_work
from flows.walk import walk
from planvirt.errors import PlanvirtError
from planvirt.journal.records import StepRecord
from planvirt.journal.transitions import RunState, StepState


def commit(context: RunContext, executor: Executor) -> tuple[RunState, PlanvirtError | None]:
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
        lambda key: _work(context, by_id[key]),
        executor,
        on_error="go on",
        workers=context.workers,
        stop=context.abandoned.is_set,
    )
    first = next((context.told(error) for error in ended.values() if error is not None), None)
    if first is None and len(ended) < len(by_id):
        first = PlanvirtError("cannot finish the deletions: they were given up")
    if first is not None:
        first.resolution = f"'planvirt rollback {context.run.id}' finishes what is left: it can only go forward now"
        context.journal.note_error(context.run.id, None, first.as_dict())
        return RunState.COMMITTING, first
    context.journal.move_run(context.run.id, RunState.SUCCEEDED, "all done")
    return RunState.SUCCEEDED, None


def _work(context: RunContext, record: StepRecord) -> Work:
    journal, run = context.journal, context.run.id

    deleted: list[str] = []  # what the action says that it deletes; often there is nothing

    def carry_out(call: Call) -> None:
        tell = call.log

        def log(text: str) -> None:
            if not deleted:
                context.tell("commit", record)
            deleted.append(text)
            tell(text)

        call.log = log
        deferred = ACTIONS[record.action].commit
        if deferred is not None:
            deferred(call)

    def end() -> None:
        journal.move_step(run, record.id, StepState.COMMITTED, "deleted for good" if deleted else "nothing to delete")
        if deleted:
            context.tell("committed", record)

    def failed(error: dict[str, str]) -> None:
        journal.note_error(run, record.id, error)
        context.tell("failed", record, error["brief"])

    return late_work(
        context,
        record,
        "commit",
        begin=lambda _: None,
        carry_out=carry_out,
        end=end,
        failed=failed,
    )
