"""Power: starting, stopping, restarting, and waiting for what comes of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import libvirt

from drivers.errors import NotFound
from drivers.libvirt import console, instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.faults import code_of, translated
from drivers.libvirt.pool import Pool
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.states import State

# Events wake the waiting; this is for deadlines, cancellation and a lost event.
_LOOK = 0.5

_ALREADY = {libvirt.VIR_ERR_OPERATION_INVALID}


def start(pool: Pool, name: str) -> None:
    """Start a stopped instance; a running one stays as it is."""
    domain = instances.require_ours(pool.connection, name)
    state = instances.state_of(domain)
    if state is State.RUNNING:
        return
    if state in (State.PAUSED, State.SUSPENDED):
        raise Conflict(f"cannot start the instance {name}: it is {state}")
    console.forget_rotated(pool, domain.UUIDString())
    with translated(f"start the instance {name}"):
        tolerating_done(domain.create, lambda: bool(domain.isActive()))


def request_shutdown(connection: Connection, name: str) -> None:
    """Press the power button; a stopped instance stays as it is."""
    domain = instances.require_ours(connection, name)
    with translated(f"shut the instance {name} down"):
        tolerating_done(domain.shutdown, lambda: not domain.isActive())


def power_off(connection: Connection, name: str) -> None:
    """Pull the plug."""
    power_off_domain(instances.require_ours(connection, name))


def power_off_domain(domain: Any) -> None:
    """Pull the plug. A saved memory is given up: the instance is then stopped, not suspended."""
    with translated("power an instance off"):
        if domain.isActive():
            tolerating_done(domain.destroy, lambda: not domain.isActive())
        if domain.hasManagedSaveImage():
            domain.managedSaveRemove()


def tolerating_done(call: Callable[[], object], done: Callable[[], bool]) -> None:
    """Make the call; that somebody else was faster is no failure."""
    try:
        call()
    except libvirt.libvirtError as error:
        if code_of(error) not in _ALREADY or not done():
            raise


def reboot(pool: Pool, name: str, kind: Literal["soft", "hard"], deadline: Deadline) -> None:
    """Restart an instance and return when its guest has begun anew."""
    deadline.check()
    if kind == "hard":
        power_off(pool.connection, name)
        start(pool, name)
        return
    domain = instances.require_ours(pool.connection, name)
    if instances.state_of(domain) is not State.RUNNING:
        raise Conflict(f"cannot reboot the instance {name}: it is not running")
    with _listening(pool.connection, domain) as heard:
        with translated(f"reboot the instance {name}"):
            domain.reboot(0)
        while not heard.restarted.wait(_LOOK):
            deadline.check()
            instances.state_of(domain)  # raises when the connection died: nobody would tell of the restart any more
    with translated(f"read the console of {name}"):
        console.note_restart(pool, domain.UUIDString())


def wait_state(connection: Connection, name: str, states: frozenset[State], deadline: Deadline) -> State:
    """Return as soon as the instance is in one of the states."""
    domain = instances.find(connection, name)
    if domain is None:
        if State.ABSENT in states:
            return State.ABSENT
        raise NotFound(f"cannot wait for the instance {name}: there is none")
    with _listening(connection, domain) as heard:
        while True:
            heard.anything.clear()
            try:
                state = instances.state_of(domain)
            except NotFound:
                state = State.ABSENT
            if state in states:
                return state
            deadline.check()
            heard.anything.wait(_LOOK)


class _Heard:
    """What a domain's events said."""

    def __init__(self) -> None:
        self.anything = threading.Event()
        self.restarted = threading.Event()

    def lifecycle(self, _conn: Any, _domain: Any, event: int, _detail: int, _opaque: object) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            self.restarted.set()
        self.anything.set()

    def reboot(self, _conn: Any, _domain: Any, _opaque: object) -> None:
        self.restarted.set()
        self.anything.set()


@contextmanager
def _listening(connection: Connection, domain: Any) -> Iterator[_Heard]:
    """Listen to the events of a domain."""
    conn, heard = connection.get(), _Heard()
    ids: list[int] = []
    try:
        with translated("listen to an instance"):
            for kind, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, heard.lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, heard.reboot),
            ):
                ids.append(conn.domainEventRegisterAny(domain, kind, callback, None))
        yield heard
    finally:
        for each in ids:
            with suppress(libvirt.libvirtError):  # the connection died, and the registration with it
                conn.domainEventDeregisterAny(each)
