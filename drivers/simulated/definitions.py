"""Which instances a simulated host knows, and under which names: defining, forgetting, and setting aside."""

from dataclasses import replace

from drivers.compute import Domain
from drivers.errors import NameTaken, NotFound
from drivers.simulated.guards import aside_name, own, owner, volume_of
from drivers.simulated.world import Machine, World
from planvirt.errors import Conflict
from planvirt.mark import nic_mac
from planvirt.states import State


def define(world: World, domain: Domain) -> Machine:
    """Define an instance whose volumes are there."""
    present = world.instances.get(domain.name)
    if present is not None:
        if (present.mark, present.uuid) != (domain.mark, domain.uuid):
            raise NameTaken(
                f"cannot define {domain.name}: an instance of that name exists",
                details=owner(present),
                resolution="rename the instance in the plan, or remove the other one",
            )
        return present
    twins = [key for key, machine in world.instances.items() if machine.uuid == domain.uuid]
    if twins:
        raise NameTaken(f"cannot define {domain.name}: its UUID belongs to {twins[0]}")
    for volume in (*(disk.volume for disk in domain.disks), domain.kernel, domain.initrd):
        if volume is not None and volume_of(world, volume).partial:
            raise Conflict(f"cannot define {domain.name}: volume {volume} is half-made")
    machine = Machine(
        domain.name, domain.uuid, domain.mark, State.STOPPED, domain.vcpus, domain.memory,
        domain.max_vcpus, domain.max_memory, list(domain.disks),
        [replace(nic, mac=nic.mac or nic_mac(domain.uuid, place)) for place, nic in enumerate(domain.nics)],
        domain.kernel, domain.initrd, keep=list(domain.keep), protect=domain.protect,
    )  # fmt: skip
    world.instances[domain.name] = machine
    world.record("define", domain.name)
    return machine


def undefine(world: World, name: str) -> None:
    """Forget an instance."""
    if name in world.instances:
        own(world, name, "undefine")
        del world.instances[name]
        world.record("undefine", name)


def set_aside(world: World, name: str, run: str) -> None:
    """Stop an instance and keep it under another name. Its UUID stays its own, as with libvirt."""
    aside = aside_name(name, run)
    if name not in world.instances:
        if aside not in world.instances:
            raise NotFound(f"cannot set {name} aside: there is no such instance")
        return
    machine = own(world, name, "set aside")
    if aside in world.instances:
        raise Conflict(f"cannot set {name} aside: run {run} has set aside another one of that name")
    machine.stop()
    machine.set_aside = run
    world.instances[aside] = world.instances.pop(name)
    world.record("set_aside", name)


def bring_back(world: World, name: str, run: str) -> Machine:
    """Give what was set aside its name again."""
    aside = aside_name(name, run)
    present = world.instances.get(name)
    if aside not in world.instances:
        if present is None:
            raise NotFound(f"cannot bring {name} back: run {run} has not set it aside")
        return own(world, name, "bring back")
    machine = world.instances[aside]
    if present is not None:
        raise NameTaken(f"cannot bring {name} back: its name is taken", details=owner(present))
    machine.set_aside = None
    world.instances[name] = world.instances.pop(aside)
    world.record("bring_back", name)
    return machine


def delete_set_aside(world: World, name: str, run: str) -> None:
    """Forget what was set aside."""
    if world.instances.pop(aside_name(name, run), None) is not None:
        world.record("delete_set_aside", name)
