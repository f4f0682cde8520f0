"""What a driver may raise. A driver says whether a fault may pass by itself; the plan says how often to try again."""

from planvirt.errors import Conflict, PlanvirtError


class DriverError(PlanvirtError):
    """The call failed and would fail again."""


class Transient(DriverError):
    """The call failed for a reason that may pass: a lost connection, a busy daemon, a lock held for a moment."""


class NotFound(DriverError):
    """The thing is not there."""


class Unsupported(DriverError):
    """This driver, or this hypervisor, cannot do it."""


class NotFrozen(Unsupported):
    """The guest's file systems could not be frozen, and are not."""


class NoAgent(Transient):
    """No agent answers in the guest, so nothing was begun there."""


class HostUnreachable(Transient):
    """No connection to the host's hypervisor."""


class NameTaken(Conflict):
    """The name belongs to something that planvirt did not make."""


class WrongChecksum(DriverError):
    """The data is not what the plan, or the store, says it is."""


class OutOfSpace(DriverError):
    """No space is left where the data should go."""
