"""Walking a graph of work: what is ready begins, side by side where the graph allows, until all has ended."""

import heapq
import queue
from collections import defaultdict
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
    workers: int,
    may_begin: Callable[[str, Collection[str]], bool] = lambda _key, _running: True,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, BaseException | None]:
    """Carry out the work of every key, each after what it needs, and return how each that began has ended.

    `order` is a topological one; needs outside it count as met. No more than `workers` are handed to the executor at a
    time, so that with "stop" nothing begins after an error; with "go on" an end is an end. `may_begin` holds a key back
    while others are running. The result is in the order of ends: the first error in it is the first that happened.
    """
    waiting = _Waiting(order, needs)
    running: set[str] = set()
    ended: dict[str, BaseException | None] = {}
    halted = False
    while True:
        halted = halted or stop()
        if not halted:
            while len(running) < workers and (key := waiting.take(lambda key: may_begin(key, running))) is not None:
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
        waiting.met(finished.key)
        halted = halted or (finished.error is not None and on_error == "stop")


class _Waiting:
    """What has not begun, with how many needs of each are still open."""

    def __init__(self, order: Sequence[str], needs: Mapping[str, Collection[str]]) -> None:
        self._place = {key: place for place, key in enumerate(order)}
        self._order = order
        self._open = {key: sum(need in self._place for need in set(needs[key])) for key in order}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        for key in order:
            for need in set(needs[key]):
                self._dependents[need].append(key)
        self._ready = [self._place[key] for key in order if not self._open[key]]

    def met(self, need: str) -> None:
        """Something has ended: what waited for it alone is ready."""
        for key in self._dependents[need]:
            self._open[key] -= 1
            if not self._open[key]:
                heapq.heappush(self._ready, self._place[key])

    def take(self, may_begin: Callable[[str], bool]) -> str | None:
        """The first ready key that may begin, which then waits no longer; None when there is none."""
        held: list[int] = []
        found: str | None = None
        while self._ready and found is None:
            place = heapq.heappop(self._ready)
            if may_begin(self._order[place]):
                found = self._order[place]
            else:
                held.append(place)
        for place in held:
            heapq.heappush(self._ready, place)
        return found
