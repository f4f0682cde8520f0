"""What an expression can see when its step begins."""

from collections.abc import Mapping
from typing import Any

from flows.context import RunContext
from planvirt.expressions import render_deferred
from planvirt.graph import Step
from planvirt.journal.transitions import StepState
from planvirt.plan import Deferred
from planvirt.secret import Redactor, Secret


def scope_for(context: RunContext, step: Step) -> dict[str, Any]:
    """Plain values under the names that a plan may use. Only what the step's expressions name is looked up."""
    used = _names(step)
    scope: dict[str, Any] = {
        "inputs": dict(context.plan.inputs) if context.plan else {},
        "plan": {"name": context.run.plan, "commit": context.run.commit},
        "run": {"id": context.run.id, "date": context.run.started[:10], "started": context.run.started},
        "instance": _about(step),
        "secrets": context.secrets,
    }
    if any(name.startswith("steps") for name in used):
        scope["steps"] = _outputs(context)
    if any(name.startswith("instances") for name in used):
        scope["instances"] = _instances(context, used)
    return scope


def evaluate(value: Any, scope: Mapping[str, Any], redact: Redactor) -> Any:
    """The value with every expression in it replaced by what it yields. Raises PlanvirtError for one that cannot.

    What an expression made of a secret is a secret, too, and `redact` learns it.
    """
    if isinstance(value, Deferred):
        found = render_deferred(value, scope)
        if isinstance(found, Secret):
            redact.learn(found.reveal())
        return found
    if isinstance(value, Mapping):
        return {key: evaluate(item, scope, redact) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [evaluate(item, scope, redact) for item in value]
    return value


def _about(step: Step) -> dict[str, Any]:
    instance = step.instance
    return {
        "name": instance.name,
        "group": instance.group,
        "host": instance.host,
        "index": instance.index,
        "labels": dict(instance.labels),
    }


def _outputs(context: RunContext) -> dict[str, Any]:
    """The outputs of finished operations by instance name; those of a single instance also by themselves."""
    by_operation: dict[str, dict[str, Any]] = {}
    for record in context.journal.steps(context.run.id):
        if record.operation is not None:
            known = by_operation.setdefault(record.operation, {})
            if record.state in (StepState.DONE, StepState.COMMITTED):
                known[record.instance] = dict(record.outputs)
            else:
                known.setdefault(record.instance, {})
    return {operation: {"outputs": _by_either_name(outputs)} for operation, outputs in by_operation.items()}


def _by_either_name(outputs: dict[str, Any]) -> dict[str, Any]:
    """A plan with `count` must not break when the count becomes one."""
    alone = next(iter(outputs.values())) if len(outputs) == 1 else {}
    return {**alone, **outputs}


def _instances(context: RunContext, used: set[str]) -> dict[str, Any]:
    """Facts of the instances that the expressions name; of all of them when a name is not plain."""
    plan = context.plan
    if plan is None:
        return {}
    wanted = {name.split(".")[1] for name in used if name.startswith("instances.") and name.count(".") >= 1}
    found = {}
    for instance in plan.instances:
        if wanted and instance.name not in wanted:
            continue
        addresses = list(context.world.host(instance.host).addresses(instance.name))
        found[instance.name] = {
            "name": instance.name,
            "host": instance.host,
            "address": addresses[0] if addresses else None,
            "addresses": addresses,
        }
    return found


def _names(step: Step) -> set[str]:
    names: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, Deferred):
            names.update(value.names)
        elif isinstance(value, Mapping):
            for item in value.values():
                collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    collect(step.when)
    collect(dict(step.arguments))
    collect(step.instance.image)
    if step.instance.boot:
        collect(step.instance.boot.cmdline)
    return names
