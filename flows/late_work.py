"""What happens after the steps: undos and commits. Both work from the journal alone and are tried several times."""

from collections.abc import Callable

from flows.call import Call
from flows.context import RunContext
from flows.executor import Work
from planvirt.deadline import Deadline
from planvirt.journal.journal import LostClaim
from planvirt.journal.records import StepRecord

_ATTEMPTS = 3
_LIMIT = 300.0  # seconds that one attempt may take


def late_work(
    context: RunContext,
    record: StepRecord,
    verb: str,
    *,
    begin: Callable[[int], None],
    carry_out: Callable[[Call], None],
    end: Callable[[], None],
    failed: Callable[[dict[str, str]], None],
) -> Work:
    """An "undo" or a "commit" of a step. Around each attempt `begin`, `end` and `failed` tell the journal.

    Only giving the run up altogether interrupts it.
    """
    name = f"{verb} {record.action} {record.instance}"

    def attempt(number: int) -> None:
        deadline = Deadline(_LIMIT, interrupted=context.abandoned)
        if number > 1:
            deadline.sleep(context.undo_pause * 2 ** (number - 2))
        try:
            begin(number)
        except LostClaim:
            if context.journal.yields(context.run.id, record.id) is None:
                raise
            return
        fresh = context.journal.step(context.run.id, record.id)
        call = context.call(fresh, deadline, fresh.arguments, None, "undo-phase" if verb == "undo" else "phase")
        try:
            context.attempts_on(record.uuid).carry_out(lambda: carry_out(call), deadline, name)
        except Exception as raised:
            if isinstance(raised, LostClaim) and context.journal.yields(context.run.id, record.id) is not None:
                return
            error = context.told(raised)
            failed(error.as_dict())
            if error is raised:
                raise
            raise error from (raised if context.redact.idle else None)
        end()

    return Work(
        key=record.id,
        name=name,
        attempt=attempt,
        attempts=_ATTEMPTS,
        again=lambda _: not context.abandoned.is_set(),
        tags=(verb, f"instance:{record.instance}", f"host:{record.host}"),
    )
