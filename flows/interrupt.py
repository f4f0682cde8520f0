"""Ctrl-C and SIGTERM while a run is on its way: the first asks for the rollback, the second gives even that up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from flows.context import RunContext


@contextmanager
def interruptible(context: RunContext, say: Callable[[str], None]) -> Iterator[None]:
    """Turn signals into the context's two events. Outside the main thread signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        if not context.interrupted.is_set():
            context.interrupted.set()
            say("interrupted: ending the steps on their way, then undoing what was done (once more to give up)")
        elif not context.abandoned.is_set():
            context.abandoned.set()
            say(f"giving up: 'planvirt rollback {context.run.id}' undoes the rest later")

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
