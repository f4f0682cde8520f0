"""What a run would do: a pure function of the plan's graph and the facts, shared by preview and run."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flows import sizing
from flows.declared import Decided, decide
from flows.destroyed import destroyed, place_of
from flows.facts import Facts, name_of
from flows.foresight import foreseen
from flows.kept_disks import returning
from flows.preemption import preempted, preempting
from planvirt.errors import Conflict, PlanvirtError
from planvirt.graph import Graph, Step
from planvirt.mark import instance_uuid
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
    preempts: tuple[str, ...] = field(default=(), compare=False)  # runs at work on the instance, which lose it

    @property
    def why(self) -> str:
        """The reason, and at whose cost."""
        return "; ".join([self.reason, *(f"takes it from run {run}, which is at work on it" for run in self.preempts)])


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
    own: dict[str, list[Step]] = {}
    for step in graph.steps:
        if step.operation is not None:
            own.setdefault(step.instance.name, []).append(step)
    for step in graph.steps:
        needs = tuple(dict.fromkeys(new for need in step.needs for new in instead[need]))
        if step.operation is not None and not _launched_already(plan, step, kept, facts):
            kept.append(replace(step, needs=needs))
            reasons[step.id] = _reason(step)
            instead[step.id] = (step.id,)
            continue
        try:
            steps = decide(
                plan,
                step.instance,
                facts.of(step),
                facts.capacities(step.instance.host),
                own.get(step.instance.name, ()),
            )
        except PlanvirtError as error:
            conflicts.append(str(error))
            steps = ()
        for found in steps:
            decided = replace(
                step,
                id=_id(step, found, ids),
                action=found.action,
                arguments=found.arguments,
                needs=needs,
                operation=None,
            )
            ids.add(decided.id)
            kept.append(decided)
            reasons[decided.id] = found.reason
            needs = (decided.id,)
        instead[step.id] = needs
    conflicts += _elsewhere(graph, facts)
    for step in kept:
        if step.action == "launch" and step.when is not False:
            conflicts += _in_the_way(plan, step, facts)
    conflicts += foreseen(plan, kept, facts)
    losers = preempted(kept, facts)
    kept = [preempting(step, losers) for step in kept]
    conflicts += [str(claim) for name, claim in facts.claims.items() if name not in losers]
    return Preview(
        plan=plan,
        changes=tuple(_change(step, reasons[step.id], facts) for step in kept if step.when is not False),
        destroys=tuple(text for step in kept if step.when is not False for text in destroyed(plan, step, facts)),
        conflicts=tuple(dict.fromkeys(conflicts)),
        steps=tuple(kept),
        parallel=graph.parallel,
        undeclared=tuple(place_of(item) for item in facts.undeclared),
    )


def _id(step: Step, found: Decided, taken: Container[str]) -> str:
    """The id of a step that the declaration asks for; an operation of the plan may have made the same one."""
    decided = f"{found.action}{found.about}.{step.instance.name}"
    while decided != step.id and decided in taken:
        decided = f"declared-{decided}"
    return decided


def _reason(step: Step) -> str:
    aside = step.arguments.get("aside")
    return f"operation {step.operation}" if aside is None else f"set aside by run {aside}"


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


def _change(step: Step, reason: str, facts: Facts) -> Change:
    verb = verb_for(step.action, step.arguments)
    return Change(
        step=step.id,
        action=step.action,
        instance=step.instance.name,
        host=step.instance.host,
        impact=_impact(step, facts),
        undo=verb.undo,
        reason=reason,
        preempts=tuple(step.arguments.get("preempts", ())),
    )


def _impact(step: Step, facts: Facts) -> Impact:
    """What the verb table says; a resize is known better when the instance is there."""
    verb, found = verb_for(step.action, step.arguments), facts.of(step)
    if step.action != "resize" or found is None:
        return verb.impact
    try:
        sizes = sizing.wanted(step.arguments, step.instance, found)
    except PlanvirtError:
        return verb.impact
    return Impact.REBOOT if found.power == State.RUNNING and sizing.needs_reboot(found, sizes) else Impact.LIVE
