"""One connection to a host's libvirt: opened when it is first needed, watched, and opened anew when it died."""

import os
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import libvirt

from drivers.errors import HostUnreachable
from drivers.libvirt.faults import code_of

_KEEPALIVE_SECONDS = 5
_KEEPALIVE_MISSES = 5


def _say_nothing(_context: object, _error: object) -> None:
    """Errors arrive as exceptions; libvirt would also print each of them to stderr."""


class _EventLoop:
    """libvirt's event loop: one per process, in a thread that dies with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0  # a child made by fork has no thread of ours

    def ensure(self) -> None:
        """Start the loop unless it runs in this process. It must be there before the first connection."""
        with self._lock:
            if self._pid == os.getpid():
                return
            libvirt.registerErrorHandler(_say_nothing, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=self._turn, name="libvirt-events", daemon=True).start()
            self._pid = os.getpid()

    def _turn(self) -> None:
        while True:
            libvirt.virEventRunDefaultImpl()


_EVENTS = _EventLoop()


class Connection:
    """A connection that is there whenever it is asked for. `uri` is "auto", or what libvirt takes."""

    def __init__(self, uri: str, host: str = "") -> None:
        self.uri = uri
        self._host = host  # its name in the configuration, for messages
        self._lock = threading.Lock()
        self._open: Any = None
        self._pid = 0

    def get(self) -> Any:
        """The live virConnect. Raises HostUnreachable."""
        with self._lock:
            if self._open is not None and self._pid == os.getpid() and _lives(self._open):
                return self._open
            _EVENTS.ensure()
            self._drop()
            try:
                self._open, self._pid = _open(self.uri), os.getpid()
            except HostUnreachable as error:
                if self._host:
                    error.brief = error.brief.replace("cannot reach", f"cannot reach host {self._host} at", 1)
                raise
            return self._open

    def close(self) -> None:
        """Give the connection back. The next `get` opens another one."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._open is not None and self._pid == os.getpid():
            with suppress(libvirt.libvirtError):  # it is dead already
                self._open.close()
        self._open = None

    def hypervisor(self) -> str:
        """libvirt's name for the kind of hypervisor: "QEMU", "TEST", …"""
        return str(self.get().getType()).upper()

    def is_local(self) -> bool:
        """Whether the daemon is on this machine. A tunnelled socket would lie; who uses a path must verify it."""
        return not urlsplit(str(self.get().getURI())).hostname


def _lives(conn: Any) -> bool:
    try:
        return bool(conn.isAlive())
    except libvirt.libvirtError:
        return False


def _open(uri: str) -> Any:
    if uri != "auto":
        return _open_one(uri)
    try:
        return _open_one("qemu:///system")
    except HostUnreachable:
        return _open_one("qemu:///session")


def _open_one(uri: str) -> Any:
    try:
        conn = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise HostUnreachable(
            f"cannot reach {_without_parameters(uri)}", details=str(error), resolution=_remedy(uri, error)
        ) from error
    with suppress(libvirt.libvirtError):  # the test hypervisor has no connection to keep alive
        conn.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_MISSES)
    return conn


def _remedy(uri: str, error: libvirt.libvirtError) -> str:
    parts = urlsplit(uri)
    text = str(error)
    if code_of(error) in {libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED} or "ermission denied" in text:
        return "add your user to the group: 'sudo usermod -aG libvirt $USER', then log in again"
    if parts.scheme.startswith("test"):
        return "check that the file exists and holds libvirt's <node> document"
    if parts.hostname:
        return f"check that the host answers: 'virsh -c {_without_parameters(uri)} version'"
    if "socket=" in parts.query:
        return "check the socket that the host's uri in planvirt.toml names, and that its daemon runs"
    if parts.path == "/session":
        return "install libvirt's daemon and QEMU for your distribution (libvirt-daemon, qemu-system)"
    return "start libvirt: 'sudo systemctl start libvirtd'"


def _without_parameters(uri: str) -> str:
    """URI parameters may hold paths to keys; they are not for messages."""
    return uri.partition("?")[0]
