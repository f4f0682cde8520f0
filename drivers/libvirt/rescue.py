"""An instance that boots from another disk for a time. What it booted from before stands in the note that says so, in
the same definition: whoever is killed on the way leaves it either as it was or rescued.
"""

import json
from xml.etree import ElementTree as ET

from drivers.compute import AttachedDisk
from drivers.libvirt.domain_xml import (
    DiskXml,
    disk_targets,
    find_disk,
    find_scsi_controller,
    note_namespace,
    note_node,
    parse,
    read_notes,
)
from drivers.libvirt.hardware import changeable_off, definition, redefine
from drivers.libvirt.pool import Pool
from drivers.libvirt.rendering import disk_xml, next_target, scsi_controller_xml
from drivers.libvirt.users import take
from planvirt.errors import Conflict
from planvirt.states import Note

# What decides where a machine boots from, besides the disks themselves.
_BOOT = ("kernel", "initrd", "cmdline", "boot")


def rescue(pool: Pool, name: str, disk: AttachedDisk) -> None:
    """Have the instance boot from the disk."""
    root = definition(changeable_off(pool.connection, name, "rescue"))
    text = read_notes(root).get(Note.RESCUED)
    if text is not None:
        if json.loads(text)["volume"] != disk.volume:
            raise Conflict(f"cannot rescue the instance {name}: it is rescued with another disk")
        return
    system, devices = _part(root, "os"), _part(root, "devices")
    before = {"volume": disk.volume, "os": ET.tostring(system, encoding="unicode")}
    path = take(pool, name, disk.volume)
    for tag in _BOOT:
        for node in system.findall(tag):
            system.remove(node)
    if disk.bus == "scsi" and find_scsi_controller(root) is None:
        devices.append(parse(scsi_controller_xml()))
    target = next_target(disk.bus, disk_targets(root))
    devices.append(parse(disk_xml(DiskXml(path=path, format=disk.format, bus=disk.bus, target=target), order=1)))
    ET.SubElement(_part(root, "metadata"), f"{{{note_namespace(Note.RESCUED)}}}note").text = json.dumps(before)
    redefine(pool.connection, root, f"rescue the instance {name}")


def unrescue(pool: Pool, name: str) -> None:
    """Have the instance boot as before."""
    root = definition(changeable_off(pool.connection, name, "unrescue"))
    note = note_node(root, Note.RESCUED)
    if note is None:
        return
    before = json.loads(note.text or "")
    root.remove(_part(root, "os"))
    root.append(parse(before["os"]))
    disk = find_disk(root, before["volume"])
    if disk is not None:
        _part(root, "devices").remove(disk)
    _part(root, "metadata").remove(note)
    redefine(pool.connection, root, f"unrescue the instance {name}")


def _part(root: ET.Element, tag: str) -> ET.Element:
    """A part that every domain of planvirt's has."""
    found = root.find(tag)
    return ET.SubElement(root, tag) if found is None else found
