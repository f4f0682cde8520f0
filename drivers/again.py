"""A piece of an upload is sent again when it did not arrive.

Nothing else in drivers tries twice: the plan says how often a step is. But the data of an upload can be read only
once, and one lost connection in a million megabytes should not cost the whole.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from drivers.errors import Transient, WrongChecksum
from planvirt.deadline import Deadline

_TRIES = 3
_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 5.0

T = TypeVar("T")


class Busy(Transient):
    """The server answers, but cannot now; it may say in how many seconds it can."""

    def __init__(self, brief: str, *, after: float | None = None, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.after = after


class Damaged(WrongChecksum):
    """The server took nothing, as what arrived there is not what was sent."""


def again(deadline: Deadline, send: Callable[[], T]) -> T:
    """Call `send` until it does not fail for a reason that may pass, three times at most."""
    for _ in range(_TRIES - 1):
        deadline.check()
        try:
            return send()
        except (Transient, Damaged) as error:
            asked = error.after if isinstance(error, Busy) else None
            deadline.sleep(_PAUSE if asked is None else min(asked, _LONGEST_PAUSE))
    deadline.check()
    try:
        return send()
    except Transient:
        deadline.check()
        raise


def retry_after(header: str | None) -> float | None:
    """How many seconds a Retry-After asks for: it holds a number or a date. None when it says nothing."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (date.astimezone(UTC) - datetime.now(UTC)).total_seconds())
