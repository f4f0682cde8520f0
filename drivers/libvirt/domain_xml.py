"""A domain as libvirt's XML, and back: the mark, what was promised of its end, and the disks out of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from drivers.compute import Domain
from planvirt.mark import Mark

MARK_NAMESPACE = "urn:planvirt:1"
LOCK_NAMESPACE = "urn:planvirt:lock:1"  # of its own, so that it comes and goes without a touch on the mark

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)

# Device names in the guest, by bus.
_DEVICE_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd"}

# The CPU that a guest sees. Under software emulation "maximum" has every feature that QEMU can emulate.
_CPU_MODE = {"kvm": "host-passthrough", "qemu": "maximum"}


@dataclass(frozen=True, slots=True)
class DiskXml:
    """A disk of a domain: where its file is, and what it is to the guest."""

    path: str
    format: str
    bus: str
    target: str


@dataclass(frozen=True, slots=True)
class NicXml:
    """A network interface with everything decided."""

    kind: str
    source: str
    mac: str
    model: str


def render(
    domain: Domain,
    *,
    type: Literal["kvm", "qemu", "test"],
    paths: Mapping[str, str],
    console: str,
    locked: bool = False,
) -> str:
    """The XML of a domain. `paths` leads from the volumes' names to their files on the host."""
    real = type != "test"
    return TEMPLATES.get_template("domain.xml.j2").render(
        domain=domain,
        type=type,
        real=real,
        machine="q35" if real else "",
        cpu=_CPU_MODE.get(type, ""),
        kernel=paths[domain.kernel] if domain.kernel else "",
        initrd=paths[domain.initrd] if domain.initrd else "",
        disks=_disks(domain, paths),
        nics=_nics(domain),
        console=console,
        locked=locked,
    )


def _disks(domain: Domain, paths: Mapping[str, str]) -> list[DiskXml]:
    used: dict[str, int] = {}
    disks = []
    for disk in domain.disks:
        prefix = _DEVICE_PREFIX.get(disk.bus, "vd")
        letter = used.get(prefix, 0)
        used[prefix] = letter + 1
        target = prefix + _letters(letter)
        disks.append(DiskXml(path=paths[disk.volume], format=disk.format, bus=disk.bus, target=target))
    return disks


def _letters(index: int) -> str:
    """a, b, …, z, aa, ab, … as Linux names its disks."""
    before, last = divmod(index, 26)
    return (_letters(before - 1) if before else "") + chr(ord("a") + last)


def _nics(domain: Domain) -> list[NicXml]:
    return [
        NicXml(kind=nic.kind, source=nic.source, mac=nic.mac or stable_mac(domain.uuid, index), model=nic.model)
        for index, nic in enumerate(domain.nics)
    ]


def stable_mac(uuid: str, index: int) -> str:
    """A MAC address in QEMU's range that stays the same when the instance is defined again."""
    digest = hashlib.sha256(f"{uuid}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


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


def read_keep(root: ET.Element) -> tuple[str, ...]:
    """The names of the disks that outlive a domain."""
    node = _mark_node(root)
    kept = [] if node is None else node.iterfind(f"{{{MARK_NAMESPACE}}}keep")
    return tuple(item.get("disk", "") for item in kept)


def read_protect(root: ET.Element) -> bool:
    """Whether a domain may not be terminated."""
    node = _mark_node(root)
    return node is not None and node.get("protect") == "yes"


def read_locked(root: ET.Element) -> bool:
    """Whether a domain was locked."""
    return root.find(f"metadata/{{{LOCK_NAMESPACE}}}locked") is not None


def read_disks(root: ET.Element) -> Sequence[DiskXml]:
    """The disks of a domain that are files, in the domain's order."""
    disks = []
    for node in root.iterfind("devices/disk"):
        source, target, driver = node.find("source"), node.find("target"), node.find("driver")
        if node.get("device", "disk") != "disk" or source is None or target is None or not source.get("file"):
            continue
        disks.append(
            DiskXml(
                path=source.get("file", ""),
                format="raw" if driver is None else driver.get("type", "raw"),
                bus=target.get("bus", ""),
                target=target.get("dev", ""),
            )
        )
    return disks
