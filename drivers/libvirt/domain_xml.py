"""What a domain's XML says: who made it, what was promised of its end and written down since, and its hardware."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

from drivers.compute import Sizes
from planvirt.mark import Mark
from planvirt.plan import Nic
from planvirt.states import Note

MARK_NAMESPACE = "urn:planvirt:1"

# The kinds of network interfaces that a plan can name, as libvirt calls them.
_NIC_KINDS: dict[str, Literal["network", "bridge", "user"]] = {"network": "network", "bridge": "bridge", "user": "user"}

_UNITS = {"b": 1, "KiB": 1 << 10}  # libvirt writes KiB, our template bytes


@dataclass(frozen=True, slots=True)
class DiskXml:
    """A disk of a domain: where its file is, and what it is to the guest."""

    path: str
    format: str
    bus: str
    target: str


def note_namespace(note: Note) -> str:
    """The namespace of a kind of note: each has its own, and so comes and goes without a touch on the others."""
    return f"urn:planvirt:note:{note}:1"


def note_prefix(note: Note) -> str:
    """The prefix of that namespace, for people who read the XML."""
    return f"planvirt-{note}"


# Where ElementTree writes a domain, it writes these as libvirt's own metadata calls do.
ET.register_namespace("planvirt", MARK_NAMESPACE)
for _note in Note:
    ET.register_namespace(note_prefix(_note), note_namespace(_note))


def parse(xml: str) -> ET.Element:
    """libvirt's XML as a tree."""
    return ET.fromstring(xml)  # noqa: S314 - written by libvirt itself, which resolves no entities


def _mark_node(root: ET.Element) -> ET.Element | None:
    return root.find(f"metadata/{{{MARK_NAMESPACE}}}mark")


def read_mark(root: ET.Element) -> Mark | None:
    """The mark of a domain; None when planvirt did not make it."""
    node = _mark_node(root)
    if node is None:
        return None
    words = {name: node.get(name, "") for name in ("plan", "instance", "run", "spec", "commit")}
    return Mark(**words) if words["plan"] and words["instance"] else None


def mark_xml(root: ET.Element, *, spec: str | None = None, keep: Sequence[str] | None = None) -> str:
    """The mark of a domain with another spec or other kept disks, as libvirt wants metadata: without the namespace."""
    node = _mark_node(root)
    plain = ET.Element("mark")
    for child in () if node is None else node:
        tag = child.tag.rpartition("}")[2]
        if tag != "keep":
            ET.SubElement(plain, tag, child.attrib)
    for disk in read_keep(root) if keep is None else keep:
        ET.SubElement(plain, "keep", {"disk": disk})
    plain.attrib.update({} if node is None else node.attrib)
    if spec is not None:
        plain.set("spec", spec)
    return ET.tostring(plain, encoding="unicode")


def read_keep(root: ET.Element) -> tuple[str, ...]:
    """The names of the disks that outlive a domain."""
    node = _mark_node(root)
    kept = [] if node is None else node.iterfind(f"{{{MARK_NAMESPACE}}}keep")
    return tuple(item.get("disk", "") for item in kept)


def read_protect(root: ET.Element) -> bool:
    """Whether a domain may not be terminated."""
    node = _mark_node(root)
    return node is not None and node.get("protect") == "yes"


def note_node(root: ET.Element, note: Note) -> ET.Element | None:
    """Where a note of that kind stands, if there is one."""
    return root.find(f"metadata/{{{note_namespace(note)}}}note")


def read_notes(root: ET.Element) -> dict[str, str]:
    """What was written down about a domain."""
    nodes = {str(note): note_node(root, note) for note in Note}
    return {note: node.text or "" for note, node in nodes.items() if node is not None}


def read_sizes(root: ET.Element) -> Sizes:
    """How large the domain of this definition is, and can become."""
    vcpu, memory, current = root.find("vcpu"), root.find("memory"), root.find("currentMemory")
    most = 1 if vcpu is None else int(vcpu.text or 1)
    largest = _bytes(memory)
    return Sizes(
        vcpus=most if vcpu is None else int(vcpu.get("current", most)),
        memory=largest if current is None else _bytes(current),
        max_vcpus=most,
        max_memory=largest,
    )


def _bytes(node: ET.Element | None) -> int:
    return 0 if node is None else int(node.text or 0) * _UNITS[node.get("unit", "KiB")]


def _disk_nodes(root: ET.Element) -> Iterator[ET.Element]:
    for node in root.iterfind("devices/disk[source][target]"):
        if node.get("device", "disk") == "disk" and _of(node, "source", "file"):
            yield node


def _of(node: ET.Element, child: str, attribute: str) -> str:
    found = node.find(child)
    return "" if found is None else found.get(attribute, "")


def read_disk(node: ET.Element) -> DiskXml:
    """What a disk's part of the XML says."""
    return DiskXml(
        path=_of(node, "source", "file"),
        format=_of(node, "driver", "type") or "raw",
        bus=_of(node, "target", "bus"),
        target=_of(node, "target", "dev"),
    )


def read_disks(root: ET.Element) -> Sequence[DiskXml]:
    """The disks of a domain that are files, in the domain's order."""
    return [read_disk(node) for node in _disk_nodes(root)]


def find_disk(root: ET.Element, volume: str) -> ET.Element | None:
    """The domain's disk whose file is the volume."""
    return next((node for node in _disk_nodes(root) if Path(_of(node, "source", "file")).name == volume), None)


def disk_targets(root: ET.Element) -> list[str]:
    """The names that the guest has for its disks, whatever they are."""
    return [node.get("dev", "") for node in root.iterfind("devices/disk/target")]


def find_scsi_controller(root: ET.Element) -> ET.Element | None:
    """What the domain's SCSI disks are attached to."""
    return root.find("devices/controller[@type='scsi']")


def find_nic(root: ET.Element, mac: str) -> ET.Element | None:
    """The domain's network interface with that hardware address."""
    nodes = root.iterfind("devices/interface")
    return next((node for node in nodes if _of(node, "mac", "address").lower() == mac.lower()), None)


def read_nics(root: ET.Element) -> Sequence[Nic]:
    """The network interfaces of a domain whose kind a plan can name, in the domain's order."""
    nics = []
    for node in root.iterfind("devices/interface"):
        kind = _NIC_KINDS.get(node.get("type", ""))
        if kind is not None:
            source, mac, model = _of(node, "source", kind), _of(node, "mac", "address"), _of(node, "model", "type")
            nics.append(Nic(kind=kind, source=source, mac=mac or None, model=model))
    return nics
