"""Finishing what a dead process, or a person's decision, has left of a run: forward or back, from the journal.

For every state in which a step can be caught there is a rule; tests/flows/test_recovery.py goes through all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from flows.actions import ACTIONS
from flows.actions.action import Finding
from flows.commit import commit
from flows.context import RunContext
from flows.executor import Executor
from flows.rollback import roll_back
from flows.saga import go_on
from planvirt.config import Config
from planvirt.deadline import Deadline
from planvirt.document import parse
from planvirt.errors import Conflict, PlanvirtError
from planvirt.graph import Step, build_graph
from planvirt.journal.records import RunRecord, StepRecord
from planvirt.journal.transitions import RunState, StepState
from planvirt.load import load_plan
from planvirt.plan import OnCrash, OnFailure, Plan

_PROBE_LIMIT = 60.0  # seconds


class CannotResume(Conflict):
    """There is no way forward for this run."""


class Rule(StrEnum):
    """What going forward does with a step."""

    DO = "do"  # carry it out, for the first time or again: a `do` goes on from what it finds
    TAKE = "take"  # it is done; only the journal did not hear of it
    LEAVE = "leave"  # its end is known


def rule_for(state: StepState, finding: Finding) -> Rule:
    """What to do with a step in this state, of which a probe found that much: every pair has an answer."""
    if state in (StepState.DONE, StepState.SKIPPED, StepState.COMMITTED):
        return Rule.LEAVE
    if state == StepState.DOING and finding == Finding.DONE:
        return Rule.TAKE
    return Rule.DO


def wants_to_go_on(record: RunRecord) -> bool:
    """Whether the plan of a run that died says `on_crash: resume`. A destroy is always rolled back."""
    if record.kind != "run":
        return False
    data = parse(record.text).data
    return isinstance(data, Mapping) and data.get("on_crash") == OnCrash.RESUME


def plan_of(record: RunRecord, config: Config, *, as_recorded: bool) -> Plan:
    """The plan that a run began with, to go on with it.

    Raises CannotResume when the file has changed since, unless the recorded text is asked for.
    """
    if record.kind != "run":
        raise CannotResume(
            f"cannot resume run {record.id}: it is a destroy", resolution="roll it back, then destroy again"
        )
    path = Path(record.path)
    if not as_recorded and (not path.exists() or path.read_text(encoding="utf-8", errors="replace") != record.text):
        raise CannotResume(
            f"cannot resume run {record.id}: {path} has changed since it began",
            resolution="'--as-recorded' goes on with the plan as it was; 'planvirt rollback' undoes the run",
        )
    return load_plan(path, config=config, inputs=record.inputs, text=record.text, commit=record.commit or "")


def steps_of(plan: Plan, records: Sequence[StepRecord]) -> list[Step]:
    """The steps of a run as they were decided when it began, from the facts of then: a launch may have been a start."""
    places = {(step.operation, step.instance.name): step for step in build_graph(plan).steps}
    steps = []
    for record in records:
        step = places.get((record.operation, record.instance))
        if step is None:
            raise CannotResume(f"cannot resume the run: its plan has no step {record.id}")
        arguments = step.arguments if record.operation is not None else record.decided
        steps.append(replace(step, id=record.id, action=record.action, arguments=arguments, needs=record.needs))
    return steps


def recover(
    context: RunContext, record: RunRecord, executor: Executor, to: str | None = None
) -> tuple[RunState, PlanvirtError | None]:
    """Finish a run that was taken over, in the direction that its state now says.

    A run that was committing can only go forward, one that is rolling back only back: all the way, or to the step `to`,
    which stays done with all before it.
    """
    if record.state == RunState.CANCELLED:
        return record.state, None
    if record.state == RunState.COMMITTING:
        return commit(context, executor)
    if record.state == RunState.RUNNING and context.plan is not None:
        return resume(context, record, executor)
    return roll_back(context, executor, "rollback asked for", to=to), None


def resume(context: RunContext, record: RunRecord, executor: Executor) -> tuple[RunState, PlanvirtError | None]:
    """Go on with a run: look at what was caught in the middle, then do what is not done."""
    if context.plan is None:
        raise CannotResume(f"cannot resume run {record.id}: its plan is not at hand")
    records = context.journal.steps(record.id)
    steps = steps_of(context.plan, records)
    todo = [
        step
        for step, found in zip(steps, records, strict=True)
        if _settled(context, step, found) not in (Rule.LEAVE, Rule.TAKE)
    ]
    return go_on(context, todo, record.parallel, OnFailure(record.on_failure), executor)


def _settled(context: RunContext, step: Step, record: StepRecord) -> Rule:
    """Bring the journal's word on a step to what is true, and say what is still to do."""
    journal, run = context.journal, context.run.id
    finding = Finding.NOTHING
    if record.state == StepState.DOING:
        deadline = Deadline(_PROBE_LIMIT, interrupted=context.interrupted)
        call = context.call(record, deadline, record.arguments, step.instance)
        finding = ACTIONS[record.action].probe(call)
        if rule_for(record.state, finding) == Rule.TAKE:
            outputs = context.redact(dict(ACTIONS[record.action].outputs(call)))
            journal.move_step(run, record.id, StepState.DONE, "found done after its process died", outputs=outputs)
            context.tell("done", record, "it was done already")
        else:
            journal.move_step(run, record.id, StepState.FAILED, f"its process died; found: {finding}")
    elif record.state == StepState.UNDONE:
        journal.move_step(run, record.id, StepState.PENDING, "resumed")
    return rule_for(record.state, finding)
