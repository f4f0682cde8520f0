"""A real libvirt host for tests: QEMU with a pool of the test's own, and a tiny guest that boots in it."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from drivers.compute import LocalImage
from drivers.libvirt.driver import LibvirtCompute
from planvirt.config import HostConfig
from planvirt.deadline import Deadline

URI = "qemu:///system"
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Guest:
    """The files of a guest, as scripts/build-guest.sh makes them."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.img"

    def imported(self, compute: LibvirtCompute) -> tuple[str, str]:
        """The names of the kernel and the initrd as volumes of the host."""
        first, second = (
            compute.import_file(path, sha256_of(path), Deadline(60)) for path in (self.kernel, self.initrd)
        )
        return first, second


def build_guest(folder: Path) -> Guest:
    subprocess.run([str(_REPOSITORY / "scripts/build-guest.sh"), str(folder)], check=True, capture_output=True)
    return Guest(folder)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def local_image(path: Path, format: str, virtual_size: int) -> LocalImage:
    assert format in {"qcow2", "raw"}
    return LocalImage(path, sha256_of(path), "qcow2" if format == "qcow2" else "raw", virtual_size)


@dataclass(frozen=True)
class QemuHost:
    """A driver for this machine's QEMU, and where its pool is."""

    compute: LibvirtCompute
    pool: str
    folder: Path
    uri: str = URI

    @contextmanager
    def door(self) -> Iterator[Any]:
        """A connection of the test's own, for what is done behind the driver's back."""
        connection = libvirt.open(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@contextmanager
def qemu_host(*, uri: str = URI, accel: str = "tcg", owner: int = -1) -> Iterator[QemuHost]:
    """A host with an empty pool. The pool and all in it are gone afterwards, and so are the domains on its disks.

    `owner` is the user that the daemon at `uri` runs as, if it is another one than us.
    """
    # QEMU runs as a user of its own and must get through: pytest's tmp_path is closed to it.
    top = Path(tempfile.mkdtemp(prefix="planvirt-test-", dir="/var/tmp"))
    top.chmod(0o711)
    os.chown(top, owner, -1)
    name = f"planvirt-test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    folder = top / "pool"
    assert accel in {"auto", "tcg"}
    config = HostConfig("host", uri=uri, accel="auto" if accel == "auto" else "tcg", pool=name, pool_path=folder)
    compute = LibvirtCompute(config, top / "home")
    try:
        compute.capabilities()
        compute._pool.handle()  # the pool is there from now on
        yield QemuHost(compute, name, folder, uri)
    finally:
        compute.close()
        _remove(uri, name, folder)
        shutil.rmtree(top)


def _remove(uri: str, name: str, folder: Path) -> None:
    connection = libvirt.open(uri)
    try:
        for domain in connection.listAllDomains():
            with suppress(libvirt.libvirtError):  # other tests' domains come and go meanwhile
                if str(folder) in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE):
                    if domain.isActive():
                        domain.destroy()
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        pool = connection.storagePoolLookupByName(name)
        pool.destroy()
        pool.undefine()
    finally:
        connection.close()
