"""Snapshots on real QEMU: their content, what they leave alone, and what is left when they do not end well."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drivers.compute import AttachedDisk, Domain
from drivers.directory import DirectoryStore
from drivers.image_file import inspect
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict
from planvirt.mark import Mark, instance_uuid
from planvirt.states import State
from tests.drivers.libvirt_host import Guest, QemuHost, local_image, sha256_of

pytestmark = pytest.mark.real

MIB = 1 << 20
BIG = 512 * MIB  # takes longer to copy than the driver waits between two looks


@dataclass(frozen=True)
class Machine:
    """An instance with one disk, and how to see it from outside."""

    qemu: QemuHost
    guest: Guest
    mark: Mark

    @property
    def name(self) -> str:
        return self.mark.instance

    @property
    def disk(self) -> str:
        return self.mark.volume("boot")

    @property
    def copy(self) -> str:
        return self.mark.volume("copy")

    def define(self, base: str | None, size: int, cmdline: str = "", *, format: str = "qcow2") -> None:
        assert format in {"qcow2", "raw"}
        compute = self.qemu.compute
        kernel, initrd = self.guest.imported(compute)
        compute.create_volume(
            self.disk, size=size, format="raw" if format == "raw" else "qcow2", base=base, deadline=Deadline(60)
        )
        compute.define(
            Domain(
                name=self.name,
                uuid=instance_uuid(self.mark.plan, self.name),
                vcpus=1,
                memory=192 * MIB,
                mark=self.mark,
                disks=[AttachedDisk(self.disk, format)],
                kernel=kernel,
                initrd=initrd,
                cmdline=f"console=ttyS0 quiet planvirt.name={self.name} {cmdline}",
            )
        )

    def start(self, until: str) -> None:
        self.qemu.compute.start(self.name)
        end = time.monotonic() + 60
        while until not in (console := self.qemu.compute.console(self.name)):
            assert time.monotonic() < end, console
            time.sleep(0.1)

    def export(self, deadline: Deadline | None = None) -> None:
        self.qemu.compute.export_disks(self.name, {self.disk: self.copy}, deadline=deadline or Deadline(60))

    def begin_backup(self) -> None:
        """What a process does that dies right afterwards."""
        with self.qemu.door() as connection:
            connection.lookupByName(self.name).backupBegin(
                "<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'><driver type='qcow2'/>"
                f"<target file='{self.qemu.folder / self.copy}'/></disk></disks></domainbackup>",
                None,
                0,
            )

    def has_job(self) -> bool:
        with self.qemu.door() as connection:
            return bool(connection.lookupByName(self.name).jobStats().get("type"))


@pytest.fixture
def machine(qemu: QemuHost, guest: Guest) -> Iterator[Machine]:
    # The domain is named after the pool: tests in parallel share the host.
    name = f"{qemu.pool}-vm"
    machine = Machine(qemu, guest, Mark("snap", name, "r1", "5bec" * 16, "c0ffee"))
    yield machine
    qemu.compute.undefine(name)


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["/usr/bin/env", "qemu-img", *map(str, words)], check=True, capture_output=True)


def big_image(folder: Path) -> Path:
    path = folder / "big.raw"
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(BIG // MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
    return path


def big_disk(machine: Machine, folder: Path) -> Path:
    path = big_image(folder)
    base = machine.qemu.compute.import_image(local_image(path, "raw", BIG), Deadline(60))
    machine.define(base.name, BIG)
    return path


def test_a_running_guest_is_copied_and_its_base_stays(machine: Machine, tmp_path: Path) -> None:
    plain, image = tmp_path / "plain.raw", tmp_path / "image.qcow2"
    plain.write_bytes(b"planvirt:base".ljust(512, b"\0") + os.urandom(4 * MIB))
    os.truncate(plain, 16 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", plain, image)
    base = machine.qemu.compute.import_image(local_image(image, "qcow2", 16 * MIB), Deadline(60)).name
    machine.define(base, 32 * MIB, "planvirt.write=alive planvirt.heartbeat=1")
    machine.start(f"planvirt guest up: {machine.name}")
    before = sha256_of(machine.qemu.folder / base)
    told: list[tuple[int, int]] = []

    machine.export(Deadline(60, on_progress=lambda done, total: told.append((done, total))))

    assert sha256_of(machine.qemu.folder / base) == before == sha256_of(image)
    assert told[-1] == (32 * MIB, 32 * MIB)
    facts = machine.qemu.compute.instance(machine.name)
    assert facts is not None and facts.state is State.RUNNING and facts.volumes == (machine.disk,)
    copy = machine.qemu.folder / machine.copy
    qemu_img("check", "-f", "qcow2", copy)
    flat = tmp_path / "flat.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", copy, flat)
    content, expected = flat.read_bytes(), plain.read_bytes()
    assert content.startswith(b"planvirt:alive\0")
    assert content[512 : 16 * MIB] == expected[512:] and not any(content[16 * MIB :])


def test_a_copy_that_is_cancelled_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    plain = big_disk(machine, tmp_path)
    machine.qemu.compute.start(machine.name)
    files = machine.qemu.files()
    cancelled = Deadline(60, on_progress=lambda _done, _total: cancelled.cancel())
    with pytest.raises(DeadlinePassed):
        machine.export(cancelled)
    assert machine.qemu.files() == files and not machine.has_job()
    machine.export()
    qemu_img("compare", "-f", "raw", "-F", "qcow2", plain, machine.qemu.folder / machine.copy)


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_the_job_of_a_dead_process_is_ended(machine: Machine, tmp_path: Path, state: State) -> None:
    plain = big_disk(machine, tmp_path)
    machine.qemu.compute.start(machine.name)
    if state is State.PAUSED:
        with machine.qemu.door() as connection:
            connection.lookupByName(machine.name).suspend()
    machine.begin_backup()
    machine.export()
    qemu_img("compare", "-f", "raw", "-F", "qcow2", plain, machine.qemu.folder / machine.copy)
    facts = machine.qemu.compute.instance(machine.name)
    assert facts is not None and facts.state is state


def test_deleting_a_half_made_copy_ends_its_job(machine: Machine, tmp_path: Path) -> None:
    big_disk(machine, tmp_path)
    machine.qemu.compute.start(machine.name)
    machine.begin_backup()
    machine.qemu.compute.delete_volume(machine.copy)
    assert machine.copy not in machine.qemu.files() and not machine.has_job()


def test_a_stopped_copy_that_nobody_waits_for_goes_away(machine: Machine, tmp_path: Path) -> None:
    plain = big_disk(machine, tmp_path)
    with pytest.raises(DeadlinePassed):
        machine.export(Deadline(0.1))
    end = time.monotonic() + 30
    while machine.copy in machine.qemu.files() and time.monotonic() < end:
        time.sleep(0.1)
    assert machine.copy not in machine.qemu.files()
    machine.export()
    qemu_img("compare", "-f", "raw", "-F", "qcow2", plain, machine.qemu.folder / machine.copy)


def test_a_raw_disk_that_claims_to_be_more_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's own".ljust(MIB, b"\0"))
    trap = tmp_path / "trap.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", trap, str(MIB))
    machine.define(None, 8 * MIB, format="raw")
    with (machine.qemu.folder / machine.disk).open("r+b") as file:  # as a guest may write it
        file.write(trap.read_bytes())
    with pytest.raises(Conflict, match="looks like qcow2"):
        machine.export()
    assert machine.copy not in machine.qemu.files()


def test_a_raw_image_has_holes_and_a_store_keeps_them(machine: Machine, tmp_path: Path) -> None:
    """What the snapshot of a plan does for a raw image."""
    plain, compute = tmp_path / "plain.raw", machine.qemu.compute
    plain.write_bytes(os.urandom(4 * MIB))
    os.truncate(plain, 16 * MIB)
    base = compute.import_image(local_image(plain, "raw", 16 * MIB), Deadline(60)).name
    machine.define(base, BIG)
    compute.start(machine.name)
    machine.export()
    raw = machine.mark.volume("raw")
    made = compute.create_volume(raw, size=BIG, format="raw", base=machine.copy, deadline=Deadline(60))
    file = machine.qemu.folder / raw
    assert (made.format, made.capacity, file.stat().st_size) == ("raw", BIG, BIG)
    assert file.stat().st_blocks * 512 < 32 * MIB
    qemu_img("compare", "-f", "raw", "-F", "raw", plain, file)

    store = DirectoryStore("local", tmp_path / "store")
    store.create("i", name="i", format="raw", properties={})
    with compute.open_volume(raw) as data:
        image = store.upload("i", data, None, Deadline(120))
    path = store.path("i")
    assert path is not None and path.stat().st_blocks * 512 < 32 * MIB
    assert (image.size, image.checksum) == (BIG, f"sha256:{sha256_of(file)}")


def test_no_raw_image_is_made_of_what_looks_like_something_else(machine: Machine, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"the host's own".ljust(4096, b"\0"))
    before = sha256_of(precious)
    trap = tmp_path / "trap.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={precious},data_file_raw=on", trap, "1M")
    precious.write_bytes(b"the host's own".ljust(4096, b"\0"))
    machine.define(None, 8 * MIB, format="raw")
    with (machine.qemu.folder / machine.disk).open("r+b") as file:  # as a guest may write it
        file.write(trap.read_bytes())
    machine.qemu.compute.start(machine.name)
    machine.export()
    raw = machine.mark.volume("raw")
    with pytest.raises(Conflict, match="looks like qcow2"):
        machine.qemu.compute.create_volume(raw, size=8 * MIB, format="raw", base=machine.copy, deadline=Deadline(60))
    assert raw not in machine.qemu.files()
    assert sha256_of(precious) == before


def test_a_compressed_copy_is_smaller_and_the_same(machine: Machine, tmp_path: Path) -> None:
    plain = tmp_path / "plain.raw"
    plain.write_bytes(b"all work and no play\n" * (64 * MIB // 21))
    os.truncate(plain, 64 * MIB)
    base = machine.qemu.compute.import_image(local_image(plain, "raw", 64 * MIB), Deadline(60)).name
    machine.define(base, 64 * MIB)
    assert machine.qemu.compute.capabilities().compressions == {"zstd"}
    machine.export()
    small = machine.mark.volume("small")
    told: list[tuple[int, int]] = []
    deadline = Deadline(60, on_progress=lambda done, total: told.append((done, total)))

    made = machine.qemu.compute.compress_volume(machine.copy, small, "zstd", deadline)

    path = machine.qemu.folder / small
    assert (made.format, made.capacity, made.base) == ("qcow2", 64 * MIB, None)
    assert path.stat().st_size < 4 * MIB < (machine.qemu.folder / machine.copy).stat().st_size
    assert path.stat().st_mode & 0o077 == 0
    assert told[-1] == (64 * MIB, 64 * MIB)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, plain)
    assert (
        inspect(path, checksum=None, declared_format="qcow2").virtual_size == 64 * MIB
    )  # what comes in from a store is looked at
    hasty = Deadline(60, on_progress=lambda _done, _total: hasty.cancel())
    with pytest.raises(DeadlinePassed):
        machine.qemu.compute.compress_volume(machine.copy, machine.mark.volume("none"), "zstd", hasty)
    assert machine.mark.volume("none") not in machine.qemu.files()
