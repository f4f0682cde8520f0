"""How large an instance was before a resize, with copies of the disks that have grown since, and the way back to that.

The journal keeps it for an undo, and the instance's note for a `revert_resize`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from drivers.compute import AttachedDisk, InstanceFacts, Sizes
from drivers.errors import NotFound
from flows.call import Call
from flows.disks import disks_of
from flows.sizing import needs_reboot
from planvirt.states import State

_OFF = (State.STOPPED, State.ERROR)


@dataclass(frozen=True, slots=True)
class GrownDisk:
    """A disk before it grew: how large it was, and the volume that holds a copy of it, in the disk's own format."""

    name: str
    size: int
    copy: str
    format: Literal["qcow2", "raw"]
    bus: str


@dataclass(frozen=True, slots=True)
class EarlierSize:
    """The size before a resize. `was` is the state of then."""

    was: State
    sizes: Sizes
    disks: tuple[GrownDisk, ...] = ()

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "EarlierSize":
        """What `as_dict` has made."""
        disks = tuple(GrownDisk(**disk) for disk in data["disks"])
        return cls(State(data["was"]), Sizes(**data["sizes"]), disks)

    @classmethod
    def noted(cls, text: str) -> "EarlierSize":
        """What a note says."""
        return cls.read(json.loads(text))

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `volumes` are those that belong to the instance and are attached to nothing."""
        return {**asdict(self), "volumes": [disk.copy for disk in self.disks]}

    def note(self) -> str:
        """The text of the note that the instance is resized."""
        return json.dumps(self.as_dict())

    def grown(self, call: Call, found: InstanceFacts) -> dict[str, str]:
        """The disks that are not as they were, with the volumes that they have now.

        Raises NotFound when a copy is gone that would be needed.
        """
        capacities = capacities_of(call) if self.disks else {}
        own, grown = disks_of(found), {}
        for disk in self.disks:
            now = own.get(disk.name)
            if now is None or now.volume == disk.copy or capacities.get(now.volume) == disk.size:
                continue
            if disk.copy not in capacities:
                raise NotFound(
                    f"cannot give {found.name} its earlier size: the copy of disk {disk.name} is gone",
                    details=f"volume {disk.copy}",
                    resolution="a 'confirm_resize' deletes it: the new size stays then",
                )
            grown[disk.name] = now.volume
        return grown

    def copies(self, names: Iterable[str]) -> dict[str, AttachedDisk]:
        """The copies of these disks, as disks to attach."""
        wanted = set(names)
        return {disk.name: AttachedDisk(disk.copy, disk.format, disk.bus) for disk in self.disks if disk.name in wanted}


def capacities_of(call: Call) -> dict[str, int]:
    """The sizes of the volumes on the step's host."""
    return {volume.name: volume.capacity for volume in call.compute.volumes()}


def exchange(
    call: Call,
    sizes: Sizes,
    out: Mapping[str, str],
    by: Mapping[str, AttachedDisk],
    bring_down: Callable[[Call], object],
) -> None:
    """Have the instance be of these sizes, and use other volumes for its disks: `out` and `by`, by the disks' names.

    It is brought down first when it must be off for that. Nobody starts it again here.
    """
    found = call.found()
    todo = [disk for disk in out if by[disk].volume not in found.volumes]
    if found.power not in _OFF and (todo or needs_reboot(found, sizes)):
        bring_down(call)
    for disk in todo:
        call.phase(f"put another volume in for disk {disk}")
        call.compute.replace_disk(call.instance, out[disk], by[disk])
    if found.sizes != sizes:
        call.phase("change the size back")
        call.compute.resize(call.instance, sizes)
