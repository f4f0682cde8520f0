"""Walking a graph of work: what is ready begins, side by side where the graph allows, until all has ended."""

import queue
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from flows.executor import Executor, Work

_GLANCE = 0.1  # seconds between two looks at whether to stop


def walk(
    order: Sequence[str],
    needs: Mapping[str, Collection[str]],
    work: Callable[[str], Work],
    executor: Executor,
    *,
    on_error: Literal["stop", "go on"],
    may_begin: Callable[[str, Collection[str]], bool] = lambda _key, _running: True,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, BaseException | None]:
    """Carry out the work of every key, each after what it needs, and return how each that began has ended.

    With "stop" nothing new begins after an error; with "go on" an end is an end. `may_begin` holds a key back while
    others are running. The result is in the order of ends, so that the first error is the first one found in it.
    """
    waiting = list(order)
    running: set[str] = set()
    ended: dict[str, BaseException | None] = {}
    halted = False
    while True:
        halted = halted or stop()
        if not halted:
            for key in [key for key in waiting if all(need in ended for need in needs[key])]:
                if may_begin(key, running):
                    waiting.remove(key)
                    running.add(key)
                    executor.submit(work(key), [need for need in needs[key] if need in ended])
        if not running:
            return ended
        try:
            finished = executor.finished.get(timeout=_GLANCE)
        except queue.Empty:
            continue
        running.discard(finished.key)
        ended[finished.key] = finished.error
        halted = halted or (finished.error is not None and on_error == "stop")
