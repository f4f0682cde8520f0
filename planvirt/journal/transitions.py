"""The states of runs and steps, and every transition that is allowed between them, each with its reason."""

from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMMITTING = "committing"
    SUCCEEDED = "succeeded"
    KEPT = "kept"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_INCOMPLETE = "rollback_incomplete"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """Where a step stands."""

    PENDING = "pending"
    DOING = "doing"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"
    SKIPPED = "skipped"
    COMMITTED = "committed"


ENDED = frozenset(
    {
        RunState.SUCCEEDED,
        RunState.KEPT,
        RunState.ROLLED_BACK,
        RunState.ROLLBACK_INCOMPLETE,
        RunState.CANCELLED,
    }
)

# What a rollback has to undo. A step caught in `doing` or `undoing` by a crash may have left something.
UNDOABLE = frozenset({StepState.DOING, StepState.DONE, StepState.FAILED, StepState.UNDOING, StepState.UNDO_FAILED})

RUN_TRANSITIONS = frozenset(
    {
        (RunState.PENDING, RunState.RUNNING),  # the flow began
        (RunState.PENDING, RunState.CANCELLED),  # it ended before its flow began
        (RunState.RUNNING, RunState.COMMITTING),  # every step is done: from here only forward
        (RunState.RUNNING, RunState.KEPT),  # a step failed and the plan says to keep what is there
        (RunState.RUNNING, RunState.ROLLING_BACK),  # a step failed, or the user interrupted
        (RunState.RUNNING, RunState.CANCELLED),  # interrupted before any step began
        (RunState.COMMITTING, RunState.SUCCEEDED),  # what was set aside is deleted
        (RunState.ROLLING_BACK, RunState.ROLLED_BACK),  # every undo succeeded
        (RunState.ROLLING_BACK, RunState.ROLLBACK_INCOMPLETE),  # some undo failed for good
        (RunState.ROLLBACK_INCOMPLETE, RunState.ROLLING_BACK),  # somebody finishes the rollback
        (RunState.KEPT, RunState.ROLLING_BACK),  # somebody decides for the rollback after all
        (RunState.KEPT, RunState.RUNNING),  # somebody decides to go on
        (RunState.ROLLING_BACK, RunState.KEPT),  # rolled back as far as somebody asked for
    }
)

STEP_TRANSITIONS = frozenset(
    {
        (StepState.PENDING, StepState.DOING),  # the first attempt
        (StepState.PENDING, StepState.SKIPPED),  # its condition is false, or the run ended before it
        (StepState.DOING, StepState.DONE),  # the action succeeded
        (StepState.DOING, StepState.FAILED),  # the attempt failed
        (StepState.FAILED, StepState.DOING),  # another attempt
        (StepState.FAILED, StepState.SKIPPED),  # its condition could be evaluated at last, and is false
        (StepState.UNDONE, StepState.PENDING),  # the run is resumed after a rollback of a part
        (StepState.DOING, StepState.UNDOING),  # the runner died in the middle of it
        (StepState.DONE, StepState.UNDOING),  # rollback
        (StepState.FAILED, StepState.UNDOING),  # rollback: a failed step may have left something, too
        (StepState.UNDOING, StepState.UNDONE),  # nothing of it is left
        (StepState.UNDOING, StepState.UNDO_FAILED),  # the attempt to undo failed
        (StepState.UNDO_FAILED, StepState.UNDOING),  # another attempt, now or in a later rollback
        (StepState.UNDOING, StepState.UNDOING),  # the runner died while undoing it
        (StepState.DONE, StepState.COMMITTED),  # its deferred deletion is carried out
        (StepState.DOING, StepState.UNDONE),  # pre-empted: it stopped half-way, the rest is the other run's
        (StepState.DONE, StepState.UNDONE),  # pre-empted: what it did is the other run's now
        (StepState.FAILED, StepState.UNDONE),  # pre-empted
        (StepState.UNDO_FAILED, StepState.UNDONE),  # pre-empted
    }
)


class IllegalTransition(Exception):
    """The program tried a transition that the table does not know: a fault of the program, never of the user."""


def check_run(before: RunState, after: RunState) -> None:
    """Raise IllegalTransition unless a run may go from `before` to `after`."""
    if (before, after) not in RUN_TRANSITIONS:
        raise IllegalTransition(f"a run cannot go from {before} to {after}")


def check_step(before: StepState, after: StepState) -> None:
    """Raise IllegalTransition unless a step may go from `before` to `after`."""
    if (before, after) not in STEP_TRANSITIONS:
        raise IllegalTransition(f"a step cannot go from {before} to {after}")
