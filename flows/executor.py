"""Where the work of a run is carried out: in threads here, or as Prefect tasks in flows/prefect_flow.py."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work with a name for people: a step, the undo of a step, or the commit of one.

    `attempt` is called with 1, 2, … and does its own waiting before a repeat; after an exception it is called again
    while attempts are left and `again` says that it makes sense.
    """

    key: str
    name: str
    attempt: Callable[[int], None]
    attempts: int = 1
    again: Callable[[BaseException], bool] = lambda _: False
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a piece of work, with the exception of its last attempt if it failed."""

    key: str
    error: BaseException | None


class Executor(Protocol):
    """Carries out work. `submit` returns at once; each end comes out of `finished`, in the order in which they end."""

    finished: "queue.SimpleQueue[Finished]"

    def submit(self, work: Work, after: Sequence[str]) -> None:
        """Begin the work now. `after` names the work that it followed, which only matters for pictures of the run."""


class ThreadExecutor:
    """Threads of this process, and nothing else: for rehearsals and tests."""

    def __init__(self, workers: int = 8, finished: "queue.SimpleQueue[Finished] | None" = None) -> None:
        self.finished: queue.SimpleQueue[Finished] = finished or queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="planvirt")

    def submit(self, work: Work, after: Sequence[str]) -> None:  # noqa: ARG002 - no pictures here
        """Run the work in the next free thread."""
        self._pool.submit(self._carry_out, work)

    def close(self) -> None:
        """Wait for what is still running."""
        self._pool.shutdown()

    def _carry_out(self, work: Work) -> None:
        error: BaseException | None = None
        for number in range(1, work.attempts + 1):
            try:
                work.attempt(number)
                error = None
                break
            except BaseException as raised:  # noqa: BLE001 - whoever waits for the work must hear of every end
                error = raised
                if not work.again(raised):
                    break
        self.finished.put(Finished(work.key, error))
