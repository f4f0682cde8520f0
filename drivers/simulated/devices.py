"""What changes the hardware of a simulated instance: sizes, disks, network interfaces, and what it boots from."""

import json
from dataclasses import asdict

from drivers.compute import AttachedDisk, Sizes
from drivers.errors import NotFound, Unsupported
from drivers.simulated.guards import own, require, reserve, users_of, volume_of
from drivers.simulated.world import Machine, World
from planvirt.errors import Conflict
from planvirt.mark import is_cached
from planvirt.plan import Nic
from planvirt.states import Note, State

_AWAKE = (State.RUNNING, State.PAUSED)
_OFF = (State.STOPPED, State.ERROR)
_CHANGEABLE = (*_AWAKE, *_OFF)
_COLD_BUSES = ("sata", "ide")


def resize(world: World, name: str, sizes: Sizes) -> None:
    """Be of these sizes."""
    machine = own(world, name, "resize")
    require(machine, name, "resize", *_CHANGEABLE)
    if sizes.max_vcpus < sizes.vcpus or sizes.max_memory < sizes.memory:
        raise Conflict(f"cannot resize {name}: it would be larger than it can become")
    now = machine.sizes
    if machine.state in _AWAKE:
        grown = now.vcpus <= sizes.vcpus <= now.max_vcpus and sizes.memory <= now.max_memory
        if not grown or (sizes.max_vcpus, sizes.max_memory) != (now.max_vcpus, now.max_memory):
            raise Conflict(
                f"cannot resize {name} while it is {machine.state}",
                details=f"it has {now.vcpus} of at most {now.max_vcpus} processors, "
                f"{now.memory >> 20} of at most {now.max_memory >> 20} MiB",
            )
    if now != sizes:
        machine.vcpus, machine.memory = sizes.vcpus, sizes.memory
        machine.max_vcpus, machine.max_memory = sizes.max_vcpus, sizes.max_memory
        world.record("resize", name)


def grow_disk(world: World, name: str, volume: str, size: int) -> None:
    """Make a disk larger; what is on it stays."""
    machine = own(world, name, "grow a disk of")
    require(machine, name, "grow a disk of", *_CHANGEABLE)
    _place(machine, name, volume)
    disk = volume_of(world, volume)
    if size < disk.capacity:
        raise Conflict(
            f"cannot make disk {volume} of {name} smaller", details=f"it has {disk.capacity} bytes, not {size}"
        )
    if size > disk.capacity:
        if disk.format == "raw":
            reserve(world, volume, size - disk.capacity)
            disk.allocation += size - disk.capacity
        disk.capacity = size
        world.record("grow_disk", name)


def attach_disk(world: World, name: str, disk: AttachedDisk) -> None:
    """Have another disk."""
    machine = own(world, name, "attach a disk to")
    require(machine, name, "attach a disk to", *_CHANGEABLE)
    if disk.volume in machine.volumes:
        return
    _check_hot(machine, name, disk)
    _free(world, name, disk.volume)
    machine.disks.append(disk)
    world.record("attach_disk", name)


def check_detach(world: World, name: str) -> Machine:
    """Raise Conflict unless a device may be taken away now."""
    machine = own(world, name, "take a device from")
    require(machine, name, "take a device from", *_CHANGEABLE)
    return machine


def check_detach_disk(world: World, name: str, volume: str) -> None:
    """Raise Conflict, or Unsupported, unless the disk may be taken away now."""
    machine = check_detach(world, name)
    rescuer = json.loads(machine.notes[Note.RESCUED])["volume"] if Note.RESCUED in machine.notes else None
    if volume in (*machine.volumes[:1], rescuer):
        raise Conflict(f"cannot detach disk {volume} of {name}: it boots from it")
    for disk in machine.disks:
        if disk.volume == volume:
            _check_hot(machine, name, disk)


def _check_hot(machine: Machine, name: str, disk: AttachedDisk) -> None:
    """Refuse what no machine gives or takes while its guest is there."""
    if machine.state in _AWAKE and disk.bus in _COLD_BUSES:
        raise Unsupported(
            f"cannot attach or detach disk {disk.volume} of {name} while its guest is there: it is on {disk.bus}",
            resolution="stop it first, or use another bus",
        )


def detach_disk(world: World, name: str, volume: str) -> None:
    """Have that disk no more."""
    machine = check_detach(world, name)
    if volume in machine.volumes:
        machine.disks = [disk for disk in machine.disks if disk.volume != volume]
        world.record("detach_disk", name)


def replace_disk(world: World, name: str, volume: str, by: AttachedDisk) -> None:
    """Have another volume at the place of a disk's."""
    machine = own(world, name, "replace a disk of")
    require(machine, name, "replace a disk of", *_OFF)
    if by.volume in machine.volumes:
        return
    place = _place(machine, name, volume)
    _free(world, name, by.volume)
    machine.disks[place] = by
    world.record("replace_disk", name)


def attach_nic(world: World, name: str, nic: Nic) -> None:
    """Have another network interface."""
    machine = own(world, name, "attach a network interface to")
    require(machine, name, "attach a network interface to", *_CHANGEABLE)
    if all(own_nic.mac != nic.mac for own_nic in machine.nics):
        machine.nics.append(nic)
        world.record("attach_nic", name)


def detach_nic(world: World, name: str, mac: str) -> None:
    """Have that network interface no more."""
    machine = check_detach(world, name)
    left = [nic for nic in machine.nics if nic.mac != mac]
    if left != machine.nics:
        machine.nics = left
        world.record("detach_nic", name)


def rescue(world: World, name: str, disk: AttachedDisk) -> None:
    """Boot from that disk from now on."""
    machine = own(world, name, "rescue")
    require(machine, name, "rescue", *_OFF)
    if Note.RESCUED in machine.notes:
        if disk.volume not in machine.volumes:
            raise Conflict(f"cannot rescue {name}: it is rescued with another disk")
        return
    _free(world, name, disk.volume)
    machine.notes[Note.RESCUED.value] = json.dumps(asdict(disk))
    machine.disks.append(disk)
    world.record("rescue", name)


def unrescue(world: World, name: str) -> None:
    """Boot as before the rescue."""
    machine = own(world, name, "unrescue")
    require(machine, name, "unrescue", *_OFF)
    text = machine.notes.pop(Note.RESCUED, None)
    if text is not None:
        rescuer = json.loads(text)["volume"]
        machine.disks = [disk for disk in machine.disks if disk.volume != rescuer]
        world.record("unrescue", name)


def _place(machine: Machine, name: str, volume: str) -> int:
    if volume not in machine.volumes:
        raise NotFound(f"cannot find disk {volume} of {name}")
    return machine.volumes.index(volume)


def _free(world: World, name: str, volume: str) -> None:
    """Raise Conflict when the volume belongs to another instance, is there for others to be built on, or half-made."""
    if is_cached(volume):
        raise Conflict(f"cannot give {name} volume {volume}: it is there for others to be built on")
    if volume_of(world, volume).partial:
        raise Conflict(f"cannot give {name} volume {volume}: it is half-made")
    users = users_of(world, volume)
    if users:
        raise Conflict(f"cannot give {name} volume {volume}: it is in use", details=f"by {', '.join(users)}")
