"""What brings an instance to what the plan declares of it: a pure function of the declaration and the facts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drivers.compute import InstanceFacts
from flows import sizing
from planvirt.arguments import DEFAULTS
from planvirt.errors import Conflict
from planvirt.graph import Step
from planvirt.mark import instance_uuid, nic_mac, read_volume_name
from planvirt.plan import Deferred, Disk, Instance, Nic
from planvirt.states import State
from planvirt.units import format_size
from planvirt.verbs import verb_for


@dataclass(frozen=True, slots=True)
class Decided:
    """A step that the declaration asks for, and why."""

    action: str
    reason: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """What tells two steps of one action on one instance apart."""
        disk = self.arguments.get("disk")
        if self.action != "attach":
            return ""
        return f"-{disk['name']}" if disk else f"-{self.arguments['network']['mac'].replace(':', '')}"


# How an instance gets from the state it is in to the declared one. To stop a guest that stands still is to give its
# memory up, which nobody has asked for.
_BRINGING = {
    (State.STOPPED, State.RUNNING): "start",
    (State.PAUSED, State.RUNNING): "unpause",
    (State.SUSPENDED, State.RUNNING): "resume",
    (State.RUNNING, State.STOPPED): "stop",
}

# States that only an operation of the plan can mean to end.
_OF_OPERATIONS = {State.RESIZED: "confirm_resize", State.RESCUED: "unrescue", State.SHELVED: "unshelve"}


def decide(
    plan: str,
    wanted: Instance,
    found: InstanceFacts | None,
    capacities: Mapping[str, int],
    operations: Sequence[Step],
) -> tuple[Decided, ...]:
    """The steps that bring an instance to its declared state and definition, in order; none when it is there.

    `capacities` are the sizes of the host's volumes. What the plan's own `operations` on the instance are about (its
    size, when they resize it) is left to them. Raises Conflict when no step would do.
    """
    if found is None:
        return () if wanted.state == State.ABSENT else (Decided("launch", f"declared {wanted.state}, absent"),)
    if found.mark is None:
        raise Conflict(f"{wanted.name}: host {wanted.host} has an instance of that name which planvirt did not make")
    if found.uuid != instance_uuid(plan, wanted.name):
        raise Conflict(f"{wanted.name}: plan {found.mark.plan} made the instance of that name on host {wanted.host}")
    if wanted.state == State.ABSENT:
        if wanted.protect:
            raise Conflict(f"{wanted.name}: it is declared absent, but protected")
        return (Decided("terminate", f"declared absent, {found.state}"),)
    actions = {step.action for step in operations}
    _check_definition(wanted, found, actions)
    if found.state in _OF_OPERATIONS:
        _check_ended(wanted, found, operations)
        return ()
    power = _bring(wanted, found, operations)
    hardware = (
        *(() if actions & {"resize", "revert_resize"} else _resized(wanted, found, capacities)),
        *_attached(plan, wanted, found, operations),
    )
    # A stopped instance is changed before it starts; everything else is brought there first.
    return (*hardware, *power) if found.state == State.STOPPED else (*power, *hardware)


def _check_definition(wanted: Instance, found: InstanceFacts, actions: Collection[str]) -> None:
    parts = found.mark and wanted.differs_from(found.mark.spec)
    differing = [part for part in parts or () if not (part == "image" and "rebuild" in actions)]
    if differing:
        what = " and its ".join("boot settings" if part == "boot" else part for part in differing)
        remedy = ", rebuild it by an operation" if differing == ["image"] else ""
        raise Conflict(
            f"{wanted.name}: it was made from another definition (its {what} differs); "
            f"undo the edit{remedy}, or destroy the instance and run the plan again"
        )


def _check_ended(wanted: Instance, found: InstanceFacts, operations: Sequence[Step]) -> None:
    """An instance that is rescued, resized or shelved needs an operation of the plan that ends that, or knows of it."""
    own = [step for step in operations if step.when is not False and not step.final]
    if not own or found.state not in verb_for(own[0].action, own[0].arguments).allowed:
        raise Conflict(
            f"{wanted.name}: it is {found.state}, declared {wanted.state}; "
            f"end that by an operation: 'action: {_OF_OPERATIONS[found.state]}'"
        )


def _bring(wanted: Instance, found: InstanceFacts, operations: Sequence[Step]) -> tuple[Decided, ...]:
    if found.state == wanted.state:
        return ()
    verb = _BRINGING.get((found.state, wanted.state))
    if verb is None:
        raise Conflict(f"{wanted.name}: it is {found.state}, declared {wanted.state}; bring it there by hand")
    first = next(iter(operations), None)
    if first is not None and first.when is True and not first.final and first.action == verb:
        return ()  # the plan's own first operation does it
    return (Decided(verb, f"declared {wanted.state}, {found.state}"),)


def _resized(wanted: Instance, found: InstanceFacts, capacities: Mapping[str, int]) -> tuple[Decided, ...]:
    sizes = sizing.wanted({}, wanted, found)
    growing = sizing.growing({}, wanted, found, capacities)
    differences = []
    if sizes.vcpus != found.vcpus:
        differences.append(f"vcpus {found.vcpus} to {sizes.vcpus}")
    if sizes.memory != found.memory:
        differences.append(f"memory {format_size(found.memory)} to {format_size(sizes.memory)}")
    disks = {}
    for volume, size in growing.items():
        named = read_volume_name(volume)
        disk = named[1] if named else volume
        disks[disk] = size
        differences.append(f"disk {disk} {format_size(capacities[volume])} to {format_size(size)}")
    if not differences:
        return ()
    arguments = {
        **DEFAULTS["resize"],
        **wanted.resize,
        "vcpus": sizes.vcpus,
        "memory": sizes.memory,
        **({"disks": disks} if disks else {}),
    }
    return (Decided("resize", ", ".join(differences), arguments),)


def _attached(plan: str, wanted: Instance, found: InstanceFacts, operations: Sequence[Step]) -> tuple[Decided, ...]:
    """Disks and network interfaces that the declaration has and the instance has not."""
    of_operations = [step.arguments for step in operations if step.action in ("attach", "detach")]
    disks_of_operations = [_name(arguments["disk"]) for arguments in of_operations if "disk" in arguments]
    unsure = any(isinstance(name, Deferred) for name in disks_of_operations)
    own = {}
    for disk in found.disks:
        named = read_volume_name(disk.volume)
        if named is not None and named[0].plan == plan and named[0].instance == wanted.name:
            own[named[1]] = disk
    steps = []
    for place, declared in enumerate(wanted.disks):
        present = own.get(declared.name)
        if present is not None:
            _check_disk(wanted, declared, present.format, present.bus)
        elif place == 0:
            raise Conflict(f"{wanted.name}: its first disk is not {declared.name}; put the disk's name back")
        elif declared.name not in disks_of_operations and not unsure:
            steps.append(Decided("attach", f"disk {declared.name} is declared", {"disk": _disk_arguments(declared)}))
    if not any({"network", "mac"} & set(arguments) for arguments in of_operations):
        steps += _nics(wanted, found)
    return tuple(steps)


def _name(disk: object) -> object:
    return disk["name"] if isinstance(disk, Mapping) else disk


def _check_disk(wanted: Instance, declared: Disk, format: str, bus: str) -> None:
    if (format, bus) != (declared.format, declared.bus):
        raise Conflict(
            f"{wanted.name}: its disk {declared.name} is {format} on {bus}, "
            f"the plan says {declared.format} on {declared.bus}; undo the edit, or detach the disk and attach it anew"
        )


def _disk_arguments(declared: Disk) -> dict[str, Any]:
    return {
        "name": declared.name,
        "size": declared.size,
        "keep": declared.keep,
        "format": declared.format,
        "bus": declared.bus,
    }


def _nics(wanted: Instance, found: InstanceFacts) -> list[Decided]:
    present = {nic.mac: nic for nic in found.nics}
    steps = []
    for place, declared in enumerate(wanted.nics):
        mac = declared.mac or nic_mac(found.uuid, place)
        there = present.get(mac)
        if there is None:
            network = {"kind": declared.kind, "source": declared.source, "mac": mac, "model": declared.model}
            steps.append(
                Decided("attach", f"a network interface on {_where(declared)} is declared", {"network": network})
            )
        elif (there.kind, there.source, there.model) != (declared.kind, declared.source, declared.model):
            raise Conflict(
                f"{wanted.name}: its network interface {mac} is on {_where(there)}, the plan says {_where(declared)}; "
                "undo the edit, or detach it and attach another one"
            )
    return steps


def _where(nic: Nic) -> str:
    place = "user-mode network" if nic.kind == "user" else f"{nic.kind} {nic.source}"
    return place if nic.model == "virtio" else f"{place} ({nic.model})"
