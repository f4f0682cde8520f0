"""What the contract does not ask: imports by several processes and after a kill, streams, consoles, addresses, KVM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drivers.compute import AttachedDisk, Domain
from drivers.libvirt import acceleration, images, reading
from drivers.libvirt.driver import LibvirtCompute
from drivers.libvirt.pool import Pool
from planvirt.config import HostConfig
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.mark import Mark, cached_image, instance_uuid
from planvirt.plan import Nic
from tests.drivers.libvirt_host import URI, Guest, QemuHost, local_image, qemu_host, sha256_of

pytestmark = pytest.mark.real

MIB = 1 << 20
REPOSITORY = Path(__file__).parents[3]

# Another process that imports an image; it says how far it is.
IMPORTER = """
import sys
from pathlib import Path
from drivers.compute import LocalImage
from drivers.libvirt.driver import LibvirtCompute
from planvirt.config import HostConfig
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

uri, pool, path, sha256 = sys.argv[1:]
compute = LibvirtCompute(HostConfig("host", uri=uri, accel="tcg", pool=pool), Path(path).parent)
image = LocalImage(Path(path), sha256, "raw", Path(path).stat().st_size)
deadline = Deadline(60, on_progress=lambda done, total: print(done * 100 // total, flush=True))
compute.import_image(image, deadline)
"""


def pool_of(qemu: QemuHost) -> Pool:
    return Pool(qemu.compute._connection, HostConfig("host", pool=qemu.pool))


def importer(qemu: QemuHost, image: Path, sha256: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", IMPORTER, URI, qemu.pool, str(image), sha256]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.write(os.urandom(64 * MIB))
        file.seek(64 * MIB, os.SEEK_CUR)  # a hole
        file.write(os.urandom(64 * MIB))
        file.truncate(256 * MIB)
    return path


def test_an_import_that_was_killed_is_finished_by_the_next(qemu: QemuHost, image: Path) -> None:
    sha256 = sha256_of(image)
    name = cached_image(sha256, "raw")
    with importer(qemu, image, sha256) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 30:
            pass
        process.send_signal(signal.SIGKILL)
    assert name in qemu.files()
    assert name not in {volume.name for volume in qemu.compute.volumes()}
    qemu.compute.import_image(local_image(image, "raw", 256 * MIB), Deadline(60))
    assert sha256_of(qemu.folder / name) == sha256
    assert name in {volume.name for volume in qemu.compute.volumes()}


def test_two_processes_import_the_same_image(qemu: QemuHost, image: Path) -> None:
    sha256 = sha256_of(image)
    with importer(qemu, image, sha256) as one, importer(qemu, image, sha256) as two:
        one.communicate()
        two.communicate()
        assert (one.returncode, two.returncode) == (0, 0)
    name = cached_image(sha256, "raw")
    assert sha256_of(qemu.folder / name) == sha256
    assert qemu.files() == {name, f"{name}.ok"}


def test_what_is_half_imported_for_a_day_is_swept_away(qemu: QemuHost, image: Path) -> None:
    old, young = cached_image("0" * 64, "raw"), cached_image("1" * 64, "raw")
    for name, age in ((old, 25 * 3600), (young, 3600)):
        (qemu.folder / name).write_bytes(b"half")
        os.utime(qemu.folder / name, (time.time() - age, time.time() - age))
    pool_of(qemu).refresh()
    qemu.compute.import_image(local_image(image, "raw", 256 * MIB), Deadline(60))
    assert young in qemu.files() and old not in qemu.files()


def test_an_image_keeps_its_holes(qemu: QemuHost, image: Path) -> None:
    facts = qemu.compute.import_image(local_image(image, "raw", 256 * MIB), Deadline(60))
    assert facts.capacity == 256 * MIB
    assert (qemu.folder / facts.name).stat().st_blocks * 512 < 140 * MIB


def test_a_stream_gives_the_same_bytes_as_the_file(qemu: QemuHost, image: Path) -> None:
    name = qemu.compute.import_image(local_image(image, "raw", 256 * MIB), Deadline(60)).name
    with reading.opened(pool_of(qemu), name, stream=True) as stream, image.open("rb") as file:
        while chunk := file.read(3 * MIB + 7):
            assert stream.read(len(chunk)) == chunk
        assert stream.read(1) == b""
    with reading.opened(pool_of(qemu), name, stream=True) as stream:
        assert stream.read(10) == image.read_bytes()[:10]  # and leave it in its middle
    with qemu.compute.open_volume(name) as near:
        assert near.name == str(qemu.folder / name)  # the file itself


def test_an_image_that_is_not_there_counts_as_deleted(qemu: QemuHost, image: Path) -> None:
    name = cached_image(sha256_of(image), "raw")
    assert images.complete(pool_of(qemu), name) is None
    qemu.compute.delete_volume(name)  # a missing one counts as deleted
    assert qemu.files() == set()


def define(qemu: QemuHost, guest: Guest, *nics: Nic) -> str:
    name = f"{qemu.pool}-vm"
    mark = Mark("host", name, "r1", "5bec" * 16)
    kernel, initrd = guest.imported(qemu.compute)
    disk = mark.volume("boot")
    qemu.compute.create_volume(disk, size=8 * MIB, format="qcow2", base=None, deadline=Deadline(60))
    cmdline = f"console=ttyS0 quiet planvirt.name={name}"
    uuid = instance_uuid("host", name)
    disks = [AttachedDisk(disk)]
    qemu.compute.define(Domain(name, uuid, 1, 192 * MIB, mark, disks, nics, kernel, initrd, cmdline))
    return name


def test_the_network_knows_the_address(qemu: QemuHost, guest: Guest) -> None:
    name = define(qemu, guest, Nic("network", "default"))
    qemu.compute.start(name)
    end = time.monotonic() + 60
    while not (found := qemu.compute.addresses(name)):
        assert time.monotonic() < end, qemu.compute.console(name)
        time.sleep(0.2)
    assert found[0].startswith("192.168.")
    qemu.compute.undefine(name)


def test_a_long_console_ends_with_its_end(qemu: QemuHost, guest: Guest) -> None:
    name = define(qemu, guest)
    log = qemu.folder / f"planvirt-console.{instance_uuid('host', name)}.log"
    rotated = log.with_name(log.name + ".0")
    rotated.write_bytes(b"older " * 400_000)
    log.write_bytes(b"newer\n\xff")
    text = qemu.compute.console(name)
    assert len(text) == 1024 * 1024
    assert text.endswith("older newer\n�")
    qemu.compute.start(name)  # whatever an earlier start wrote is not of this one
    assert "older" not in qemu.compute.console(name)
    qemu.compute.undefine(name)
    assert not [file for file in qemu.files() if file.startswith("planvirt-console")]


def test_the_boot_sector_that_proves_kvm_works(qemu: QemuHost) -> None:
    assert acceleration.powers_off(pool_of(qemu), "qemu")
    assert qemu.files() == set()


def test_acceleration_is_proved_once() -> None:
    with qemu_host(accel="auto") as qemu:
        first = qemu.compute.facts().accel
        assert first in {"kvm", "tcg"}
        began = time.monotonic()
        memory = qemu.folder.parent / "home/hosts/host.acceleration.json"
        if memory.exists():
            assert acceleration.prove(pool_of(qemu), memory) == first
            assert time.monotonic() - began < 1.0
        assert qemu.files() == set()


def test_a_disk_of_an_odd_size_can_be_made_again(qemu: QemuHost) -> None:
    name = Mark("plan", "odd", "run", "ab" * 32).volume("root")
    first = qemu.compute.create_volume(name, size=10**9, format="qcow2", base=None, deadline=Deadline(30))
    assert first.capacity >= 10**9
    assert qemu.compute.create_volume(name, size=10**9, format="qcow2", base=None, deadline=Deadline(30)) == first


def test_reading_makes_no_pool(qemu: QemuHost, tmp_path: Path) -> None:
    name = f"{qemu.pool}-unmade"
    reader = LibvirtCompute(HostConfig("host", uri=URI, accel="tcg", pool=name, pool_path=qemu.folder / "no"), tmp_path)
    try:
        assert reader.volumes() == []
        assert reader.facts().free_space > 0
        reader.instances()
    finally:
        reader.close()
    with qemu.door() as connection:
        assert name not in [pool.name() for pool in connection.listAllStoragePools()]


def test_a_volume_is_deleted_where_it_is_also_when_the_pool_has_changed(qemu: QemuHost, tmp_path: Path) -> None:
    name = Mark("plan", "moved", "run", "ab" * 32).volume("root")
    qemu.compute.create_volume(name, size=1 << 20, format="qcow2", base=None, deadline=Deadline(30))
    with qemu_host() as other:
        other.compute.delete_volume(name)
    assert name not in qemu.files()


def test_the_same_image_in_another_pool_of_the_host_is_another_image(qemu: QemuHost, image: Path) -> None:
    with qemu_host() as other:
        names = {each.compute.import_file(image, sha256_of(image), Deadline(60)) for each in (qemu, other)}
        (name,) = names
        with other.door() as connection:
            connection.defineXML(
                f"<domain type='qemu'><name>{other.pool}</name><memory unit='MiB'>64</memory><os>"
                f"<type arch='x86_64'>hvm</type><kernel>{other.folder}/{name}</kernel></os></domain>"
            )
        theirs = other.folder / "theirs.qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(other.folder / name), "-F", "raw", str(theirs)]
        subprocess.run(command, check=True)
        pool_of(other).refresh()
        assert [cached.users for cached in qemu.compute.cached()] == [()]
        assert [cached.users for cached in other.compute.cached()] == [(other.pool, "theirs.qcow2")]
        qemu.compute.delete_volume(name)
        assert name not in qemu.files() and name in other.files()
        with pytest.raises(Conflict):
            other.compute.delete_volume(name)
        theirs.unlink()  # behind libvirt's back
        assert qemu.compute.cached() == []
        assert [cached.users for cached in other.compute.cached()] == [(other.pool,)]


def test_what_a_rescued_instance_booted_from_before_is_in_use(qemu: QemuHost, image: Path) -> None:
    kernel = qemu.compute.import_file(image, sha256_of(image), Deadline(60))
    mark = Mark("p", "web", "r1", "5bec" * 16)
    disk, rescuer = mark.volume("boot"), mark.volume("rescue")
    for name in (disk, rescuer):
        qemu.compute.create_volume(name, size=MIB, format="qcow2", base=None, deadline=Deadline(60))
    uuid = instance_uuid("p", qemu.pool)
    qemu.compute.define(
        Domain(
            name=qemu.pool, uuid=uuid, vcpus=1, memory=64 * MIB, mark=mark, disks=[AttachedDisk(disk)], kernel=kernel
        )
    )
    qemu.compute.rescue(qemu.pool, AttachedDisk(rescuer))
    assert [cached.users for cached in qemu.compute.cached()] == [(qemu.pool,)]
    with pytest.raises(Conflict):
        qemu.compute.delete_volume(kernel)
    assert kernel in qemu.files()
