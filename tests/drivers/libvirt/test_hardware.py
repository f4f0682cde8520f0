"""Changes of hardware on real QEMU: what the guest sees of them, what stays as it was, guests that do not let go."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import libvirt
import pytest

from drivers.compute import AttachedDisk, Domain, InstanceFacts, Sizes
from drivers.errors import DriverError, Unsupported
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict
from planvirt.mark import Mark, instance_uuid
from planvirt.plan import Nic
from planvirt.states import State
from tests.drivers.libvirt_host import Guest, QemuHost, local_image, sha256_of

pytestmark = pytest.mark.real

MIB = 1 << 20
NIC = Nic("user", mac="52:54:00:0a:0b:0c")

# cld; ds = 0; si = the text behind the code; write it to the first serial port up to its zero; hlt for ever.
_SAY = bytes.fromhex("fc 31c0 8ed8 be167c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")


def boot_sector(text: str) -> bytes:
    code = _SAY + text.encode() + b"\0"
    return code.ljust(510, b"\0") + bytes.fromhex("55aa")


@dataclass(frozen=True)
class Machine:
    """An instance, and how to see it from outside."""

    qemu: QemuHost
    name: str

    @property
    def mark(self) -> Mark:
        return Mark("hardware", self.name, "r1", "5bec" * 16, "c0ffee")

    def volume(
        self, name: str, *, size: int = 8 * MIB, format: Literal["qcow2", "raw"] = "qcow2", base: str | None = None
    ) -> str:
        made = self.mark.volume(name)
        self.qemu.compute.create_volume(made, size=size, format=format, base=base, deadline=Deadline(60))
        return made

    def define(self, guest: Guest, cmdline: str = "", *, disks: tuple[AttachedDisk, ...] = ()) -> InstanceFacts:
        kernel, initrd = guest.imported(self.qemu.compute)
        return self.qemu.compute.define(
            Domain(
                name=self.name,
                uuid=instance_uuid(self.mark.plan, self.name),
                vcpus=1,
                memory=256 * MIB,
                mark=self.mark,
                disks=disks or (AttachedDisk(self.volume("boot")),),
                nics=(Nic("user"),),
                kernel=kernel,
                initrd=initrd,
                cmdline=f"console=ttyS0 quiet planvirt.name={self.name} {cmdline}",
                labels={"tier": "web"},
                max_vcpus=2,
                max_memory=320 * MIB,
            )
        )

    def start(self, until: str = "planvirt guest up") -> None:
        self.qemu.compute.start(self.name)
        end = time.monotonic() + 60
        while until not in (console := self.qemu.compute.console(self.name)):
            assert time.monotonic() < end, console
            time.sleep(0.1)

    def says(self, *command: str) -> str:
        """What a program in the guest writes."""
        return self.qemu.compute.execute(self.name, command, b"", Deadline(60)).stdout.decode()

    def sees(self, path: str, text: str) -> None:
        """Wait until the guest has noticed: it hears of its devices in its own time."""
        end = time.monotonic() + 30
        while text != (found := self.says("cat", path).strip()):
            assert time.monotonic() < end, f"{path}: {found!r}, not {text!r}"
            time.sleep(0.2)

    def memory(self) -> int:
        """How much the guest has, without what its kernel keeps to itself."""
        return int(self.says("sed", "-n", "s/MemTotal: *\\([0-9]*\\) kB/\\1/p", "/proc/meminfo")) * 1024

    def has_memory(self, size: int) -> None:
        """Wait until the guest has given back, or taken, as much as it was told to."""
        end = time.monotonic() + 30
        while abs((found := self.memory()) - size) > 4 * MIB:
            assert time.monotonic() < end, f"{found // MIB} MiB, not {size // MIB}"
            time.sleep(0.2)

    def xml(self, *, live: bool = False) -> ET.Element:
        with self.qemu.door() as connection:
            flags = 0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE
            return ET.fromstring(connection.lookupByName(self.name).XMLDesc(flags))  # noqa: S314 - libvirt's own

    def definition(self) -> str:
        return ET.canonicalize(ET.tostring(self.xml(), encoding="unicode"), strip_text=True)

    def disks(self, *, live: bool) -> dict[str, str]:
        """Where each disk is on the machine's bus, by volume."""
        found = {}
        for node in self.xml(live=live).iterfind("devices/disk"):
            source, address = node.find("source"), node.find("address")
            assert source is not None and address is not None
            found[Path(source.get("file", "")).name] = " ".join(f"{k}={v}" for k, v in sorted(address.items()))
        return found

    def seen(self) -> InstanceFacts:
        facts = self.qemu.compute.instance(self.name)
        assert facts is not None
        return facts


@pytest.fixture
def machine(qemu: QemuHost) -> Iterator[Machine]:
    # The domain is named after the pool: tests in parallel share the host.
    machine = Machine(qemu, f"{qemu.pool}-vm")
    yield machine
    qemu.compute.undefine(machine.name)


def test_a_running_guest_sees_what_changes(machine: Machine, guest: Guest) -> None:
    compute, name = machine.qemu.compute, machine.name
    machine.define(guest)
    boot, data = machine.mark.volume("boot"), machine.volume("data")
    machine.start()

    compute.attach_disk(name, AttachedDisk(data))
    machine.sees("/sys/block/vdb/size", str(8 * MIB // 512))
    for disk, volume in (("vda", boot), ("vdb", data)):
        compute.grow_disk(name, volume, 24 * MIB)
        machine.sees(f"/sys/block/{disk}/size", str(24 * MIB // 512))
    compute.attach_nic(name, NIC)
    machine.sees("/sys/class/net/eth1/address", str(NIC.mac))
    assert machine.disks(live=True) == machine.disks(live=False)

    assert machine.says("cat", "/sys/devices/system/cpu/present").strip() == "0"
    memory = machine.memory()
    compute.resize(name, Sizes(2, 320 * MIB, 2, 320 * MIB))
    machine.sees("/sys/devices/system/cpu/present", "0-1")
    machine.has_memory(memory + 64 * MIB)
    compute.resize(name, Sizes(2, 192 * MIB, 2, 320 * MIB))
    machine.has_memory(memory - 64 * MIB)

    compute.detach_disk(name, data, Deadline(60))
    compute.detach_nic(name, str(NIC.mac), Deadline(60))
    assert machine.says("ls", "/sys/block").split() == ["vda"]
    assert set(machine.says("ls", "/sys/class/net").split()) == {"eth0", "lo"}
    compute.power_off(name)
    machine.start()
    assert machine.seen().sizes == Sizes(2, 192 * MIB, 2, 320 * MIB)
    assert machine.says("cat", "/sys/block/vda/size").strip() == str(24 * MIB // 512)


def test_a_guest_that_has_not_booted_lets_go_when_it_can(machine: Machine, guest: Guest) -> None:
    machine.define(guest)
    data = machine.volume("data")
    machine.qemu.compute.attach_disk(machine.name, AttachedDisk(data))
    machine.qemu.compute.start(machine.name)
    machine.qemu.compute.detach_disk(machine.name, data, Deadline(60))
    assert data not in machine.disks(live=True) and data not in machine.disks(live=False)
    assert machine.seen().state is State.RUNNING


def test_a_device_that_went_too_late_goes_or_comes_for_good(machine: Machine, guest: Guest) -> None:
    compute, name = machine.qemu.compute, machine.name
    machine.define(guest)
    data = AttachedDisk(machine.volume("data"))
    compute.attach_disk(name, data)
    machine.start()
    for last in (compute.attach_disk, compute.detach_disk):
        compute.pause(name)
        with pytest.raises(DeadlinePassed):
            compute.detach_disk(name, data.volume, Deadline(1.0))
        compute.unpause(name)
        end = time.monotonic() + 30
        while data.volume in machine.disks(live=True):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert data.volume in machine.disks(live=False) and data in machine.seen().disks
        if last == compute.attach_disk:
            compute.attach_disk(name, data)
            assert data.volume in machine.disks(live=True)
        else:
            compute.detach_disk(name, data.volume, Deadline(60))
            assert data not in machine.seen().disks


def test_a_running_machine_takes_disks_on_some_buses_only(machine: Machine, guest: Guest) -> None:
    compute, name = machine.qemu.compute, machine.name
    machine.define(guest)
    slow = AttachedDisk(machine.volume("slow"), bus="sata")
    compute.attach_disk(name, slow)
    compute.start(name)
    before = machine.seen()
    with pytest.raises(Unsupported, match="neither takes nor gives"):
        compute.attach_disk(name, AttachedDisk(machine.volume("more"), bus="sata"))
    with pytest.raises(Unsupported, match="neither takes nor gives"):
        compute.detach_disk(name, slow.volume, Deadline(10))
    assert machine.seen() == before
    for bus in ("scsi", "usb"):
        disk = AttachedDisk(machine.volume(bus), bus=bus)
        compute.attach_disk(name, disk)
        assert machine.disks(live=True) == machine.disks(live=False)
        assert disk in machine.seen().disks
        compute.detach_disk(name, disk.volume, Deadline(60))
    assert machine.seen() == before


def test_a_machine_has_so_many_free_ports(machine: Machine, guest: Guest) -> None:
    compute, name = machine.qemu.compute, machine.name
    machine.define(guest)
    compute.start(name)
    disks = [AttachedDisk(machine.volume(f"disk{number}", size=MIB)) for number in range(12)]
    with pytest.raises(Conflict, match="no free port") as refused:
        for disk in disks:
            compute.attach_disk(name, disk)
    assert "stop it first" in refused.value.resolution
    before = machine.seen().disks
    assert len(before) >= 9
    assert machine.disks(live=True) == machine.disks(live=False)
    compute.power_off(name)
    for disk in disks:
        compute.attach_disk(name, disk)
    compute.start(name)
    assert machine.seen().disks == (before[0], *disks)


def test_what_is_not_changed_in_a_definition_stays(machine: Machine, guest: Guest) -> None:
    compute, name = machine.qemu.compute, machine.name
    machine.define(guest)
    compute.start(name)
    compute.resize(name, Sizes(2, 320 * MIB, 2, 320 * MIB))
    compute.power_off(name)
    before = machine.definition()
    (boot,) = machine.seen().disks
    sizes = machine.seen().sizes
    other = AttachedDisk(machine.volume("other", format="raw"), "raw")

    there_and_back: tuple[tuple[Callable[[], None], Callable[[], None]], ...] = (
        (lambda: compute.resize(name, Sizes(1, 192 * MIB, 4, 1024 * MIB)), lambda: compute.resize(name, sizes)),
        (
            lambda: compute.replace_disk(name, boot.volume, other),
            lambda: compute.replace_disk(name, other.volume, boot),
        ),
        (lambda: compute.rescue(name, other), lambda: compute.unrescue(name)),
        (
            lambda: compute.attach_disk(name, other),
            lambda: compute.detach_disk(name, other.volume, Deadline(10)),
        ),
        (lambda: compute.attach_nic(name, NIC), lambda: compute.detach_nic(name, str(NIC.mac), Deadline(10))),
    )
    for there, back in there_and_back:
        there()
        assert machine.definition() != before
        back()
        assert machine.definition() == before


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_a_rescued_instance_boots_from_the_other_disk(machine: Machine, guest: Guest, tmp_path: Path, bus: str) -> None:
    compute, name = machine.qemu.compute, machine.name
    image = tmp_path / "rescue.raw"
    image.write_bytes(boot_sector("RESCUED"))
    os.truncate(image, MIB)
    base = compute.import_image(local_image(image, "raw", MIB), Deadline(60)).name
    machine.define(guest, "planvirt.write=alive")
    boot, rescuer = machine.mark.volume("boot"), machine.volume("rescue", size=MIB, format="qcow2", base=base)
    machine.start("disk written: alive")
    compute.power_off(name)
    before, content = machine.seen(), sha256_of(machine.qemu.folder / boot)

    compute.rescue(name, AttachedDisk(rescuer, bus=bus))
    machine.start("RESCUED")
    assert "planvirt guest" not in compute.console(name)
    assert list(machine.disks(live=True)) == [boot, rescuer]
    with pytest.raises(Conflict, match="boots from it"):
        compute.detach_disk(name, rescuer, Deadline(10))
    compute.power_off(name)
    assert sha256_of(machine.qemu.folder / boot) == content

    compute.unrescue(name)
    assert machine.seen() == before
    machine.start("disk says: alive")
    assert list(machine.disks(live=True)) == [boot]


def test_a_raw_disk_that_claims_to_be_more_is_not_grown(machine: Machine, guest: Guest, tmp_path: Path) -> None:
    compute, name = machine.qemu.compute, machine.name
    disk = machine.volume("boot", format="raw")
    machine.define(guest, disks=(AttachedDisk(disk, "raw"),))
    file = machine.qemu.folder / disk
    with file.open("r+b") as raw:  # as a guest may write it
        raw.write((machine.qemu.folder / machine.volume("trap")).read_bytes())
    before = sha256_of(file)
    with pytest.raises(Conflict, match="looks like qcow2"):
        compute.grow_disk(name, disk, 16 * MIB)
    assert sha256_of(file) == before
    compute.start(name)
    compute.grow_disk(name, disk, 16 * MIB)
    assert file.stat().st_size == 16 * MIB


def test_a_disk_of_an_odd_size_grows_once(machine: Machine, guest: Guest) -> None:
    compute, name = machine.qemu.compute, machine.name
    machine.define(guest)
    boot = machine.mark.volume("boot")
    for start in (False, True):
        if start:
            compute.start(name)
        size = 10**8 + 10**7 * start + 1
        for _ in range(2):
            compute.grow_disk(name, boot, size)
            (facts,) = [facts for facts in compute.volumes() if facts.name == boot]
            assert 0 <= facts.capacity - size < 4096


def test_a_disk_that_cannot_be_so_large_stays(machine: Machine, guest: Guest) -> None:
    machine.define(guest)
    boot = machine.mark.volume("boot")
    with pytest.raises(DriverError):
        machine.qemu.compute.grow_disk(machine.name, boot, 1 << 60)
    (facts,) = [facts for facts in machine.qemu.compute.volumes() if facts.name == boot]
    assert facts.capacity == 8 * MIB


def test_what_is_set_aside_is_forgotten_with_all_its_hardware(machine: Machine, guest: Guest) -> None:
    compute, name = machine.qemu.compute, machine.name
    machine.define(guest)
    data = machine.volume("data")
    compute.start(name)
    compute.attach_disk(name, AttachedDisk(data))
    before = machine.seen()
    compute.set_aside(name, "r7")
    assert replace(compute.bring_back(name, "r7"), power=State.RUNNING) == before
    compute.set_aside(name, "r7")
    compute.delete_set_aside(name, "r7")
    assert [facts for facts in compute.instances() if facts.mark == machine.mark] == []
    assert data in machine.qemu.files()
