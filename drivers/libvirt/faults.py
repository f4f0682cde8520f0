"""What libvirt's errors mean for planvirt. Every call into libvirt is made inside `translated`."""

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from drivers.errors import DriverError, HostUnreachable, NameTaken, NotFound, OutOfSpace, Transient, Unsupported
from planvirt.errors import Conflict, PlanvirtError

# fmt: off
_BY_CODE: dict[int, type[PlanvirtError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: NotFound,
    libvirt.VIR_ERR_NO_STORAGE_POOL: NotFound,
    libvirt.VIR_ERR_NO_STORAGE_VOL: NotFound,
    libvirt.VIR_ERR_NO_NETWORK: NotFound,
    libvirt.VIR_ERR_DOM_EXIST: NameTaken,
    libvirt.VIR_ERR_STORAGE_VOL_EXIST: Conflict,
    libvirt.VIR_ERR_OPERATION_INVALID: Conflict,     # the domain is in a state that does not allow it
    libvirt.VIR_ERR_OPERATION_DENIED: Conflict,
    libvirt.VIR_ERR_NO_SUPPORT: Unsupported,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: Transient,    # another job holds the domain's lock
    libvirt.VIR_ERR_RESOURCE_BUSY: Transient,
    libvirt.VIR_ERR_RPC: Transient,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: Transient,
    libvirt.VIR_ERR_AGENT_UNSYNCED: Transient,
    libvirt.VIR_ERR_NO_CONNECT: HostUnreachable,
    libvirt.VIR_ERR_INVALID_CONN: HostUnreachable,
}

# libvirt has no code of its own for these. The words come untranslated as long as the daemon's locale is C, which is
# what its service file and every distribution use.
_BY_TEXT: tuple[tuple[str, type[PlanvirtError]], ...] = (
    ("No space left on device", OutOfSpace),
    ("Disk quota exceeded", OutOfSpace),
    ("client socket is closed", Transient),          # the connection was lost during the call
    ("Cannot recv data", Transient),
    ("Cannot write data", Transient),
    ("End of file while reading data", Transient),
    ("Broken pipe", Transient),
    ("Connection reset by peer", Transient),
    ("keepalive timeout", Transient),
    ("asynchronous jobs running", Transient),        # the pool is being written to
    ("is still being allocated", Transient),
    ("is still in use", Transient),
    ("another migration job", Transient),
)
# fmt: on

_REMEDIES: dict[type[PlanvirtError], str] = {
    OutOfSpace: "make room where the host keeps its storage pool; 'planvirt doctor' tells how much there is",
}


def code_of(error: libvirt.libvirtError) -> int:
    """The error's number; some errors of the Python layer have none."""
    code = error.get_error_code()
    return -1 if code is None else int(code)


def kind_of(error: libvirt.libvirtError) -> type[PlanvirtError]:
    """The class that an error of libvirt belongs to."""
    return _kind(str(error), code_of(error))


def failed(what: str, details: str, code: int = -1) -> PlanvirtError:
    """What libvirt says of a failure, as an error of planvirt's. `what` completes "cannot …"."""
    kind = _kind(details, code)
    return kind(f"cannot {what}", details=details, resolution=_REMEDIES.get(kind, ""))


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn libvirt's errors into planvirt's. `what` completes "cannot …"."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise failed(what, str(error), code_of(error)) from error


def _kind(text: str, code: int) -> type[PlanvirtError]:
    for words, kind in _BY_TEXT:
        if words in text:
            return kind
    return _BY_CODE.get(code, DriverError)
