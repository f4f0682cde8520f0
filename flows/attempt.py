"""One attempt at something that may hang: it ends in time, whatever the code that it calls does."""

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from drivers.errors import DriverError, Transient
from planvirt.deadline import Deadline, DeadlinePassed

T = TypeVar("T")

_GLANCE = 0.25  # seconds between two looks at whether the run was interrupted
_LINGER = 5.0  # seconds that a call which noticed the deadline gets to clean up after itself


class StepTimeout(Transient):
    """The step took longer than the plan allows."""


class StepInterrupted(DriverError):
    """Somebody ended the run while the step was on its way."""


class StillRunning(Transient):
    """A call that nobody waits for any more has not come back yet, so nothing else may be done to its instance."""


class Attempts:
    """Runs a step's attempts, each in a thread of its own, and remembers the one that did not come back.

    Python cannot interrupt a call into a C library. After a time-out the thread is left behind; it stops at its next
    look at the deadline, and no further attempt or undo begins before it has.
    """

    def __init__(self) -> None:
        self._left_behind: threading.Thread | None = None

    def carry_out(self, body: Callable[[], T], deadline: Deadline, what: str) -> T:
        """Return what `body` returns. Raises StepTimeout when the deadline passes first, even while `body` hangs."""
        self.settle(what)
        result: list[T] = []
        raised: list[BaseException] = []
        context = contextvars.copy_context()

        def guarded() -> None:
            try:
                result.append(context.run(body))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
                raised.append(error)

        thread = threading.Thread(target=guarded, name=what, daemon=True)
        thread.start()
        self._join(thread, deadline)
        if thread.is_alive():
            self._left_behind = thread
            raise StepTimeout(
                f"cannot finish '{what}' in time",
                details="the call to the host has not come back",
                resolution="give the step a longer 'timeout', or see whether the host hangs with 'planvirt doctor'",
            )
        if raised and isinstance(raised[0], DeadlinePassed):
            if deadline.left() != 0.0:
                raise StepInterrupted(f"cannot finish '{what}': it was interrupted") from raised[0]
            raise StepTimeout(
                f"cannot finish '{what}' in time",
                details=str(raised[0]),
                resolution="give the step a longer 'timeout', or see what holds it up",
            ) from raised[0]
        if raised:
            raise raised[0]
        return result[0]

    def settle(self, what: str) -> None:
        """Wait a moment for a call that was left behind. Raises StillRunning when it still has not come back."""
        if self._left_behind is None:
            return
        self._left_behind.join(_LINGER)
        if self._left_behind.is_alive():
            raise StillRunning(
                f"cannot go on with '{what}': an earlier call to the host has not come back",
                resolution="see whether the host hangs with 'planvirt doctor'",
            )
        self._left_behind = None

    def _join(self, thread: threading.Thread, deadline: Deadline) -> None:
        while thread.is_alive() and not deadline.over:
            left = deadline.left()
            thread.join(_GLANCE if left is None else min(_GLANCE, left))
        if thread.is_alive():
            thread.join(_LINGER)
