"""Doing one step: evaluate it, guard it, journal it, carry it out in time, and again if the plan says so."""

import random
from collections.abc import Mapping
from typing import Any

from drivers.compute import InstanceFacts
from drivers.errors import Transient
from flows.actions import ACTIONS
from flows.actions.action import Finding
from flows.attempt import StepInterrupted, StepTimeout
from flows.context import RunContext
from flows.executor import Work
from flows.preemption import let_notice
from flows.scope import evaluate, scope_for
from planvirt.arguments import checked_arguments
from planvirt.deadline import DeadlinePassed
from planvirt.errors import Conflict, PlanvirtError
from planvirt.graph import Step
from planvirt.journal.journal import LostClaim
from planvirt.journal.transitions import StepState
from planvirt.states import State
from planvirt.verbs import verb_for


class Locked(Conflict):
    """The instance is locked against changes. Nothing was touched."""


class Preempted(Conflict):
    """Another run terminates the instance, so this one does not touch it any more."""


class WrongState(Conflict):
    """The instance is in a state in which the verb is not allowed. Nothing was touched."""


def step_work(context: RunContext, step: Step) -> Work:
    """The step as a piece of work with its retries."""
    doing = _Doing(context, step)
    return Work(
        key=step.id,
        name=f"{step.action} {step.instance.name}",
        attempt=doing.attempt,
        attempts=step.retry.attempts,
        again=lambda error: isinstance(error, Transient) and not context.interrupted.is_set(),
        tags=(f"instance:{step.instance.name}", f"host:{step.instance.host}"),
    )


class _Doing:
    """The attempts at one step."""

    def __init__(self, context: RunContext, step: Step) -> None:
        self._context = context
        self._step = step
        self._delays = list(step.retry.delays(random.Random()))  # noqa: S311 - jitter, not a secret
        self._decided = False  # whether its condition was found to hold
        self._timed_out = False  # whether the attempt before ran out of time, and may have taken effect all the same

    def attempt(self, number: int) -> None:
        """Do the step once. Raises its error, free of secrets, after the journal has it."""
        context, step = self._context, self._step
        if number > 1:
            self._pause(number)
        if context.interrupted.is_set():
            raise StepInterrupted(f"cannot {step.action} {step.instance.name}: the run was interrupted")
        try:
            arguments = self._evaluate()
            if arguments is None:
                return
            context.journal.move_step(
                context.run.id, step.id, StepState.DOING, f"attempt {number}", arguments=context.redact(arguments)
            )
            context.tell("begin", step)
            outputs = context.redact(dict(self._carry_out(arguments)))
            context.journal.move_step(context.run.id, step.id, StepState.DONE, "done", outputs=outputs)
        except Exception as raised:
            error = self._failed(raised)
            if error is raised:
                raise
            raise error from (raised if context.redact.idle else None)
        context.tell("done", step)

    def _pause(self, number: int) -> None:
        seconds = self._delays[number - 2]
        self._context.tell("again", self._step, f"attempt {number} of {self._step.retry.attempts} in {seconds:.1f} s")
        try:
            self._context.deadline(None, self._step).sleep(seconds)
        except DeadlinePassed:
            return  # the attempt will say that the run was interrupted

    def _evaluate(self) -> dict[str, Any] | None:
        """The arguments with their expressions evaluated; None when the step's condition does not hold."""
        context, step = self._context, self._step
        try:
            scope = scope_for(context, step)
            if not self._decided and not evaluate(step.when, scope, context.redact):
                context.journal.move_step(context.run.id, step.id, StepState.SKIPPED, "its condition is false")
                context.tell("skipped", step, "its condition is false")
                return None
            self._decided = True
            return checked_arguments(step.action, evaluate(_arguments(step), scope, context.redact))
        except Exception:
            # The journal knows failures of steps that began, so this one begins, with nothing done.
            context.journal.move_step(context.run.id, step.id, StepState.DOING, "evaluating its expressions")
            raise

    def _carry_out(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        context, step = self._context, self._step
        record = context.journal.step(context.run.id, step.id)
        deadline = context.deadline(step.timeout, step)
        call = context.call(record, deadline, arguments, step.instance)

        def body() -> Mapping[str, Any]:
            for other in step.arguments.get("preempts", ()):
                let_notice(context.journal, other, record.uuid, deadline.sleep)
            if not record.undo:
                # An earlier attempt may have changed the state already; going on from there is the action's own matter.
                _guard(step, call.facts())
            if self._timed_out and ACTIONS[step.action].probe(call) == Finding.DONE:
                return ACTIONS[step.action].outputs(call)
            return ACTIONS[step.action].do(call)

        return context.attempts_on(record.uuid).carry_out(body, deadline, f"{step.action} {step.instance.name}")

    def _failed(self, raised: BaseException) -> PlanvirtError:
        context, step = self._context, self._step
        if isinstance(raised, LostClaim) and (by := context.journal.yields(context.run.id, step.id)) is not None:
            raised = Preempted(
                f"cannot go on with {step.action} {step.instance.name}: run {by} terminates it",
                resolution=f"'planvirt show {by}' tells what becomes of it",
            )
        error = context.told(raised)
        self._timed_out = isinstance(raised, StepTimeout)
        if context.journal.step(context.run.id, step.id).state == StepState.DOING:
            context.journal.move_step(context.run.id, step.id, StepState.FAILED, str(error), error=error.as_dict())
        context.tell("failed", step, str(error))
        return error


def _guard(step: Step, facts: InstanceFacts | None) -> None:
    """Refuse the step: the lock first, then the state."""
    state = State.ABSENT if facts is None else facts.state
    verb = verb_for(step.action, step.arguments)
    if verb.changing and facts is not None and facts.locked:
        raise Locked(
            f"cannot {step.action} {step.instance.name}: it is locked",
            resolution="unlock it by an earlier step of the plan: 'action: unlock'",
        )
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
    if step.action == "rebuild":
        arguments["declared"] = step.instance.image
    if step.action == "terminate":
        arguments["keep"] = [disk.name for disk in step.instance.disks if disk.keep]
    return arguments
