"""What a run would do: a pure function of the plan's graph and the facts, shared by preview and run."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from drivers.compute import InstanceFacts
from flows.facts import Facts, name_of
from flows.foresight import foreseen
from flows.kept_disks import doomed, outliving, returning
from planvirt.errors import Conflict
from planvirt.graph import Graph, Step
from planvirt.mark import instance_uuid
from planvirt.plan import Instance
from planvirt.states import State
from planvirt.verbs import Impact, verb_for


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a preview: a step, what it means for the instance, and how it would be undone."""

    step: str
    action: str
    instance: str
    host: str
    impact: Impact
    undo: str
    reason: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do, in order, the names of what it would destroy, and why it would be refused, if it would."""

    plan: str
    changes: tuple[Change, ...]
    destroys: tuple[str, ...]
    conflicts: tuple[str, ...]
    steps: tuple[Step, ...]
    parallel: Mapping[str, int]
    undeclared: tuple[str, ...] = ()  # what the plan made and does not name any more: it stays as it is


class Refused(Conflict):
    """The plan does not fit what is there. Nothing was touched."""


def preview(plan: str, graph: Graph, facts: Facts) -> Preview:
    """Decide what every step comes to. Steps that find everything as declared fall away."""
    reasons: dict[str, str] = {}
    conflicts: list[str] = []
    kept: list[Step] = []
    instead: dict[str, tuple[str, ...]] = {}  # a step's id in the graph: the ids to wait for in its place
    ids = {step.id for step in graph.steps}
    for step in graph.steps:
        needs = tuple(dict.fromkeys(new for need in step.needs for new in instead[need]))
        if step.operation is not None and not _launched_already(plan, step, kept, facts):
            kept.append(replace(step, needs=needs))
            reasons[step.id] = _reason(step)
            instead[step.id] = (step.id,)
            continue
        action, reason = _declared(plan, step.instance, facts.of(step))
        if action is not None and action in _BRINGING.values() and _operation_does(action, step, graph):
            action, reason = None, ""
        if action is None:
            if reason:
                conflicts.append(reason)
            instead[step.id] = needs
            continue
        decided = replace(step, id=_id(step, action, ids), action=action, needs=needs)
        ids.add(decided.id)
        kept.append(decided)
        reasons[decided.id] = reason
        instead[step.id] = (decided.id,)
    conflicts += _elsewhere(graph, facts)
    for step in kept:
        if step.action == "launch" and step.when is not False:
            conflicts += _in_the_way(plan, step, facts)
    conflicts += foreseen(plan, kept, facts)
    conflicts += [str(claim) for claim in facts.claims.values()]
    return Preview(
        plan=plan,
        changes=tuple(_change(step, reasons[step.id]) for step in kept if step.when is not False),
        destroys=tuple(_destroyed(plan, step, facts) for step in kept if step.action == "terminate"),
        conflicts=tuple(dict.fromkeys(conflicts)),
        steps=tuple(kept),
        parallel=graph.parallel,
        undeclared=tuple(_place(item) for item in facts.undeclared),
    )


def _id(step: Step, action: str, taken: Container[str]) -> str:
    """The id of a step that is decided to be this action; an operation of the plan may have made the same one."""
    decided = f"{action}.{step.instance.name}"
    while decided != step.id and decided in taken:
        decided = f"declared-{decided}"
    return decided


def _reason(step: Step) -> str:
    aside = step.arguments.get("aside")
    return f"operation {step.operation}" if aside is None else f"set aside by run {aside}"


def _place(found: InstanceFacts) -> str:
    aside = f" (set aside by run {found.set_aside})" if found.set_aside is not None else ""
    return f"{name_of(found)} on {found.host}{aside}"


def _launched_already(plan: str, step: Step, before: Sequence[Step], facts: Facts) -> bool:
    """Whether a launch operation finds its instance there, so that it is decided like a declared one."""
    found = facts.of(step)
    gone = any(other.action == "terminate" and other.instance.name == step.instance.name for other in before)
    return step.action == "launch" and found is not None and found.uuid == instance_uuid(plan, found.name) and not gone


def check(found: Preview, kind: str = "run") -> None:
    """Raise Refused when the preview has conflicts, with all of them."""
    if found.conflicts:
        count = "1 conflict" if len(found.conflicts) == 1 else f"{len(found.conflicts)} conflicts"
        raise Refused(
            f"cannot {kind} {found.plan}: {count} with what is there",
            details="\n".join(found.conflicts),
            resolution="each line says what is in its way; 'planvirt instances --all' lists what there is",
        )


def _declared(plan: str, wanted: Instance, found: InstanceFacts | None) -> tuple[str | None, str]:
    """The verb that brings an instance to its declared state, and why; without a verb, the conflict or nothing."""
    if found is None:
        return (None, "") if wanted.state == State.ABSENT else ("launch", f"declared {wanted.state}, absent")
    if found.mark is None:
        return None, f"{wanted.name}: host {wanted.host} has an instance of that name which planvirt did not make"
    if found.uuid != instance_uuid(plan, wanted.name):
        return None, f"{wanted.name}: plan {found.mark.plan} made the instance of that name on host {wanted.host}"
    if wanted.state == State.ABSENT:
        if wanted.protect:
            return None, f"{wanted.name}: it is declared absent, but protected"
        return "terminate", f"declared absent, {found.state}"
    if found.mark.spec[:12] != wanted.spec_hash()[:12]:
        return None, _differs(wanted, found)
    if found.state == wanted.state:
        return None, ""
    verb = _BRINGING.get((found.state, wanted.state))
    if verb is not None:
        return verb, f"declared {wanted.state}, {found.state}"
    return None, f"{wanted.name}: it is {found.state}, declared {wanted.state}; bring it there by hand"


# How an instance gets from the state it is in to the declared one. To stop a guest that stands still is to give its
# memory up, which nobody has asked for.
_BRINGING = {
    (State.STOPPED, State.RUNNING): "start",
    (State.PAUSED, State.RUNNING): "unpause",
    (State.SUSPENDED, State.RUNNING): "resume",
    (State.RUNNING, State.STOPPED): "stop",
}


def _operation_does(action: str, step: Step, graph: Graph) -> bool:
    """Whether the plan's own first operation on the instance is that verb, so that it need not be done before it."""
    own = (other for other in graph.steps if other.operation is not None and other.instance.name == step.instance.name)
    first = next(own, None)
    return first is not None and first.when is True and not first.final and first.action == action


def _differs(wanted: Instance, found: InstanceFacts) -> str:
    parts = []
    if found.vcpus != wanted.vcpus:
        parts.append(f"vcpus {found.vcpus}, the plan says {wanted.vcpus}")
    if found.memory != wanted.memory:
        parts.append(f"memory {found.memory >> 20} MiB, the plan says {wanted.memory >> 20} MiB")
    what = "; ".join(parts) or "its disks, networks, image or boot settings"
    return (
        f"{wanted.name}: it was made from another definition ({what}); "
        "undo the edit, or destroy the instance and run the plan again"
    )


def _elsewhere(graph: Graph, facts: Facts) -> list[str]:
    """Instances of the plan that are not where it says: to launch them would make a second one of each."""
    declared = {step.instance.name: step.instance for step in graph.steps}
    conflicts = []
    for found in facts.elsewhere:
        wanted = declared.get(name_of(found))
        if wanted is not None and wanted.host == found.host:
            conflicts.append(f"{wanted.name}: on host {found.host} it bears the name {found.name}; rename it back")
        elif wanted is not None:
            conflicts.append(
                f"{wanted.name}: it is on host {found.host}, the plan says {wanted.host}; moving it is not possible "
                "yet: destroy it there first, or put the host back"
            )
    return conflicts


def _in_the_way(plan: str, step: Step, facts: Facts) -> list[str]:
    """What earlier runs have left of an instance that cannot be launched for it."""
    conflicts = [
        f"{step.instance.name}: it was set aside by run {found.set_aside} on host {found.host}; "
        f"'planvirt rollback {found.set_aside}' brings it back"
        for found in facts.aside(step.instance.name)
    ]
    for disk in step.instance.disks:
        try:
            if disk.keep:
                returning(plan, step.instance, disk, facts.volumes.get(step.instance.host, ()))
        except Conflict as error:
            conflicts.append(f"{step.id}: {error}")
    return conflicts


def _change(step: Step, reason: str) -> Change:
    verb = verb_for(step.action, step.arguments)
    return Change(
        step=step.id,
        action=step.action,
        instance=step.instance.name,
        host=step.instance.host,
        impact=verb.impact,
        undo=verb.undo,
        reason=reason,
    )


def _destroyed(plan: str, step: Step, facts: Facts) -> str:
    """The instance, and the disks that go with it."""
    found, name = facts.of(step), step.instance.name
    if found is None:
        return f"instance {name} on {step.instance.host}"
    keep = [disk.name for disk in step.instance.disks if disk.keep]
    count = len(doomed(plan, name, found, keep))
    stays = outliving(plan, name, found, keep)
    kept = f" (keeps {', '.join(stays)})" if stays else ""
    disks = "1 disk" if count == 1 else f"{count} disks"
    return f"instance {_place(found)} with {disks}{kept}"
