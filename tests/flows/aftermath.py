"""What there is after a run, to compare with what there was; and runs that go wrong at each of their calls in turn."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from drivers.simulated import Fault
from flows.world import World
from planvirt.journal.transitions import RunState
from planvirt.mark import is_cached
from tests.flows.whole_world import die, finish
from tests.flows.yard import Yard

_BARELY = 1e-9  # seconds: a call that hangs so long goes on as if nothing had been
_PASSING = ("starts", "started", "stops")  # of a machine, what differs from one start to the next


def picture(yard: Yard) -> dict[str, Any]:
    """Everything on the hosts and in the store but cached images, whatever a run may leave or take."""
    found: dict[str, Any] = {}
    for name, host in yard.hosts.items():
        with host.world() as world:
            for key, machine in world.instances.items():
                found[f"instance {key} on {name}"] = {
                    field: value for field, value in asdict(machine).items() if field not in _PASSING
                }
            found |= {
                f"volume {key} on {name}": asdict(volume) for key, volume in world.volumes.items() if not is_cached(key)
            }
    with World(yard.config) as world:
        images = world.store("local").list()
    return found | {f"image {image.id}": (image.name, image.status, image.checksum) for image in images}


def contents(yard: Yard, instance: str) -> dict[str, bytes]:
    """What the guest of an instance reads from its disks, by the names of the disks."""
    with yard.kvm1.world() as world:
        volumes = [disk.volume for disk in world.instances[instance].disks]
        return {volume.split(".")[2]: world.content(volume) for volume in volumes}


def clone(yard: Yard, name: str) -> Yard:
    """A yard with the same hosts, store and journal, to try something in."""
    folder = yard.folder.parent / f"{yard.folder.name}-{name}"
    shutil.copytree(yard.folder, folder)
    copy = Yard(folder)
    copy.runs = yard.runs
    return copy


@dataclass(frozen=True)
class Trial:
    """A run in which something went wrong at one of its calls to the host."""

    yard: Yard
    state: RunState
    where: str


def with_faults(
    yard: Yard, text: str, times: int = 1, at: Literal["before", "after"] = "before", error: str = "error"
) -> Iterator[Trial]:
    """The plan, run in copies of the yard: each time another call to kvm1 fails, the first one first.

    With `times`, so many calls in a row fail. The last trial is the first in which nothing failed.
    """
    number = 0
    while True:
        place = clone(yard, f"{at}-{times}-{number}")
        prepared = place.prepare(text)
        with place.kvm1.world() as world:
            world.faults.append(Fault("*", times=number, hang=_BARELY, at=at))
            world.faults.append(Fault("*", times=times, error=error, at=at))
        state = place.carry_out(prepared)
        with place.kvm1.world() as world:
            left = [fault.times for fault in world.faults]
            world.faults.clear()
        yield Trial(place, state, f"call {number}, {at} it")
        place.journal.close()
        shutil.rmtree(place.folder)
        if left[1] == times:
            return
        number += 1


def killed_everywhere(yard: Yard, text: str, *, before: bool, forward: bool) -> Iterator[Trial]:
    """The plan, run in copies of the yard by a process that is killed at a word of its journal, and finished.

    Each time it is another word, the first one first. The last trial is the first in which the process lived.
    """
    number = 0
    while True:
        number += 1
        place = clone(yard, f"kill-{before}-{forward}-{number}")
        prepared = place.prepare(text)
        run = die(place, prepared, number, before=before)
        state = finish(place, prepared, f"r{place.runs}", forward=forward)
        yield Trial(place, state, f"kill {number}")
        place.journal.close()
        shutil.rmtree(place.folder)
        if run is None:
            return


def made(folder: Path, text: str, change: Callable[[Yard], None] = lambda _: None) -> Yard:
    """A yard with an image `base` and another one `other`, in which the plan was run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.raw").write_bytes(b"base".ljust(1 << 20, b"\0"))
    (folder / "other.raw").write_bytes(b"other".ljust(2 << 20, b"\0"))
    yard = Yard(folder)
    assert yard.run(text) == RunState.SUCCEEDED
    change(yard)
    return yard
