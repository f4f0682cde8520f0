"""What is true before anything is decided: the instances a plan names, as they are, and what their hosts can do."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from drivers.compute import Capabilities, InstanceFacts
from flows.world import World
from planvirt.errors import PlanvirtError
from planvirt.plan import Instance


@dataclass(frozen=True, slots=True)
class Facts:
    """What the hosts say. `instances` has every instance of its plan, None where it is absent."""

    instances: Mapping[str, InstanceFacts | None]
    capabilities: Mapping[str, Capabilities]


class HostsUnreachable(PlanvirtError):
    """Some hosts do not answer, so nothing was begun."""


def gather(world: World, instances: Iterable[Instance]) -> Facts:
    """Ask every host that the instances are on, side by side. Raises HostsUnreachable naming all that do not answer."""
    wanted = tuple(instances)
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
    return Facts({item.name: found[item.host].get(item.name) for item in wanted}, capabilities)
