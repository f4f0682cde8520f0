"""Guests that stand still and keep their memory: paused, or saved to the host's disk."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import code_of, translated
from drivers.libvirt.power import tolerating_done
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.states import State

_LOOK = 0.2  # seconds between two looks at work that sends no events

# On the way to disk, or back from there: nothing else can be done to the guest meanwhile.
_MOVING = {libvirt.VIR_DOMAIN_PAUSED_SAVE, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP}


def pause(connection: Connection, name: str) -> None:
    """Stop a running guest in its tracks."""
    domain = instances.require_ours(connection, name)
    if _is(domain, name, "pause", State.PAUSED, (State.RUNNING,)):
        return
    with translated(f"pause the instance {name}"):
        tolerating_done(domain.suspend, lambda: instances.state_of(domain) is State.PAUSED)


def unpause(connection: Connection, name: str) -> None:
    """Let a paused guest go on."""
    domain = instances.require_ours(connection, name)
    if _is(domain, name, "unpause", State.RUNNING, (State.PAUSED,)):
        return
    with translated(f"unpause the instance {name}"):
        tolerating_done(domain.resume, lambda: instances.state_of(domain) is State.RUNNING)


def suspend(connection: Connection, name: str, deadline: Deadline) -> None:
    """Save a guest's memory. libvirt lets the guest go on when the saving is aborted."""
    domain = instances.require_ours(connection, name)
    _settle(domain, deadline)
    if _is(domain, name, "suspend", State.SUSPENDED, (State.RUNNING, State.PAUSED)):
        return
    with translated(f"suspend the instance {name}"), _aborting(domain, deadline):
        domain.managedSave(0)


def resume(connection: Connection, name: str, deadline: Deadline) -> None:
    """Go on from saved memory; libvirt has saved with it whether the guest was paused."""
    domain = instances.require_ours(connection, name)
    _settle(domain, deadline)
    if instances.state_of(domain) is State.PAUSED:
        return
    if _is(domain, name, "resume", State.RUNNING, (State.SUSPENDED,)):
        return
    with translated(f"resume the instance {name}"):
        if domain.isActive():  # the guest itself went to sleep, in its memory
            domain.pMWakeup()
        else:
            _keep_console(domain)
            domain.create()


def _is(domain: Any, name: str, verb: str, wanted: State, allowed: tuple[State, ...]) -> bool:
    """Whether the domain is in the wanted state; Conflict when there is no way from its state to that."""
    state = instances.state_of(domain)
    if state is not wanted and state not in allowed:
        raise Conflict(f"cannot {verb} the instance {name}: it is {state}")
    return state is wanted


def _settle(domain: Any, deadline: Deadline) -> None:
    """Let end what somebody who is gone has begun: libvirt goes on without its caller."""
    while True:
        with translated("read an instance's state"):
            state, reason = domain.state()
        deadline.check()
        if state != libvirt.VIR_DOMAIN_PAUSED or reason not in _MOVING:
            return
        deadline.sleep(_LOOK)


@contextmanager
def _aborting(domain: Any, deadline: Deadline) -> Iterator[None]:
    """Abort the domain's job when the deadline passes; the error of the call is then DeadlinePassed."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK):
            if deadline.over:
                with suppress(libvirt.libvirtError):  # it ends just now, or cannot be aborted
                    domain.abortJob()

    watcher = threading.Thread(target=watch, name="watches a job", daemon=True)
    watcher.start()
    try:
        yield
    except libvirt.libvirtError:
        deadline.check()
        raise
    finally:
        done.set()
        watcher.join()


def _keep_console(domain: Any) -> None:
    """Have what the guest writes put behind what it wrote: libvirt would begin a new file, as at a start."""
    try:
        root = parse(domain.managedSaveGetXMLDesc(0))
    except libvirt.libvirtError as error:
        if code_of(error) != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return
    for log in root.iterfind("devices/*/log"):
        log.set("append", "on")
    domain.managedSaveDefineXML(ET.tostring(root, encoding="unicode"), 0)
