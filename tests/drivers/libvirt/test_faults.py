"""libvirt's errors as planvirt's."""

import libvirt
import pytest

from drivers.errors import DriverError, HostUnreachable, NameTaken, NotFound, OutOfSpace, Transient, Unsupported
from drivers.libvirt.faults import translated
from planvirt.errors import Conflict, PlanvirtError


def error(code: int, text: str) -> libvirt.libvirtError:
    made = libvirt.libvirtError(text)
    made.err = (code, 0, text, 2, None, None, None, 0, 0)
    return made


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (libvirt.VIR_ERR_NO_DOMAIN, "Domain not found", NotFound),
        (libvirt.VIR_ERR_NO_STORAGE_VOL, "Storage volume not found", NotFound),
        (libvirt.VIR_ERR_DOM_EXIST, "domain exists", NameTaken),
        (libvirt.VIR_ERR_OPERATION_INVALID, "domain is not running", Conflict),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock", Transient),
        (libvirt.VIR_ERR_OPERATION_INVALID, "volume 'x' is still in use.", Transient),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "pool 'x' has asynchronous jobs running.", Transient),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "client socket is closed", Transient),
        (libvirt.VIR_ERR_SYSTEM_ERROR, "Cannot recv data: Connection reset by peer", Transient),
        (libvirt.VIR_ERR_INVALID_CONN, "invalid connection pointer", HostUnreachable),
        (libvirt.VIR_ERR_NO_SUPPORT, "this function is not supported", Unsupported),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, "unsupported configuration", Unsupported),
        (libvirt.VIR_ERR_SYSTEM_ERROR, "cannot write: No space left on device", OutOfSpace),
        (libvirt.VIR_ERR_XML_ERROR, "XML error", DriverError),
    ],
)
def test_kinds(code: int, text: str, kind: type[PlanvirtError]) -> None:
    with pytest.raises(PlanvirtError) as caught, translated("do it"):
        raise error(code, text)
    assert type(caught.value) is kind
    assert (caught.value.brief, caught.value.details) == ("cannot do it", text)
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated("do it"):
        raise ZeroDivisionError
