"""How long a disk of a running machine takes to become a verified image in a store on the same machine.

The disk is an overlay of 4 GiB with 800 MB of its own on a base image. What planvirt does (a push backup job, an
upload that hashes, the store's reading back) is measured in the same run against a push backup job and `cp`, which
verify nothing (goal: at most 1.3 times that), and against `qemu-img convert` and the same upload. The memory of this
process is told, too: it must not grow with the disk (goal: at most 150 MB).

It needs libvirtd with QEMU on this machine, and some 4 GB in /var/tmp.

    python benchmarks/snapshot.py [--rounds 3] [--size 800]
"""

import argparse
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import libvirt

from drivers.compute import AttachedDisk, Domain
from drivers.directory import DirectoryStore
from drivers.errors import HostUnreachable
from drivers.image_file import inspect
from drivers.libvirt import LibvirtCompute
from planvirt.config import HostConfig
from planvirt.deadline import Deadline
from planvirt.mark import Mark, instance_uuid

GOAL = 1.3  # times a push backup and cp
GOAL_MEMORY = 150  # MB
URI = "qemu:///system"
MB = 1_000_000
NAME = "planvirt-bench"


@dataclass(frozen=True)
class Place:
    """A running machine with a disk to take an image of, and a store."""

    compute: LibvirtCompute
    store: DirectoryStore
    folder: Path
    disk: str

    def copy_of_ours(self) -> None:
        """What a snapshot does."""
        target = Mark("bench", NAME, secrets.token_hex(4), "0" * 64).volume("copy")
        (copy,) = self.compute.export_disks(NAME, {self.disk: target}, deadline=Deadline(600))
        self._upload(self.compute.open_volume(copy.name))
        self.compute.delete_volume(copy.name)

    def backup_and_cp(self) -> None:
        """The least that could be done: nobody looks whether what has arrived is what was sent."""
        made, stored = self.folder / "pool" / "backup.qcow2", self.folder / "copied.qcow2"
        connection = libvirt.open(URI)
        domain = connection.lookupByName(NAME)
        xml = (
            f"<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'><driver type='qcow2'/>"
            f"<target file='{made}'/></disk></disks></domainbackup>"
        )
        domain.backupBegin(xml, None, 0)
        while domain.jobStats().get("type") != libvirt.VIR_DOMAIN_JOB_NONE:
            time.sleep(0.05)
        domain.blockInfo("vda")  # returns when QEMU has closed the target
        connection.close()
        _run("cp", "--sparse=auto", str(made), str(stored))
        made.unlink()
        stored.unlink()

    def convert_and_upload(self) -> None:
        """What can be done without a backup job: read a disk that its guest writes to."""
        made = self.folder / "converted.qcow2"
        source = self.folder / "pool" / self.disk
        _run("qemu-img", "convert", "-U", "-O", "qcow2", str(source), str(made))
        self._upload(made.open("rb"))
        made.unlink()

    def _upload(self, opened: AbstractContextManager[BinaryIO]) -> None:
        image = secrets.token_hex(16)
        self.store.create(image, name="bench", format="qcow2", properties={})
        with opened as data:
            self.store.upload(image, data, None, Deadline(600))
        self.store.delete(image)


@contextmanager
def place(size: int) -> Iterator[Place]:
    """A machine whose disk has so many MB of its own; it, its pool and all files are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="planvirt-bench-", dir="/var/tmp"))  # QEMU must reach it
    folder.chmod(0o711)
    config = HostConfig("bench", uri=URI, accel="tcg", pool=NAME, pool_path=folder / "pool")
    compute = LibvirtCompute(config, folder / "home")
    try:
        yield Place(compute, DirectoryStore("store", folder / "store"), folder, _machine(compute, folder, size))
    finally:
        _remove(compute, folder)


def _machine(compute: LibvirtCompute, folder: Path, size: int) -> str:
    base = folder / "base.qcow2"
    _run("qemu-img", "create", "-q", "-f", "qcow2", str(base), "1G")
    _write(base, folder, 100)
    image = compute.import_image(inspect(base, checksum=None, declared_format="qcow2"), Deadline(300))
    mark = Mark("bench", NAME, "r1", "0" * 64)
    disk = mark.volume("root")
    compute.create_volume(disk, size=4 << 30, format="qcow2", base=image.name, deadline=Deadline(60))
    _write(folder / "pool" / disk, folder, size)
    compute.define(Domain(NAME, instance_uuid("bench", NAME), 1, 64 << 20, mark, [AttachedDisk(disk)]))
    compute.start(NAME)
    return disk


def _write(disk: Path, folder: Path, size: int) -> None:
    """Put so many MB that cannot be compressed on a disk, in pieces."""
    pattern = folder / "pattern"
    pattern.write_bytes(secrets.token_bytes(8 * MB))
    commands = [
        word
        for start in range(0, size, 8)
        for word in ("-c", f"write -q -s {pattern} {start * MB} {min(8, size - start) * MB}")
    ]
    _run("qemu-io", "-f", "qcow2", *commands, str(disk))


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


def _remove(compute: LibvirtCompute, folder: Path) -> None:
    compute.undefine(NAME)
    compute.close()
    connection = libvirt.open(URI)
    pool = connection.storagePoolLookupByName(NAME)
    pool.destroy()
    pool.undefine()
    connection.close()
    shutil.rmtree(folder)


def measured(work: Callable[[], None], rounds: int) -> float:
    """The median of the seconds that it takes."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main(rounds: int, size: int) -> int:
    """Measure and compare."""
    try:
        LibvirtCompute(HostConfig("bench", uri=URI), Path(tempfile.gettempdir())).capabilities()
    except HostUnreachable as error:
        print(f"snapshots are not measured: {error}")
        return 0
    print(f"a disk of 4 GiB with {size} MB of its own, median of {rounds}")
    with place(size) as machine:
        ours = measured(machine.copy_of_ours, rounds)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // MB
        least = measured(machine.backup_and_cp, rounds)
        convert = measured(machine.convert_and_upload, rounds)
    for what, seconds in (("planvirt", ours), ("push backup + cp", least), ("qemu-img convert + upload", convert)):
        print(f"{what:<30} {seconds:6.2f} s   {seconds / least:5.2f} x push backup + cp")
    print(f"planvirt to push backup + cp: {ours / least:.2f} (goal: at most {GOAL})")
    print(f"memory: {memory} MB at the most (goal: at most {GOAL_MEMORY})")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=800, help="MB")
    arguments = parser.parse_args()
    sys.exit(main(arguments.rounds, arguments.size))
