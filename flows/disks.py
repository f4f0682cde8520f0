"""Which disk of an instance is meant by its name in the plan."""

from drivers.compute import AttachedDisk, InstanceFacts
from planvirt.mark import read_volume_name


def disks_of(found: InstanceFacts) -> dict[str, AttachedDisk]:
    """The instance's disks by their names, boot disk first.

    Only what was made for this very instance has a name there: a disk of another one may have been attached by hand.
    """
    named = {}
    for disk in found.disks:
        known = read_volume_name(disk.volume)
        if known is None or found.mark is None:
            continue
        if (known[0].plan, known[0].instance) == (found.mark.plan, found.mark.instance):
            named[known[1]] = disk
    return named


def standing_for(found: InstanceFacts, volume: str, run: str) -> AttachedDisk | None:
    """The disk that the instance has where an undo expects this volume; None when it is detached, or another one.

    A resize of the same run that was undone has put a copy in the place of a disk that had grown.
    """
    known = read_volume_name(volume)
    now = disks_of(found).get(known[1]) if known is not None else None
    if now is None or now.volume == volume:
        return now
    maker = read_volume_name(now.volume)
    return now if maker is not None and maker[0].run == run else None
