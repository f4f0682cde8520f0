"""Goes through a run in thought and says what would be refused half-way, so that it is refused before it begins."""

from collections.abc import Collection, Iterator, Sequence

from drivers.compute import Capabilities, InstanceFacts
from flows.facts import Facts
from flows.foreseen_disks import ForeseenDisks
from planvirt.graph import Step
from planvirt.mark import instance_uuid
from planvirt.plan import Deferred
from planvirt.states import EXISTING, State
from planvirt.verbs import verb_for

# What is known of a lock: on, off, or both where a condition decides.
_LOCKED, _UNLOCKED = frozenset({True}), frozenset({False})
_LOCKS = {"lock": _LOCKED, "unlock": _UNLOCKED, "launch": _UNLOCKED, "terminate": _UNLOCKED}

# What ends a state that hides whether the guest runs.
_AS_BEFORE = frozenset({"confirm_resize", "revert_resize", "unshelve"})


def foreseen(plan: str, steps: Sequence[Step], facts: Facts) -> list[str]:
    """What would be refused half-way: verbs that meet a locked instance, that a host lacks, or in a wrong state."""
    states = {
        (host, name): frozenset({found.state if found.uuid == instance_uuid(plan, name) else State.ABSENT})
        for (host, name), found in facts.instances.items()
    }
    locks = _locks(plan, facts)
    conflicts: list[str] = []
    terminated: set[str] = set()
    disks = ForeseenDisks()
    for step in steps:
        if step.when is False:
            continue
        name, aside = step.instance.name, "aside" in step.arguments
        place = (step.instance.host, name)
        before = states.get(place, frozenset({State.ABSENT}))
        lock = _lock_of(facts.of(step)) if aside else locks.get(place, _UNLOCKED)
        conflicts += [f"{step.id}: {why}" for why in _refusals(step, before, lock, facts, terminated, disks)]
        disks.note(step)
        if step.action == "terminate":
            terminated.add(name)
        if not aside:
            after, lock_after = _after(step, before, facts), _LOCKS.get(step.action, lock)
            unsure = isinstance(step.when, Deferred)
            states[place] = before | after if unsure else after
            locks[place] = lock | lock_after if unsure else lock_after
    return conflicts


def _refusals(
    step: Step,
    before: frozenset[State],
    lock: frozenset[bool],
    facts: Facts,
    terminated: Collection[str],
    disks: ForeseenDisks,
) -> Iterator[str]:
    """Why a step cannot be carried out; in order: its instance's lock, its host, its instance's state."""
    name, host, verb = step.instance.name, step.instance.host, verb_for(step.action, step.arguments)
    if verb.changing and lock == _LOCKED:
        yield f"{name} is locked; unlock it first, by an operation 'unlock'"
    if step.action == "terminate" and step.instance.protect:
        yield f"{name} is protected; declare it without 'protect' to have it terminated"
    capabilities = facts.capabilities[host]
    if step.action not in capabilities.verbs:
        yield f"host {host} cannot {step.action}"
    if lack := _lacks(step, capabilities):
        yield f"host {host} {lack}"
    yield from disks.refusals(step, before, facts)
    if step.action == "launch" and (host, name) in facts.instances and State.ABSENT in before:
        yield f"host {host} has an instance of that name from elsewhere"
    if step.action == "launch" and name in terminated:
        # What is set aside keeps its UUID until the run commits, and two machines cannot share one.
        yield f"{name} is terminated earlier in this run; launch it in a run of its own"
    if not before & verb.allowed:
        yield f"{name} will be {_or(before)}; {verb.name} is allowed in: {', '.join(sorted(verb.allowed))}"


def _locks(plan: str, facts: Facts) -> dict[tuple[str, str], frozenset[bool]]:
    return {
        place: _lock_of(found)
        for place, found in facts.instances.items()
        if found.uuid == instance_uuid(plan, found.name)
    }


def _lock_of(found: InstanceFacts | None) -> frozenset[bool]:
    return _LOCKED if found is not None and found.locked else _UNLOCKED


def _after(step: Step, before: frozenset[State], facts: Facts) -> frozenset[State]:
    if step.action == "launch":
        return frozenset({State.STOPPED if step.instance.state == State.STOPPED else State.RUNNING})
    if step.action == "wait" and "for" in step.arguments:
        return frozenset({State(str(step.arguments["for"]))})
    if step.action == "wait":
        return before & EXISTING or before
    found = facts.of(step)
    if step.action == "resume" and found is not None and found.state == State.SUSPENDED:
        return frozenset({State.RUNNING, State.PAUSED})  # only the host knows whether it was paused when it was saved
    if step.action == "resize" and step.arguments.get("confirm") == "manual":
        return frozenset({State.RESIZED})
    if step.action in _AS_BEFORE:
        return frozenset({State.RUNNING, State.STOPPED})  # the instance's note says whether it ran
    leaves = verb_for(step.action, step.arguments).leaves
    return before if leaves is None else frozenset({leaves})


def _lacks(step: Step, capabilities: Capabilities) -> str:
    """What this step needs of its host beyond the verb, if the host has it not."""
    console = step.arguments.get("console") or (step.instance.ready and step.instance.ready.console)
    if step.action in ("wait", "launch") and console and not capabilities.console:
        return "has no console to wait for"
    if step.action == "resize" and step.arguments.get("disks") and not capabilities.grow_disks:
        return "cannot grow disks"
    if step.action in ("snapshot", "backup"):
        return _lacks_for_snapshot(step, capabilities)
    return ""


def _lacks_for_snapshot(step: Step, capabilities: Capabilities) -> str:
    compression = step.arguments.get("compress")
    if step.arguments.get("quiesce") == "required" and not capabilities.quiesce:
        return "cannot freeze file systems"
    if compression is not None and compression not in capabilities.compressions:
        return f"cannot compress images with {compression}: planvirt must run on it, beside qemu-img and its pool"
    return ""


def _or(states: frozenset[State]) -> str:
    return " or ".join(sorted(states))
