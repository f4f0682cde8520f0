"""How the calls of a simulated host go: on its world, with the faults that are due, and in the time that they take."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from drivers.simulated.faults import suffer
from drivers.simulated.guards import reserve
from drivers.simulated.world import Volume, World, Worlds
from planvirt.deadline import Deadline
from planvirt.mark import is_cached

TICK = 0.02  # seconds between two looks at something that takes time


class Calls:
    """The calls to one host."""

    def __init__(self, worlds: Worlds, clock: Callable[[], float]) -> None:
        self._worlds = worlds
        self._clock = clock

    @contextmanager
    def world(self) -> Iterator[World]:
        """The world itself, to look at and to change; nobody else uses it in this block."""
        with self._worlds.change() as world:
            for machine in world.instances.values():
                machine.settle(self._clock())
            yield world

    @contextmanager
    def call(
        self,
        call: str,
        name: str,
        deadline: Deadline | None = None,
        *,
        before: str | None = "before",
        after: str | None = "after",
    ) -> Iterator[World]:
        """The world for the time of a call, with the faults that are due before its effect and after it."""
        due = before is not None
        while True:
            if deadline is not None:
                deadline.check()
            with self.world() as world:
                fault = world.take_fault(call, name, before) if due else None
                if fault is None:
                    yield world
                    late = world.take_fault(call, name, after)
                    break
            due = False
            suffer(fault, call, name, deadline)
        if late is not None:
            suffer(late, call, name, deadline)

    def make(self, call: str, name: str, begin: Callable[[World], Mapping[str, Volume]], deadline: Deadline) -> None:
        """Make volumes as a host does it: half-made first, whole after some time, gone when the call fails.

        `begin` checks, and returns the volumes as they will be, by name.
        """
        volumes: Mapping[str, Volume] = {}
        try:
            with self.call(call, name, deadline, after="during") as world:
                found = begin(world)
                reserve(world, ", ".join(found), sum(volume.allocation for volume in found.values()))
                world.volumes |= {target: replace(volume, partial=True) for target, volume in found.items()}
                volumes = found
                seconds = world.copy_seconds
            if not volumes:
                return
            _take_time(seconds, sum(volume.allocation for volume in volumes.values()), deadline)
            with self.call(call, name, deadline, before=None) as world:
                world.volumes |= volumes
                world.record(call, name)
        except BaseException:
            with self.world() as world:
                for target in volumes:
                    left = world.volumes.get(target)
                    if left is not None and (left.partial or not is_cached(target)):
                        del world.volumes[target]
            raise


def _take_time(seconds: float, size: int, deadline: Deadline) -> None:
    ticks = round(seconds / TICK)
    for tick in range(ticks):
        deadline.progress(size * tick // ticks, size)
        deadline.sleep(TICK)
    deadline.progress(size, size)
