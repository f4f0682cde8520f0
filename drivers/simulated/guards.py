"""What a simulated host refuses: to change what planvirt did not make, and to do what the state does not allow."""

from drivers.compute import VolumeFacts
from drivers.errors import NotFound, OutOfSpace
from drivers.simulated.world import Machine, Volume, World
from planvirt.errors import Conflict
from planvirt.mark import is_cached, read_volume_name
from planvirt.states import Note, State


def aside_name(name: str, run: str) -> str:
    """The name that an instance bears while it is set aside."""
    return f"{name}.{run}.aside"


def is_ours(volume: str) -> bool:
    """Whether planvirt made the volume."""
    return is_cached(volume) or read_volume_name(volume) is not None


def machine_of(world: World, name: str) -> Machine:
    """The instance of that name, or NotFound."""
    machine = world.instances.get(name)
    if machine is None:
        raise NotFound(f"cannot find instance {name}", resolution="see 'planvirt instances'")
    return machine


def own(world: World, name: str, verb: str) -> Machine:
    """An instance that may be changed."""
    machine = machine_of(world, name)
    if machine.mark is None:
        raise Conflict(
            f"cannot {verb} {name}: planvirt did not make it",
            resolution=f"adopt it with 'planvirt import', or leave {name} out of the plan",
        )
    if machine.set_aside is not None:
        raise Conflict(f"cannot {verb} {name}: run {machine.set_aside} has set it aside")
    return machine


def require(machine: Machine, name: str, verb: str, *states: State) -> None:
    """Raise Conflict unless the instance is in one of these states."""
    if machine.state not in states:
        raise Conflict(
            f"cannot {verb} {name}: it is {machine.state}", details=f"it must be {' or '.join(sorted(states))}"
        )


def owner(machine: Machine) -> str:
    """Who made an instance, in words."""
    if machine.mark is None:
        return "planvirt did not make it"
    return f"plan {machine.mark.plan}, run {machine.mark.run} made it"


def volume_of(world: World, name: str) -> Volume:
    """The volume of that name, or NotFound."""
    volume = world.volumes.get(name)
    if volume is None:
        raise NotFound(f"cannot find volume {name}")
    return volume


def volume_facts(world: World, name: str) -> VolumeFacts:
    """A volume as drivers report it."""
    volume = world.volumes[name]
    read = read_volume_name(name)
    mark = None if read is None else read[0]
    return VolumeFacts(name, volume.capacity, volume.allocation, volume.format, mark, volume.base)


def users_of(world: World, name: str) -> list[str]:
    """The instances and overlays that would lose something with the volume."""
    machines = [key for key, machine in world.instances.items() if machine.uses(name)]
    return sorted(machines + [key for key, volume in world.volumes.items() if volume.base == name])


def dependents_of(world: World, name: str) -> list[str]:
    """Those of its users that would miss the volume: an instance that is shelved can do without its disks."""
    return [
        user
        for user in users_of(world, name)
        if user not in world.instances or Note.SHELVED not in world.instances[user].notes
    ]


def reserve(world: World, name: str, size: int) -> None:
    """Raise OutOfSpace when so much does not fit into the pool."""
    if size > world.free():
        raise OutOfSpace(
            f"cannot make volume {name}: no space is left in the pool",
            details=f"{size} bytes are needed, {world.free()} are free",
        )
