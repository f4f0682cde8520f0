"""What is true before anything is decided: what a plan has made, and what it names, as it is; what hosts can do."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from drivers.compute import Capabilities, InstanceFacts, VolumeFacts
from flows.world import World
from planvirt.errors import PlanvirtError
from planvirt.graph import Step
from planvirt.journal.journal import Journal
from planvirt.journal.records import Claim
from planvirt.mark import instance_uuid
from planvirt.plan import Instance, Plan
from planvirt.states import State


@dataclass(frozen=True, slots=True)
class Facts:
    """What hosts and journal say. `instances` has all that was found, by host and name.

    `made` is what bears the plan's mark, set aside or not. Of that, `elsewhere` is not where the plan says, and
    `undeclared` is not named by the plan (any more). `volumes` has, by host, what may come back as a kept disk.
    `claims` tells, by instance, which other run owns it.
    """

    instances: Mapping[tuple[str, str], InstanceFacts]
    capabilities: Mapping[str, Capabilities]
    made: tuple[InstanceFacts, ...] = ()
    elsewhere: tuple[InstanceFacts, ...] = ()
    undeclared: tuple[InstanceFacts, ...] = ()
    volumes: Mapping[str, Sequence[VolumeFacts]] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)

    def of(self, step: Step) -> InstanceFacts | None:
        """What a step is about, as it is before the run; None where it is absent."""
        aside, place = step.arguments.get("aside"), (step.instance.host, step.instance.name)
        if aside is None:
            return self.instances.get(place)
        found = (item for item in self.made if item.set_aside == aside and (item.host, name_of(item)) == place)
        return next(found, None)

    def capacities(self, host: str) -> dict[str, int]:
        """How large the volumes of a host are, by name."""
        return {volume.name: volume.capacity for volume in self.volumes.get(host, ())}

    def aside(self, name: str) -> tuple[InstanceFacts, ...]:
        """Where runs have set the instance aside."""
        return tuple(item for item in self.made if item.set_aside is not None and name_of(item) == name)


class HostsUnreachable(PlanvirtError):
    """Some hosts do not answer, so nothing was begun."""


def name_of(found: InstanceFacts) -> str:
    """An instance's own name, also while it is set aside under another one."""
    return found.mark.instance if found.mark is not None else found.name


def gather(world: World, journal: Journal, plan: Plan) -> Facts:
    """Ask all hosts, side by side: what the plan made may be on one that it does not name any more.

    Raises HostsUnreachable naming all hosts of the plan that fail. Another one may be down.
    """
    named = {instance.host for instance in plan.instances}
    answers: dict[str, _Answer] = {}
    errors: list[PlanvirtError] = []

    def ask(host: str) -> None:
        try:
            answers[host] = _ask(world, plan, host)
        except PlanvirtError as error:
            if host in named:
                errors.append(error)

    hosts = sorted(named | set(world.config.hosts))
    if len(hosts) == 1:
        ask(hosts[0])
    elif hosts:
        with ThreadPoolExecutor(min(len(hosts), 16)) as pool:
            list(pool.map(ask, hosts))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise HostsUnreachable(
            f"cannot reach {len(errors)} hosts",
            details="\n".join(str(error) for error in errors),
            resolution="\n".join(dict.fromkeys(error.resolution for error in errors if error.resolution)),
        )
    return _sorted_out(plan, {host: answers[host] for host in hosts if host in answers}, journal)


def claims_on(journal: Journal, plan: str, instances: Iterable[str]) -> dict[str, Claim]:
    """Which run owns which of the plan's instances now."""
    uuids = [instance_uuid(plan, name) for name in instances]
    return {claim.instance: claim for claim in journal.claims(uuids)}


@dataclass(frozen=True, slots=True)
class _Answer:
    instances: tuple[InstanceFacts, ...]
    capabilities: Capabilities | None
    volumes: tuple[VolumeFacts, ...] | None


def _ask(world: World, plan: Plan, host: str) -> _Answer:
    driver = world.host(host)
    instances = tuple(driver.instances())
    wanted = [instance for instance in plan.instances if instance.host == host]
    concerned = wanted or any(_made_by(plan, item) for item in instances)
    there = {item.name for item in instances}
    return _Answer(
        instances,
        driver.capabilities() if concerned else None,
        tuple(driver.volumes()) if any(_disks_matter(item, item.name in there) for item in wanted) else None,
    )


def _disks_matter(wanted: Instance, there: bool) -> bool:
    """Whether a disk may have to grow, or may come back when the instance is made."""
    return wanted.state != State.ABSENT and any(disk.size if there else disk.keep for disk in wanted.disks)


def _sorted_out(plan: Plan, answers: Mapping[str, _Answer], journal: Journal) -> Facts:
    places = {instance.name: (instance.host, instance.name) for instance in plan.instances}
    instances = {(item.host, item.name): item for answer in answers.values() for item in answer.instances}
    made = _seen_once([item for item in instances.values() if _made_by(plan, item)], set(places.values()))
    astray = [item for item in made if item.set_aside is None and places.get(name_of(item)) != (item.host, item.name)]
    missing = {name for name, place in places.items() if place not in instances}
    elsewhere = tuple(item for item in astray if name_of(item) in missing)
    aside = [item for item in made if item.set_aside is not None and name_of(item) not in places]
    return Facts(
        instances,
        {host: answer.capabilities for host, answer in answers.items() if answer.capabilities is not None},
        made,
        elsewhere,
        tuple(item for item in (*astray, *aside) if item not in elsewhere),
        {host: answer.volumes for host, answer in answers.items() if answer.volumes is not None},
        claims_on(journal, plan.name, places),
    )


def _made_by(plan: Plan, found: InstanceFacts) -> bool:
    """Whether the plan made it. A copy that somebody made of it has the mark, too, but another UUID."""
    mark = found.mark
    return mark is not None and mark.plan == plan.name and found.uuid == instance_uuid(plan.name, mark.instance)


def _seen_once(made: Iterable[InstanceFacts], places: set[tuple[str, str]]) -> tuple[InstanceFacts, ...]:
    """The instances by name, each once: two hosts of the configuration may be one hypervisor."""
    once: dict[InstanceFacts, InstanceFacts] = {}
    for item in sorted(made, key=lambda item: ((item.host, item.name) not in places, name_of(item), item.host)):
        once.setdefault(replace(item, host=""), item)
    return tuple(sorted(once.values(), key=lambda item: (name_of(item), item.host)))
