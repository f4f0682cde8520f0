"""What is true before anything is decided: the instances a plan names, as they are, and what their hosts can do."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from drivers.compute import Capabilities, InstanceFacts
from flows.world import World
from planvirt.errors import PlanvirtError
from planvirt.journal.journal import Journal
from planvirt.journal.records import Claim
from planvirt.mark import instance_uuid
from planvirt.plan import Plan


@dataclass(frozen=True, slots=True)
class Facts:
    """What hosts and journal say. `instances` has every instance of the plan, None where it is absent.

    `undeclared` are instances with the plan's mark that the plan does not name (any more). `claims` tells, by instance,
    which other run owns it.
    """

    instances: Mapping[str, InstanceFacts | None]
    capabilities: Mapping[str, Capabilities]
    undeclared: tuple[InstanceFacts, ...] = ()
    claims: Mapping[str, Claim] = field(default_factory=dict)


class HostsUnreachable(PlanvirtError):
    """Some hosts do not answer, so nothing was begun."""


def gather(world: World, journal: Journal, plan: Plan) -> Facts:
    """Ask every host that the plan's instances are on, side by side. Raises HostsUnreachable naming all that fail."""
    wanted = plan.instances
    hosts = sorted({instance.host for instance in wanted})
    found: dict[str, dict[str, InstanceFacts]] = {}
    capabilities: dict[str, Capabilities] = {}
    errors: list[PlanvirtError] = []

    def ask(host: str) -> None:
        try:
            driver = world.host(host)
            capabilities[host] = driver.capabilities()
            found[host] = {facts.name: facts for facts in driver.instances()}
        except PlanvirtError as error:
            errors.append(error)

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
    named = {(item.host, item.name) for item in wanted}
    return Facts(
        {item.name: found[item.host].get(item.name) for item in wanted},
        capabilities,
        tuple(item for host in hosts for item in found[host].values() if _undeclared(plan, item, named)),
        claims_on(journal, plan.name, [item.name for item in wanted]),
    )


def claims_on(journal: Journal, plan: str, instances: Iterable[str]) -> dict[str, Claim]:
    """Which run owns which of the plan's instances now."""
    uuids = [instance_uuid(plan, name) for name in instances]
    return {claim.instance: claim for claim in journal.claims(uuids)}


def _undeclared(plan: Plan, found: InstanceFacts, named: set[tuple[str, str]]) -> bool:
    mine = found.mark is not None and found.mark.plan == plan.name and found.set_aside is None
    return mine and (found.host, found.name) not in named
