"""How large an instance is to become, and whether it must be off for that: pure, for the preview and for the resize."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from drivers.compute import InstanceFacts, Sizes
from drivers.errors import NotFound
from flows.disks import disks_of
from flows.kept_disks import ROUNDING
from planvirt.errors import Conflict
from planvirt.plan import Deferred, Instance
from planvirt.states import State
from planvirt.units import format_size

_MEMORY_ROUNDING = 1 << 20  # hosts give a guest whole MiB
_OFF = (State.STOPPED, State.ERROR)


def wanted(arguments: Mapping[str, Any], spec: Instance | None, found: InstanceFacts) -> Sizes:
    """The sizes that a resize with these arguments comes to.

    What they do not give stays; without any of `vcpus`, `memory` and `disks` the declared sizes are meant. What can be
    done while the guest runs leaves the maxima as they are. Otherwise they are as the instance declares them, and at
    least as large as what they are the maxima of. An expression that is not evaluated yet is taken to change nothing.
    """
    now = found.sizes
    declared = None if _given(arguments) else spec
    vcpus = declared.vcpus if declared else _or_now(arguments.get("vcpus"), now.vcpus)
    memory = _rounded(declared.memory if declared else _or_now(arguments.get("memory"), now.memory), now.memory)
    if declared is None and (vcpus, memory) == (now.vcpus, now.memory):
        return now
    most_vcpus, most_memory = (spec.max_vcpus, spec.max_memory) if spec else (0, 0)
    further = declared is not None and (most_vcpus > now.max_vcpus or most_memory > now.max_memory)
    live = replace(now, vcpus=vcpus, memory=memory)
    if found.power not in _OFF and not further and not needs_reboot(found, live):
        return live
    # What the arguments do not change keeps its maximum, too.
    keeps_vcpus = declared is None and vcpus == now.vcpus
    keeps_memory = declared is None and memory == now.memory
    max_vcpus = max(vcpus, most_vcpus, now.max_vcpus if keeps_vcpus else 0)
    max_memory = max(memory, most_memory, now.max_memory if keeps_memory else 0)
    return Sizes(vcpus, memory, max_vcpus, _rounded(max_memory, now.max_memory))


def needs_reboot(found: InstanceFacts, wanted: Sizes) -> bool:
    """Whether the instance, which is not off, must be for it: a running guest only grows, and only to its maxima."""
    now = found.sizes
    if found.power in _OFF or wanted == now:
        return False
    same_maxima = (wanted.max_vcpus, wanted.max_memory) == (now.max_vcpus, now.max_memory)
    grows = now.vcpus <= wanted.vcpus <= now.max_vcpus and wanted.memory <= now.max_memory
    return not (same_maxima and grows)


def growing(
    arguments: Mapping[str, Any], spec: Instance | None, found: InstanceFacts, capacities: Mapping[str, int]
) -> dict[str, int]:
    """The disks that must grow, by the names of their volumes, and the sizes they are to have.

    `capacities` are the sizes of the host's volumes. A declared disk that the instance has not, or that is as large as
    its image, is not meant. Raises Conflict for a disk that would become smaller, NotFound for one that the arguments
    name and the instance has not.
    """
    disks = disks_of(found)
    sizes = arguments.get("disks") or {}
    if not _given(arguments) and spec is not None:
        sizes = {disk.name: disk.size for disk in spec.disks if disk.size is not None and disk.name in disks}
    growing = {}
    for name, size in sizes.items():
        disk = disks.get(name)
        if disk is None:
            raise NotFound(
                f"cannot resize disk {name} of {found.name}: it has {', '.join(disks) or 'none'}",
                resolution="name one of its disks in the step's 'with'",
            )
        if isinstance(size, Deferred):
            continue
        if disk.volume not in capacities:
            raise NotFound(f"cannot resize disk {name} of {found.name}: its volume {disk.volume} is gone")
        capacity = capacities[disk.volume]
        if capacity - size >= ROUNDING:
            raise Conflict(
                f"cannot make disk {name} of {found.name} smaller: "
                f"it has {format_size(capacity)}, {format_size(size)} is wanted",
                resolution="give a size that is not below what it has",
            )
        if size > capacity:
            growing[disk.volume] = size
    return growing


def _given(arguments: Mapping[str, Any]) -> bool:
    """Whether the arguments say a size, so that the declared ones are not meant."""
    return any(arguments.get(key) is not None for key in ("vcpus", "memory", "disks"))


def _or_now(value: Any, now: int) -> int:
    return now if value is None or isinstance(value, Deferred) else int(value)


def _rounded(wanted: int, now: int) -> int:
    """The memory that the instance has, if that is only what its host has made of the wanted one."""
    return now if 0 <= now - wanted < _MEMORY_ROUNDING else wanted
