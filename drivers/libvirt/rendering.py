"""A domain, and each device that can be added to one, as the XML that libvirt takes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from drivers.compute import Domain
from drivers.libvirt.domain_xml import DiskXml
from planvirt.mark import nic_mac
from planvirt.plan import Nic

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)

# Device names in the guest, by bus.
_DEVICE_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd"}

# A q35 machine takes a device while it runs only on a port that was there, and free, when it started.
_SPARE_PORTS = 8
_OWN_PORTS = 5  # for what every domain has, and a SCSI controller: USB, serial channel, random numbers, balloon

# The CPU that a guest sees. Under software emulation "maximum" has every feature that QEMU can emulate.
_CPU_MODE = {"kvm": "host-passthrough", "qemu": "maximum"}


@dataclass(frozen=True, slots=True)
class NicXml:
    """A network interface with everything decided."""

    kind: str
    source: str
    mac: str
    model: str


def render(domain: Domain, *, type: Literal["kvm", "qemu", "test"], paths: Mapping[str, str], console: str) -> str:
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
        nics=[_decided(nic, nic_mac(domain.uuid, index)) for index, nic in enumerate(domain.nics)],
        console=console,
        ports=_OWN_PORTS + len(domain.disks) + len(domain.nics) + _SPARE_PORTS,
    )


def _disks(domain: Domain, paths: Mapping[str, str]) -> list[DiskXml]:
    disks: list[DiskXml] = []
    for disk in domain.disks:
        target = next_target(disk.bus, [each.target for each in disks])
        disks.append(DiskXml(path=paths[disk.volume], format=disk.format, bus=disk.bus, target=target))
    return disks


def next_target(bus: str, taken: Iterable[str]) -> str:
    """The name that a guest has for one more disk on that bus, behind those whose names are taken."""
    prefix = _DEVICE_PREFIX.get(bus, "vd")
    letters = [name.removeprefix(prefix) for name in taken if name.startswith(prefix)]
    return prefix + _letters(max((_number(each) for each in letters if each.isalpha()), default=-1) + 1)


def _letters(index: int) -> str:
    """a, b, …, z, aa, ab, … as Linux names its disks."""
    before, last = divmod(index, 26)
    return (_letters(before - 1) if before else "") + ascii_lowercase[last]


def _number(letters: str) -> int:
    """The place of such letters."""
    place = 0
    for letter in letters:
        place = place * 26 + ascii_lowercase.index(letter) + 1
    return place - 1


def _decided(nic: Nic, mac: str) -> NicXml:
    return NicXml(kind=nic.kind, source=nic.source, mac=nic.mac or mac, model=nic.model)


def disk_xml(disk: DiskXml, order: int | None = None) -> str:
    """A disk as a device of its own; `order` is its place among what the machine boots from."""
    return _device("disk", disk, order)


def nic_xml(nic: Nic) -> str:
    """A network interface, whose hardware address is given, as a device of its own."""
    return _device("interface", _decided(nic, ""))


def scsi_controller_xml() -> str:
    """What SCSI disks are attached to, as a device of its own."""
    return _device("scsi_controller")


def _device(kind: str, *parts: Any) -> str:
    macro = getattr(TEMPLATES.get_template("devices.xml.j2").module, kind)
    return str(macro(*parts)).strip()
