"""File systems of a guest that stand still for a moment. A guest that is left frozen is as good as broken: it is thawed
whatever happens, also when its agent is slow or the connection was lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import libvirt

from drivers.errors import DriverError, NotFrozen, Transient
from drivers.libvirt import instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.faults import code_of, kind_of
from planvirt.deadline import Deadline
from planvirt.states import State

_ANSWER_PATIENCE = 20  # seconds that a guest's agent may take to freeze or thaw
_THAW_PATIENCE = 60.0  # seconds that an agent which may be freezing yet gets to thaw again
_REFUSALS = 3  # answers other than the wanted one that a thaw believes
_LOOK = 0.2  # seconds between two attempts

# Of an agent that has frozen nothing, and never will.
_CANNOT_FREEZE = ("is not connected", "is not configured", "has been disabled", "has not been found")


@contextmanager
def frozen(connection: Connection, name: str) -> Iterator[None]:
    """Freeze the guest's file systems for the moment of the block. They are thawed whatever happens."""
    try:
        _freeze(connection, name)
    except NotFrozen as error:
        if _is_unanswered(error.__cause__):
            thaw(connection, name)  # it may freeze yet
        else:
            with suppress(DriverError):  # the agent has said that nothing is frozen
                thaw(connection, name)
        raise
    except BaseException:
        thaw(connection, name)
        raise
    try:
        yield
    finally:
        thaw(connection, name)


def _freeze(connection: Connection, name: str) -> None:
    domain = instances.require(connection, name)
    try:
        domain.agentSetResponseTimeout(_ANSWER_PATIENCE, 0)
        domain.fsFreeze(None, 0)
    except libvirt.libvirtError as error:
        lost = issubclass(kind_of(error), Transient) and not _is_unanswered(error)
        raise (Transient if lost else NotFrozen)(
            "cannot freeze the guest's file systems",
            details=str(error),
            resolution="install and start qemu-guest-agent in the guest, or let the snapshot go without a freeze",
        ) from error


def _is_unanswered(error: BaseException | None) -> bool:
    return isinstance(error, libvirt.libvirtError) and code_of(error) in {
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
        libvirt.VIR_ERR_AGENT_UNSYNCED,
    }


def thaw(connection: Connection, name: str) -> None:
    """Thaw what is frozen in the guest, and do not rest before that."""
    patience, refusals = Deadline(_THAW_PATIENCE), 0
    while True:
        try:
            domain = instances.find(connection, name)
            if domain is None or instances.state_of(domain) is not State.RUNNING:
                return
            domain.agentSetResponseTimeout(_ANSWER_PATIENCE, 0)
            domain.fsThaw(None, 0)
        except (libvirt.libvirtError, Transient) as error:
            if any(words in str(error) for words in _CANNOT_FREEZE):
                return
            answered = isinstance(error, libvirt.libvirtError) and kind_of(error) is DriverError
            refusals += answered
            if patience.over or refusals == _REFUSALS:
                raise (DriverError if answered else Transient)(
                    f"cannot thaw the file systems of {name}: they may be frozen",
                    details=str(error),
                    resolution=f"see what holds the guest's agent up; 'virsh domfsthaw {name}' thaws by hand",
                ) from error
            patience.sleep(_LOOK)
        else:
            return
