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
