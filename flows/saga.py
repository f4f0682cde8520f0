"""A run from its first step to its end: forward while all goes well, else as the plan's `on_failure` says."""

from collections.abc import Collection, Mapping, Sequence

from flows.commit import commit
from flows.context import RunContext
from flows.executor import Executor
from flows.rollback import roll_back
from flows.step import step_work
from flows.walk import walk
from planvirt.errors import PlanvirtError
from planvirt.graph import Step
from planvirt.journal.transitions import RunState, StepState
from planvirt.plan import OnFailure


class Interrupted(PlanvirtError):
    """Somebody ended the run before it was done."""


def carry_out(
    context: RunContext,
    steps: Sequence[Step],
    parallel: Mapping[str, int],
    on_failure: OnFailure,
    executor: Executor,
) -> tuple[RunState, PlanvirtError | None]:
    """Do the steps in the order of their needs, and end the run. Returns its state and the first error, if any.

    `finally` steps run after the others, also when one of those failed, but not after an interruption.
    """
    context.journal.move_run(context.run.id, RunState.RUNNING, "begun")
    return go_on(context, steps, parallel, on_failure, executor)


def go_on(
    context: RunContext,
    steps: Sequence[Step],
    parallel: Mapping[str, int],
    on_failure: OnFailure,
    executor: Executor,
) -> tuple[RunState, PlanvirtError | None]:
    """Do what is left of a run that is running. Needs of the steps that are not among them count as met."""
    body = [step for step in steps if not step.final]
    final = [step for step in steps if step.final]
    error = _do(context, body, parallel, executor)
    if not context.interrupted.is_set():
        late = _do(context, final, parallel, executor)
        error = error or late  # the first error is the one that is reported
    if context.interrupted.is_set():
        error = Interrupted("cannot finish the run: it was interrupted")
    if error is None:
        context.journal.move_run(context.run.id, RunState.COMMITTING, "every step is done")
        return commit(context, executor)
    return _fail(context, on_failure, executor, error), error


def _do(
    context: RunContext, steps: Sequence[Step], parallel: Mapping[str, int], executor: Executor
) -> PlanvirtError | None:
    """Do the steps; returns the first error."""
    by_id = {step.id: step for step in steps}

    def may_begin(key: str, running: Collection[str]) -> bool:
        operation = by_id[key].operation
        limit = parallel.get(operation) if operation else None
        return limit is None or sum(by_id[other].operation == operation for other in running) < limit

    ended = walk(
        list(by_id),
        {key: [need for need in step.needs if need in by_id] for key, step in by_id.items()},
        lambda key: step_work(context, by_id[key]),
        executor,
        on_error="stop",
        workers=context.workers,
        may_begin=may_begin,
        stop=context.interrupted.is_set,
    )
    return next((context.told(error) for error in ended.values() if error is not None), None)


def _fail(context: RunContext, on_failure: OnFailure, executor: Executor, error: PlanvirtError) -> RunState:
    run, journal = context.run.id, context.journal
    if all(record.state in (StepState.PENDING, StepState.SKIPPED) for record in journal.steps(run)):
        journal.move_run(run, RunState.CANCELLED, str(error), error=error.as_dict())
        return RunState.CANCELLED
    if on_failure == OnFailure.KEEP:
        journal.move_run(run, RunState.KEPT, str(error), error=error.as_dict())
        return RunState.KEPT
    return roll_back(context, executor, str(error), error.as_dict())
