"""Devices that come to an instance and go from it, while its guest runs too. A guest has to let go of a device, and
may take its time, or be deaf to the request because it is still booting.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt.connection import Connection
from drivers.libvirt.faults import code_of, translated
from drivers.libvirt.hardware import definition, running
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

# The device in a domain's tree, if the domain has it.
Find = Callable[[ET.Element], ET.Element | None]

_LOOK = 0.2  # seconds; events wake the waiting, this is for deadlines and a lost event
_ASK_AGAIN = 3.0  # seconds after which a guest that keeps the device is asked again

_CHANGES = (
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
)

_NO_PORT = "No more available PCI slots"
_ASKED_ALREADY = "in the process of unplug"


def attach(domain: Any, xml: str, find: Find, what: str) -> None:
    """Give the domain a device, where its definition or its guest lacks it. `what` completes "cannot …"."""
    live = running(domain)
    flags = 0
    if find(definition(domain)) is None:
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if live is not None and find(live) is None:
        flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
    if not flags:
        return
    with translated(what):
        try:
            domain.attachDeviceFlags(xml, flags)
        except libvirt.libvirtError as error:
            if _NO_PORT not in str(error):
                raise
            raise Conflict(
                f"cannot {what}: it has no free port for another device",
                details=str(error),
                resolution="stop it first, or detach something else",
            ) from error


def detach(connection: Connection, domain: Any, find: Find, what: str, deadline: Deadline) -> None:
    """Take a device from the guest and, when that has let go of it, from the definition."""
    deadline.check()
    if _in_guest(domain, find) is not None:
        _unplug(connection, domain, find, what, deadline)
    device = find(definition(domain))
    if device is not None:
        with translated(what):
            domain.detachDeviceFlags(ET.tostring(device, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def _in_guest(domain: Any, find: Find) -> str | None:
    """What libvirt calls the device of the running guest, if it has it."""
    live = running(domain)
    device = None if live is None else find(live)
    alias = None if device is None else device.find("alias")
    return None if alias is None else alias.get("name")


def _unplug(connection: Connection, domain: Any, find: Find, what: str, deadline: Deadline) -> None:
    with _changes(connection, domain) as changed:
        while (alias := _in_guest(domain, find)) is not None:
            with translated(what):
                _ask(domain, alias)
            patience = Deadline(_ASK_AGAIN)
            while not patience.over and _in_guest(domain, find) is not None:
                deadline.check()
                changed.wait(_LOOK)
                changed.clear()


def _ask(domain: Any, alias: str) -> None:
    """Ask the guest to let go. That it was asked before, or has just done it, is no failure."""
    try:
        domain.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        gone = code_of(error) == libvirt.VIR_ERR_DEVICE_MISSING or not domain.isActive()
        if not gone and _ASKED_ALREADY not in str(error):
            raise


@contextmanager
def _changes(connection: Connection, domain: Any) -> Iterator[threading.Event]:
    """Listen to what becomes of the domain's devices, and of itself."""
    conn, changed = connection.get(), threading.Event()
    ids: list[int] = []
    try:
        with translated("listen to an instance"):
            for kind in _CHANGES:
                number = conn.domainEventRegisterAny(domain, kind, lambda *_event: changed.set(), None)
                ids.append(number)
        yield changed
    finally:
        for each in ids:
            with suppress(libvirt.libvirtError):  # the connection died, and the registration with it
                conn.domainEventDeregisterAny(each)
