"""Ctrl-C and SIGTERM while a run is on its way: the first asks for its end, the second gives even the rollback up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from flows.context import RunContext


class Signals:
    """What was heard. A handler may run in the middle of anything, so it only sets events; `tell` says it later."""

    def __init__(self, context: RunContext, say: Callable[[str], None]) -> None:
        self._context = context
        self._say = say
        self._told = 0

    def heard(self, _number: int, _frame: FrameType | None) -> None:
        """The handler."""
        (self._context.abandoned if self._context.interrupted.is_set() else self._context.interrupted).set()

    def tell(self) -> None:
        """Say what was heard since the last call."""
        run = self._context.run.id
        if self._told == 0 and self._context.interrupted.is_set():
            self._told = 1
            self._say(
                "interrupted: waiting for the steps on their way, then ending as the plan says (again to give up)"
            )
        if self._told == 1 and self._context.abandoned.is_set():
            self._told = 2
            self._say(f"giving up: 'planvirt rollback {run}' undoes later what is left")


@contextmanager
def interruptible(context: RunContext, say: Callable[[str], None]) -> Iterator[Signals]:
    """Turn signals into the context's two events. Outside the main thread signals are left as they are."""
    signals = Signals(context, say)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
