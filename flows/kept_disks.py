"""Disks when an instance goes and when it returns: which go with it, which outlive it, which are attached again."""

from collections.abc import Iterable, Mapping
from typing import BinaryIO

from drivers.compute import InstanceFacts, VolumeFacts
from flows.notes import belongings, read_note
from planvirt.errors import Conflict
from planvirt.mark import is_cached, read_volume_name
from planvirt.plan import Disk, Instance
from planvirt.states import Note
from planvirt.units import format_size

ROUNDING = 4096  # hosts make a disk of whole blocks
_EXTERNAL_DATA = 1 << 2  # among the incompatible features of a qcow2 header


def doomed(plan: str, instance: str, found: InstanceFacts, keep: Iterable[str]) -> list[str]:
    """The volumes that go with the instance. `keep` is what the plan keeps by now, besides what the host remembers.

    Only what was made for this very instance goes: a disk of another one may have been attached by hand. What its notes
    say belongs to it goes, too: earlier states of disks, for which nobody asks any more.
    """
    kept = {*keep, *found.keep}
    attached = [volume for volume, disk in _own(plan, instance, found.volumes).items() if disk not in kept]
    return list(dict.fromkeys([*attached, *_own(plan, instance, belongings(found, "volumes"))]))


def doomed_images(found: InstanceFacts, keep: Iterable[str]) -> list[str]:
    """The images "STORE/ID" that go with an instance that is shelved. What a disk that is kept became stays."""
    kept = {*keep, *found.keep}
    disks = read_note(found, Note.SHELVED).get("disks", {})
    stay = {disks[disk]["image"] for disk in kept & disks.keys()}
    return [image for image in belongings(found, "images") if image not in stay]


def outliving(plan: str, instance: str, found: InstanceFacts, keep: Iterable[str]) -> list[str]:
    """The names of the disks that stay when the instance goes."""
    kept = {*keep, *found.keep}
    return sorted({disk for disk in _own(plan, instance, found.volumes).values() if disk in kept})


def _own(plan: str, instance: str, volumes: Iterable[str]) -> Mapping[str, str]:
    """Those of the volumes that were made for the instance, with the names of the disks."""
    own = {}
    for volume in volumes:
        named = read_volume_name(volume)
        if named is not None and (named[0].plan, named[0].instance) == (plan, instance):
            own[volume] = named[1]
    return own


def returning(
    plan: str, spec: Instance, disk: Disk, volumes: Iterable[VolumeFacts], run: str = ""
) -> VolumeFacts | None:
    """The volume that an earlier instance left for a disk that the plan keeps. What `run` made itself is not meant.

    Raises Conflict when there are several, or when the volume is not what the plan says: a guest's disk that is read
    in another format is corrupted, and may name any file of the host as the one beneath it.
    """
    found = [volume for volume in volumes if _left_for(plan, spec.name, disk.name, volume) and _run(volume) != run]
    if not found:
        return None
    cannot = f"cannot attach the kept disk {disk.name} of {spec.name}"
    if len(found) > 1:
        raise Conflict(
            f"{cannot}: there are {len(found)} of them",
            details=", ".join(sorted(volume.name for volume in found)),
            resolution="delete all but one of them from the host's pool",
        )
    wrong = _difference(found[0], disk)
    if wrong:
        raise Conflict(
            f"{cannot}: {wrong}",
            details=f"volume {found[0].name}",
            resolution="undo the plan's edit, give the disk another name, or delete the volume from the host's pool",
        )
    return found[0]


def check_header(spec: Instance, disk: Disk, file: BinaryIO) -> None:
    """Raise Conflict when a kept qcow2 disk says that its data is in another file.

    A host judges a volume by its first bytes. planvirt makes no such disk, but the guest of a raw one can write that.
    """
    head = file.read(80)
    features = int.from_bytes(head[72:80]) if head.startswith(b"QFI\xfb") and int.from_bytes(head[4:8]) >= 3 else 0
    if features & _EXTERNAL_DATA:
        raise Conflict(
            f"cannot attach the kept disk {disk.name} of {spec.name}: it says that its data is in another file",
            resolution="its guest may have written that; save what you need of it by hand, and delete the volume",
        )


def _left_for(plan: str, instance: str, disk: str, volume: VolumeFacts) -> bool:
    named = read_volume_name(volume.name)
    return named is not None and (named[0].plan, named[0].instance, named[1]) == (plan, instance, disk)


def _run(volume: VolumeFacts) -> str:
    return volume.mark.run if volume.mark is not None else ""


def _difference(volume: VolumeFacts, disk: Disk) -> str:
    """What makes the volume another disk than the plan's; empty when nothing does."""
    if volume.format != disk.format:
        return f"it is {volume.format}, the plan says {disk.format}"
    if volume.base is not None and not is_cached(volume.base):
        return f"it says that it is built on {volume.base}, which planvirt did not do"
    if disk.size is not None and not 0 <= volume.capacity - disk.size < ROUNDING:
        return f"it has {format_size(volume.capacity)}, the plan says {format_size(disk.size)}"
    return ""
