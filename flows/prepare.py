"""Everything a run, a destroy or a preview decides before anything is touched."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from drivers.compute import InstanceFacts
from flows.facts import claims_on, gather, name_of
from flows.preview import Preview, preview
from flows.world import World
from planvirt.graph import Graph, Step, build_graph
from planvirt.journal.journal import Journal
from planvirt.plan import Instance, Plan, Retry
from planvirt.states import State


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with what carrying it out would do now."""

    kind: Literal["run", "destroy"]
    plan: Plan
    preview: Preview


def prepare_run(plan: Plan, world: World, journal: Journal) -> Prepared:
    """Look at hosts, stores and journal and decide what a run of the plan would do. Raises what makes it impossible."""
    found = preview(plan.name, build_graph(plan), gather(world, journal, plan))
    for store in _stores(found):
        world.store(store).check()
    return Prepared("run", plan, found)


def prepare_destroy(plan: Plan, world: World, journal: Journal) -> Prepared:
    """Decide what removing all that the plan made would do: its instances, wherever and however they are now."""
    facts = gather(world, journal, plan)
    ids = _ids(facts.made)
    declared = {instance.name: instance for instance in plan.instances}
    steps = tuple(_terminate(plan, declared.get(name_of(found)), found, ids) for found in facts.made)
    claims = claims_on(journal, plan.name, map(name_of, facts.made))
    renamed = tuple(found for found in facts.made if found.set_aside is None and found.name != name_of(found))
    facts = replace(facts, elsewhere=renamed, undeclared=(), claims=claims)
    return Prepared("destroy", plan, preview(plan.name, Graph(_ordered(steps), parallel={}), facts))


def _ids(made: Iterable[InstanceFacts]) -> dict[InstanceFacts, str]:
    """A step's id for each instance; the host is part of it where a name occurs on several."""
    ids: dict[InstanceFacts, str] = {}
    often = Counter(name_of(found) for found in made)
    for found in made:
        name = f"terminate.{name_of(found)}"
        step = name if often[name_of(found)] == 1 else f"{name}-{found.host}"
        while step in ids.values():
            step = f"{step}-{found.host}"
        ids[found] = step
    return ids


def _terminate(plan: Plan, declared: Instance | None, found: InstanceFacts, ids: Mapping[InstanceFacts, str]) -> Step:
    """The step that terminates an instance where it was found, whatever state the plan declares for it."""
    name = name_of(found)
    first = _dependents(plan, name) if found.set_aside is None else ()
    return Step(
        id=ids[found],
        action="terminate",
        instance=_undeclared(found) if declared is None else replace(declared, host=found.host),
        operation="destroy",
        arguments={} if found.set_aside is None else {"aside": found.set_aside},
        needs=tuple(step for other, step in ids.items() if name_of(other) in first and other.set_aside is None),
        when=True,
        retry=Retry() if declared is None else declared.retry,
        timeout=600.0,
    )


def _ordered(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with every need before its step; instance needs have no cycles."""
    waiting, done, ordered = list(steps), set[str](), list[Step]()
    while waiting:
        ready = [step for step in waiting if done.issuperset(step.needs)]
        ordered += ready
        done |= {step.id for step in ready}
        waiting = [step for step in waiting if step.id not in done]
    return tuple(ordered)


def _undeclared(found: InstanceFacts) -> Instance:
    """An instance that an earlier edition of the plan made. The host remembers whether it is protected."""
    name = name_of(found)
    return Instance(name, name, found.host, found.vcpus, found.memory, state=State.ABSENT, protect=found.protect)


def _dependents(plan: Plan, name: str) -> tuple[str, ...]:
    """The instances that need this one, directly."""
    group = next((instance.group for instance in plan.instances if instance.name == name), name)
    return tuple(
        instance.name for instance in plan.instances if instance.name != name and {name, group} & set(instance.needs)
    )


def _stores(found: Preview) -> tuple[str, ...]:
    stores = [
        step.arguments["upload"]["store"]
        for step in found.steps
        if step.action in ("snapshot", "backup") and isinstance(step.arguments.get("upload"), Mapping)
    ]
    stores += [step.arguments.get("store") for step in found.steps if step.action == "shelve"]
    return tuple(dict.fromkeys(store for store in stores if isinstance(store, str)))
