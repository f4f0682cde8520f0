"""The storage pool that planvirt keeps its volumes in: made on first use, told when files appear behind its back."""

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import libvirt

from drivers.errors import DriverError, Transient
from drivers.libvirt.connection import Connection
from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import code_of, translated
from planvirt.config import HostConfig
from planvirt.deadline import Deadline

_SYSTEM_PATH = Path("/var/lib/libvirt/images")
_SESSION_PATH = Path(".local/share/libvirt/images")

# How long a refresh waits for somebody else's volume to be written; libvirt refuses it meanwhile.
_REFRESH_PATIENCE = 5.0


class Pool:
    """The pool of one host."""

    def __init__(self, connection: Connection, config: HostConfig) -> None:
        self.connection = connection
        self.name = config.pool
        self._wanted_path = config.pool_path
        self._lock = threading.Lock()
        self.restarts: dict[str, int] = {}  # where in its console a guest began anew, by UUID

    def handle(self) -> Any:
        """The running virStoragePool; it is defined, built and started when it is not."""
        conn = self.connection.get()
        with self._lock, translated(f"open the storage pool {self.name}"):
            try:
                pool = conn.storagePoolLookupByName(self.name)
            except libvirt.libvirtError as error:
                if code_of(error) != libvirt.VIR_ERR_NO_STORAGE_POOL:
                    raise
                pool = self._define(conn)
            if not pool.isActive():
                _start(pool)
            return pool

    def path(self) -> Path:
        """The pool's folder on the host."""
        with translated(f"read the storage pool {self.name}"):
            path = parse(self.handle().XMLDesc()).findtext("target/path")
        if not path:
            raise DriverError(
                f"cannot use the storage pool {self.name}: it is no folder",
                resolution="name a pool of type 'dir' in planvirt.toml, or one that does not exist yet",
            )
        return Path(path)

    def place(self) -> Path:
        """The pool's folder on the host, also where it is yet to be made."""
        if self.existing() is not None:
            return self.path()
        return self._wanted_path or self._default_path(self.connection.get())

    def free_space(self) -> int:
        """Bytes left in the pool; where it is yet to be made, in the folder that it will be in."""
        pool = self.existing()
        if pool is not None:
            with translated(f"read the storage pool {self.name}"):
                return int(pool.info()[3])
        place = self._wanted_path or self._default_path(self.connection.get())
        while self.connection.is_local() and place != place.parent:
            with suppress(OSError):
                return shutil.disk_usage(place).free
            place = place.parent
        return 0

    def refresh(self) -> None:
        """Make libvirt see files that came and went without it."""
        patience = Deadline(_REFRESH_PATIENCE)
        while True:
            try:
                with translated(f"refresh the storage pool {self.name}"):
                    self.handle().refresh(0)
                    return
            except Transient:
                if patience.left() == 0.0:
                    raise
                patience.sleep(0.1)

    def listed(self) -> dict[str, Any]:
        """All its virStorageVols by name, also those that a dead process left behind; none where there is no pool."""
        handle = self.existing()
        if handle is None:
            return {}
        with suppress(Transient):  # somebody writes to the pool for long; libvirt's present view is good enough
            self.refresh()
        with translated(f"list the volumes of the pool {self.name}"):
            return {str(volume.name()): volume for volume in handle.listAllVolumes()}

    def lookup(self, name: str) -> Any | None:
        """The virStorageVol of that name, or None.

        A miss is believed only after a refresh: a backup job that nobody waited for has put its file into the folder
        without libvirt's storage knowing, and making a volume of that name would overwrite it.
        """
        found = self._listed(name)
        if found is None:
            try:
                self.refresh()
            except Transient:  # a long copy is going on in the pool
                if not self.connection.is_local() or (self.path() / name).exists():
                    raise
            found = self._listed(name)
        return found

    def _listed(self, name: str) -> Any | None:
        pool = self.handle()
        with translated(f"look for the volume {name}"):
            try:
                return pool.storageVolLookupByName(name)
            except libvirt.libvirtError as error:
                if code_of(error) != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise
                return None

    def elsewhere(self, name: str) -> Any | None:
        """The virStorageVol of that name in another pool of the host, or None."""
        with translated(f"look for the volume {name}"):
            for pool in self.connection.get().listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
                with suppress(libvirt.libvirtError):  # not in this one
                    return pool.storageVolLookupByName(name)
        return None

    def existing(self) -> Any | None:
        """The running virStoragePool, or None where there is none yet: whoever only reads must not make one."""
        with translated(f"look for the storage pool {self.name}"):
            try:
                pool = self.connection.get().storagePoolLookupByName(self.name)
            except libvirt.libvirtError as error:
                if code_of(error) != libvirt.VIR_ERR_NO_STORAGE_POOL:
                    raise
                return None
            return pool if pool.isActive() else None

    def local_folder(self) -> Path | None:
        """The pool's folder, when this process may write to it and the daemon is on this machine."""
        if self.connection.hypervisor() == "TEST" or not self.connection.is_local():
            return None
        path = self.path()
        return path if os.access(path, os.W_OK | os.X_OK) else None

    def _define(self, conn: Any) -> Any:
        root = ET.Element("pool", type="dir")
        ET.SubElement(root, "name").text = self.name
        target = ET.SubElement(root, "target")
        ET.SubElement(target, "path").text = str(self._wanted_path or self._default_path(conn))
        permissions = ET.SubElement(target, "permissions")
        ET.SubElement(permissions, "mode").text = "0711"  # QEMU runs as another user and must reach its disks
        try:
            pool = conn.storagePoolDefineXML(ET.tostring(root, encoding="unicode"))
        except libvirt.libvirtError:
            return conn.storagePoolLookupByName(self.name)  # another process was faster
        try:
            pool.build(0)
            pool.setAutostart(True)
        except libvirt.libvirtError as error:
            if code_of(error) != libvirt.VIR_ERR_NO_SUPPORT:
                pool.undefine()
                raise
        return pool

    def _default_path(self, conn: Any) -> Path:
        uri = urlsplit(str(conn.getURI()))
        if uri.path != "/session" or (os.getuid() == 0 and not uri.hostname):  # root's session is the system
            return _SYSTEM_PATH / self.name
        if uri.hostname:
            raise DriverError(
                f"cannot make the storage pool {self.name}: the home folder on {uri.hostname} is not known",
                resolution="give the host a pool_path in planvirt.toml",
            )
        return Path.home() / _SESSION_PATH / self.name


def _start(pool: Any) -> None:
    try:
        pool.create(0)
    except libvirt.libvirtError:
        if not pool.isActive():  # another process was faster
            raise
