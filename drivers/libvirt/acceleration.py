"""Whether a host's KVM works. Its device may exist, and open, and still run no guest (nested hosts are like that), so
the only proof is a guest that does something: a boot sector that switches its machine off.
"""

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import libvirt

from drivers.errors import DriverError
from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.rendering import TEMPLATES
from drivers.libvirt.streams import writing
from drivers.libvirt.volume_xml import volume_xml
from planvirt.errors import Conflict

# mov dx, 0x604; mov ax, 0x2000; out dx, ax (ACPI power off, at the port where SeaBIOS puts it); then hlt for ever.
# A guest that powers off differs from a QEMU that crashed, which an exit through a debug port does not.
_POWER_OFF = bytes.fromhex("ba0406 b80020 ef f4 ebfd")
BOOT_SECTOR = _POWER_OFF + bytes(510 - len(_POWER_OFF)) + bytes.fromhex("55aa")
_DISK_SIZE = 1024 * 1024  # SeaBIOS cannot read a disk of one sector

_LIMIT = 2.0  # seconds; where KVM works the guest is done in a few tenths of one

# Whoever mends these wants to have it tried again; the answer is not remembered.
_MENDABLE = ("ermission denied", "No such file", "No space left")

Answer = Literal["kvm", "tcg"]


def prove(pool: Pool, memory: Path) -> Answer:
    """The acceleration that works on the host. The answer is remembered in the file `memory` for as long as the host
    runs the same kernel boot, libvirt and QEMU.
    """
    caps = _capabilities(pool)
    if "kvm" not in {node.get("type") for node in caps.iterfind("guest/arch[@name='x86_64']/domain")}:
        return "tcg"
    key = _identity(pool, caps)
    known = _recall(memory)
    if known.get("host") == key:
        return "kvm" if known.get("accel") == "kvm" else "tcg"
    try:
        answer: Answer = "kvm" if powers_off(pool, "kvm") else "tcg"
    except (DriverError, Conflict) as error:
        if any(words in error.details for words in _MENDABLE):
            return "tcg"
        answer = "tcg"  # QEMU came down on its first steps
    _remember(memory, {"host": key, "accel": answer})
    return answer


def _capabilities(pool: Pool) -> Any:
    with translated("read the host's capabilities"):
        return parse(pool.connection.get().getCapabilities())


def _identity(pool: Pool, caps: Any) -> str:
    conn = pool.connection.get()
    with translated("read the host's versions"):
        parts = [caps.findtext("host/uuid") or "", str(conn.getLibVersion()), str(conn.getVersion())]
    if pool.connection.is_local():
        emulator = Path(caps.findtext("guest/arch[@name='x86_64']/emulator") or "/")
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(emulator.stat().st_mtime_ns) if emulator.exists() else "")
    return " ".join(parts)


def _recall(memory: Path) -> dict[str, str]:
    try:
        found = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(memory: Path, answer: dict[str, str]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    temporary = memory.with_name(f"{memory.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(answer))
    temporary.replace(memory)


@contextmanager
def _boot_disk(pool: Pool, name: str) -> Iterator[str]:
    with translated("make the disk of the KVM probe"):
        volume = pool.handle().createXML(volume_xml(name, _DISK_SIZE, "raw"), 0)
        try:
            with writing(pool.connection.get(), volume, len(BOOT_SECTOR)) as writer:
                writer.write(BOOT_SECTOR)
            yield str(volume.path())
        finally:
            volume.delete(0)


def powers_off(pool: Pool, type: Literal["kvm", "qemu"]) -> bool:
    """Whether a guest of that type runs the boot sector in time. It is gone afterwards, even if we are killed."""
    name = f"planvirt-probe.{secrets.token_hex(6)}"
    with _boot_disk(pool, name) as path:
        xml = TEMPLATES.get_template("probe.xml.j2").render(name=name, path=path, type=type)
        return _switches_off(pool, name, xml)


def _switches_off(pool: Pool, name: str, xml: str) -> bool:
    conn = pool.connection.get()
    ended = threading.Event()
    switched_off = threading.Event()

    def on_lifecycle(_conn: Any, domain: Any, event: int, _detail: int, _opaque: object) -> None:
        if domain.name() != name:
            return
        if event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:  # the guest did it; a QEMU that crashes says nothing
            switched_off.set()
        if event in {libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_STOPPED}:
            ended.set()

    with translated("run the KVM probe"):
        number = conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_lifecycle, None)
        try:
            domain = conn.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
            ended.wait(_LIMIT)
            with suppress(libvirt.libvirtError):  # it is on its way out by itself
                domain.destroy()
        finally:
            conn.domainEventDeregisterAny(number)
    return switched_off.is_set()
