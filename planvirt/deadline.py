"""How long a call may take, and how it hears that nobody waits for it any more.

Python cannot interrupt a C call in a thread, so whoever does long work asks the deadline between its outside calls and
sleeps only through it.
"""

import threading
import time
from collections.abc import Callable


class DeadlinePassed(Exception):
    """The time is up, or the run was cancelled: stop here, touch nothing more."""


class Deadline:
    """A limit in seconds (None: no limit), an interruption that ends it early, and a place to tell progress."""

    def __init__(
        self,
        seconds: float | None = None,
        *,
        interrupted: threading.Event | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._interrupted = interrupted or threading.Event()
        self._on_progress = on_progress

    @property
    def over(self) -> bool:
        """Whether the time is up or the work was interrupted."""
        return self._interrupted.is_set() or self.left() == 0.0

    def left(self) -> float | None:
        """Seconds left, never below zero; None when there is no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def within(self, seconds: float) -> "Deadline":
        """A deadline in so many seconds, or at this one's end if that is earlier, with the same interruption."""
        left = self.left()
        return Deadline(
            seconds if left is None else min(seconds, left),
            interrupted=self._interrupted,
            on_progress=self._on_progress,
        )

    def cancel(self) -> None:
        """Interrupt everything that shares this deadline's interruption."""
        self._interrupted.set()

    def check(self) -> None:
        """Raise DeadlinePassed when the time is up or the work was interrupted."""
        if self._interrupted.is_set():
            raise DeadlinePassed("interrupted")
        if self.left() == 0.0:
            raise DeadlinePassed("time is up")

    def sleep(self, seconds: float) -> None:
        """Wait that long, or until the deadline, which raises DeadlinePassed, at once when interrupted."""
        left = self.left()
        self._interrupted.wait(seconds if left is None else min(seconds, left))
        self.check()

    def progress(self, done: int, total: int) -> None:
        """Tell how far the work is, in bytes, and notice that nobody waits for it any more."""
        self.check()
        if self._on_progress is not None:
            self._on_progress(done, total)
