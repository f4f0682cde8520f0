"""Everything a run, a destroy or a preview decides before anything is touched."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from drivers.compute import Capabilities, InstanceFacts
from flows.facts import Facts, claims_on, gather
from flows.preview import Preview, preview
from flows.world import World
from planvirt.errors import PlanvirtError
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
    """Decide what removing all that the plan made would do: its instances, whether it still names them or not."""
    facts = gather(world, journal, plan)
    declared = {instance.name: instance for instance in plan.instances}
    made = _made_by(plan, world)
    steps = tuple(
        Step(
            id=f"terminate.{name}",
            action="terminate",
            instance=declared.get(name) or _undeclared(found),
            operation=None,
            arguments={},
            needs=tuple(f"terminate.{other}" for other in _dependents(plan, name) if other in made),
            when=True,
            retry=declared[name].retry if name in declared else Retry(),
            timeout=600.0,
            final=False,
        )
        for name, found in made.items()
    )
    facts = Facts(
        dict(facts.instances) | made,
        dict(facts.capabilities) | _capabilities(world, made),
        claims=claims_on(journal, plan.name, made),
    )
    graph = Graph(steps=_ordered(steps), parallel={})
    return Prepared("destroy", plan, preview(plan.name, _as_operations(graph), facts))


def _as_operations(graph: Graph) -> Graph:
    """The same steps, to be carried out whatever state the plan declares for their instances."""
    return Graph(tuple(replace(step, operation="destroy") for step in graph.steps), graph.parallel)


def _ordered(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with every need before its step; instance needs have no cycles."""
    waiting, done, ordered = list(steps), set[str](), list[Step]()
    while waiting:
        ready = [step for step in waiting if done.issuperset(step.needs)]
        ordered += ready
        done |= {step.id for step in ready}
        waiting = [step for step in waiting if step.id not in done]
    return tuple(ordered)


def _made_by(plan: Plan, world: World) -> dict[str, InstanceFacts]:
    """What bears the plan's mark, on its own hosts and on every other host that answers."""
    own = {instance.host for instance in plan.instances}
    made: dict[str, InstanceFacts] = {}
    for name in world.config.hosts:
        try:
            instances = world.host(name).instances()
        except PlanvirtError:
            if name in own:
                raise
            continue  # a host that the plan does not name may be down
        for found in instances:
            if found.mark is not None and found.mark.plan == plan.name and found.set_aside is None:
                made[found.name] = found
    return dict(sorted(made.items()))


def _capabilities(world: World, made: Mapping[str, InstanceFacts]) -> dict[str, Capabilities]:
    return {found.host: world.host(found.host).capabilities() for found in made.values()}


def _undeclared(found: InstanceFacts) -> Instance:
    """An instance that an earlier edition of the plan made."""
    return Instance(
        name=found.name, group=found.name, host=found.host, vcpus=found.vcpus, memory=found.memory, state=State.ABSENT
    )


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
        if step.action == "snapshot" and isinstance(step.arguments.get("upload"), Mapping)
    ]
    return tuple(dict.fromkeys(store for store in stores if isinstance(store, str)))
