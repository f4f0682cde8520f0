"""Doing one step: evaluate it, guard it, journal it, carry it out in time, and again if the plan says so."""

import random
from collections.abc import Mapping
from typing import Any

from drivers.errors import DriverError, Transient
from flows.actions import ACTIONS
from flows.context import RunContext
from flows.executor import Work
from flows.scope import evaluate, scope_for
from planvirt.arguments import checked_arguments
from planvirt.errors import Conflict, PlanvirtError
from planvirt.graph import Step
from planvirt.journal.records import StepRecord
from planvirt.journal.transitions import StepState
from planvirt.states import State
from planvirt.verbs import verb_for


class WrongState(Conflict):
    """The instance is in a state in which the verb is not allowed. Nothing was touched."""


def step_work(context: RunContext, step: Step) -> Work:
    """The step as a piece of work with its retries."""
    delays = list(step.retry.delays(random.Random()))  # noqa: S311 - jitter, not a secret
    return Work(
        key=step.id,
        name=f"{step.action} {step.instance.name}",
        attempt=lambda number: _attempt(context, step, number, delays),
        attempts=step.retry.attempts,
        again=lambda error: isinstance(error, Transient) and not context.interrupted.is_set(),
        tags=(f"instance:{step.instance.name}", f"host:{step.instance.host}"),
    )


def _attempt(context: RunContext, step: Step, number: int, delays: list[float]) -> None:
    if number > 1:
        pause = delays[number - 2]
        context.tell("again", step, f"attempt {number} of {step.retry.attempts} in {pause:.1f} s")
        context.deadline(None, step).sleep(pause)
    record = context.journal.step(context.run.id, step.id)
    scope = scope_for(context, step)
    try:
        if number == 1 and not evaluate(step.when, scope):
            context.journal.move_step(context.run.id, step.id, StepState.SKIPPED, "its condition is false")
            context.tell("skipped", step, "its condition is false")
            return
        arguments = checked_arguments(step.action, evaluate(_arguments(step), scope))
    except PlanvirtError as error:
        context.journal.move_step(context.run.id, step.id, StepState.DOING, "evaluating")
        _failed(context, step, error)
        raise
    context.journal.move_step(context.run.id, step.id, StepState.DOING, f"attempt {number}", arguments=arguments)
    context.tell("begin", step)
    try:
        outputs = _carry_out(context, step, record, arguments)
    except Exception as error:
        _failed(context, step, error)
        raise
    context.journal.move_step(context.run.id, step.id, StepState.DONE, "done", outputs=dict(outputs))
    context.tell("done", step)


def _carry_out(context: RunContext, step: Step, record: StepRecord, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    deadline = context.deadline(step.timeout, step)
    call = context.call(record, deadline, arguments, step.instance)

    def body() -> Mapping[str, Any]:
        if record.phase == "" and not record.undo:
            # An earlier attempt may have changed the state already; it is the action's own matter to go on from there.
            _guard(step, call.facts())
        return ACTIONS[step.action].do(call)

    return context.attempts_of(step.id).carry_out(body, deadline, f"{step.action} {step.instance.name}")


def _guard(step: Step, facts: Any) -> None:
    state = State.ABSENT if facts is None else facts.state
    verb = verb_for(step.action, step.arguments)
    if state not in verb.allowed:
        allowed = ", ".join(sorted(verb.allowed))
        raise WrongState(
            f"cannot {step.action} {step.instance.name}: it is {state}",
            details=f"{verb.name} is allowed in: {allowed}",
            resolution="bring it into one of these states by an earlier step, or by hand",
        )


def _arguments(step: Step) -> dict[str, Any]:
    """What the action is given, still with expressions in it."""
    arguments = dict(step.arguments)
    if step.action == "launch":
        arguments["image"] = step.instance.image
        arguments["cmdline"] = step.instance.boot.cmdline if step.instance.boot else ""
    if step.action == "terminate":
        arguments["keep"] = [disk.name for disk in step.instance.disks if disk.keep]
    return arguments


def _failed(context: RunContext, step: Step, error: BaseException) -> None:
    context.journal.move_step(context.run.id, step.id, StepState.FAILED, str(error), error=as_error(error).as_dict())
    context.tell("failed", step, str(as_error(error)))


def as_error(error: BaseException) -> PlanvirtError:
    """The error in three parts, whatever it was: a fault of the program says so."""
    if isinstance(error, PlanvirtError):
        return error
    return DriverError(
        f"cannot go on: {type(error).__name__}",
        details=str(error),
        resolution="this is a fault in planvirt: please report it with the run's log",
    )
