"""Disks that come to an instance, go from it, or take another one's place."""

from functools import partial
from xml.etree import ElementTree as ET

from drivers.compute import AttachedDisk
from drivers.errors import NotFound, Unsupported
from drivers.libvirt import hotplug
from drivers.libvirt.domain_xml import (
    DiskXml,
    disk_targets,
    find_disk,
    find_scsi_controller,
    read_disk,
    read_disks,
)
from drivers.libvirt.hardware import changeable, changeable_off, definition, redefine, running
from drivers.libvirt.pool import Pool
from drivers.libvirt.rendering import disk_xml, next_target, scsi_controller_xml
from drivers.libvirt.users import take
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

# What a machine takes and gives away while it runs.
_HOT_BUSES = {"virtio", "scsi", "usb"}


def attach(pool: Pool, name: str, disk: AttachedDisk) -> None:
    """Give the instance another disk, behind those that it has."""
    domain = changeable(pool.connection, name, "attach a disk to")
    kept, live = definition(domain), running(domain)
    present = [kept] if live is None else [kept, live]
    if all(find_disk(root, disk.volume) is not None for root in present):
        return
    path = take(pool, name, disk.volume)
    if live is not None:
        _check_hot(f"attach the disk {disk.volume} to", name, disk.bus)
    what = f"attach the disk {disk.volume} to the instance {name}"
    if disk.bus == "scsi":
        hotplug.attach(domain, scsi_controller_xml(), find_scsi_controller, what)
    target = next_target(disk.bus, [dev for root in present for dev in disk_targets(root)])
    xml = disk_xml(DiskXml(path=path, format=disk.format, bus=disk.bus, target=target))
    hotplug.attach(domain, xml, partial(find_disk, volume=disk.volume), what)


def detach(pool: Pool, name: str, volume: str, deadline: Deadline) -> None:
    """Take a disk away from the instance."""
    domain = changeable(pool.connection, name, "detach a disk of")
    kept, live = definition(domain), running(domain)
    if _boots_from(kept, volume):
        raise Conflict(f"cannot detach the disk {volume} of the instance {name}: it boots from it")
    plugged = None if live is None else find_disk(live, volume)
    if plugged is not None:
        _check_hot(f"detach the disk {volume} of", name, read_disk(plugged).bus)
    what = f"detach the disk {volume} of the instance {name}"
    hotplug.detach(pool.connection, domain, partial(find_disk, volume=volume), what, deadline)


def _boots_from(root: ET.Element, volume: str) -> bool:
    """Whether the disk is the first, or the one that a rescue has put before it."""
    node = find_disk(root, volume)
    return node is not None and (node.find("boot") is not None or read_disk(node) == read_disks(root)[0])


def _check_hot(what: str, name: str, bus: str) -> None:
    if bus not in _HOT_BUSES:
        raise Unsupported(
            f"cannot {what} the instance {name} while its guest is there",
            details=f"the bus {bus} neither takes nor gives away disks then",
            resolution=f"stop it first, or use another bus ({', '.join(sorted(_HOT_BUSES))})",
        )


def replace(pool: Pool, name: str, volume: str, by: AttachedDisk) -> None:
    """Put another volume at the place of a disk's; what the guest sees of the place stays the same."""
    domain = changeable_off(pool.connection, name, "replace a disk of")
    root = definition(domain)
    if find_disk(root, by.volume) is not None:
        return
    node = find_disk(root, volume)
    if node is None:
        raise NotFound(f"cannot replace the disk {volume}: the instance {name} has no such disk")
    _set(node, "source", "file", take(pool, name, by.volume))
    _set(node, "driver", "type", by.format)
    for chain in node.findall("backingStore"):  # the old volume's
        node.remove(chain)
    redefine(pool.connection, root, f"replace the disk {volume} of the instance {name}")


def _set(node: ET.Element, child: str, attribute: str, value: str) -> None:
    found = node.find(child)
    (ET.SubElement(node, child) if found is None else found).set(attribute, value)
