"""How a simulated host goes wrong when it is told to: it raises, hangs, or takes its whole process down."""

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

from drivers.errors import (
    DriverError,
    HostUnreachable,
    NameTaken,
    NotFound,
    OutOfSpace,
    Transient,
    Unsupported,
    WrongChecksum,
)
from planvirt.deadline import Deadline
from planvirt.errors import Conflict, PlanvirtError

_ERRORS: dict[str, type[PlanvirtError]] = {
    "transient": Transient,
    "error": DriverError,
    "conflict": Conflict,
    "name-taken": NameTaken,
    "not-found": NotFound,
    "unreachable": HostUnreachable,
    "unsupported": Unsupported,
    "out-of-space": OutOfSpace,
    "wrong-checksum": WrongChecksum,
}


@dataclass(slots=True)
class Fault:
    """What to do wrong at a call: wait `hang` seconds, die of SIGKILL, or raise `error`; `times` None means always.

    `call` is a method's name or "*". `name` is what it is called for (an instance, a volume, or the host), None for
    anything. `at` is before the effect, after it, or in the middle of a copy.
    """

    call: str
    name: str | None = None
    times: int | None = 1
    error: str | None = None
    kill: bool = False
    hang: float = 0.0
    at: Literal["before", "during", "after"] = "before"
    details: str = "the simulated world was told to fail"


def suffer(fault: Fault, call: str, name: str, deadline: Deadline | None) -> None:
    """Let the fault happen."""
    if fault.hang and deadline is not None:
        deadline.sleep(fault.hang)
    elif fault.hang:
        time.sleep(fault.hang)
    if fault.kill:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.error is not None or not fault.hang:
        kind = _ERRORS.get(fault.error or "transient", DriverError)
        raise kind(f"cannot {call.replace('_', ' ')} {name}", details=fault.details)
