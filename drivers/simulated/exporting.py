"""Copies of simulated disks, all of one moment, and the file systems that are frozen for it."""

from collections.abc import Mapping

from drivers.errors import DriverError, NotFound, NotFrozen
from drivers.simulated.guards import own, require, users_of, volume_of
from drivers.simulated.world import Volume, World
from planvirt.errors import Conflict
from planvirt.mark import read_volume_name
from planvirt.states import State
from planvirt.verbs import VERBS


def copies(world: World, name: str, disks: Mapping[str, str]) -> dict[str, Volume]:
    """What the guest sees of its disks at this moment, as the volumes that it becomes."""
    machine = own(world, name, "export a disk of")
    require(machine, name, "export a disk of", *VERBS["snapshot"].allowed)
    made = {}
    for disk, target in disks.items():
        if disk not in machine.volumes:
            raise NotFound(f"cannot export {disk}: it is no disk of {name}")
        if read_volume_name(target) is None:
            raise DriverError(f"cannot export to volume {target}: its name bears no mark")
        users = users_of(world, target)
        if users:
            raise Conflict(f"cannot export to volume {target}: it is in use", details=f"by {', '.join(users)}")
        source, content = volume_of(world, disk), world.content(disk)
        made[target] = Volume(source.capacity, "qcow2", content.hex(), None, len(content))
    return made


def compressed(world: World, name: str, target: str, compression: str) -> Volume:
    """The volume that a flat one becomes. A simulated disk is so small that nothing is gained."""
    source = volume_of(world, name)
    if source.format != "qcow2" or source.base is not None or compression != "zstd":
        raise DriverError(f"cannot compress volume {name} with {compression}")
    if read_volume_name(target) is None:
        raise DriverError(f"cannot make volume {target}: its name bears no mark")
    users = users_of(world, target)
    if users:
        raise Conflict(f"cannot make volume {target}: it is in use", details=f"by {', '.join(users)}")
    return Volume(source.capacity, "qcow2", world.content(name).hex(), None, source.allocation)


def freeze(world: World, name: str) -> None:
    """Freeze a guest's file systems; those of one that is off are at rest."""
    machine = own(world, name, "freeze")
    if machine.state is State.STOPPED:
        return
    if machine.state is not State.RUNNING or not world.guest(name).agent:
        why = "its guest agent does not answer" if machine.state is State.RUNNING else f"it is {machine.state}"
        raise NotFrozen(f"cannot freeze {name}: {why}")
    if machine.frozen:
        raise NotFrozen(f"cannot freeze {name}: it is frozen already")
    machine.frozen = True
    world.record("freeze", name)


def thaw(world: World, name: str) -> None:
    """Thaw what is frozen."""
    machine = world.instances.get(name)
    if machine is not None and machine.frozen:
        machine.frozen = False
        world.record("thaw", name)
