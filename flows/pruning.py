"""What hosts and this machine keep of images though nothing uses it, and its deletion.

A run imports an image, or finds it there, a moment before it builds a disk on it. So nothing of a host is deleted while
a run that can still go forward has something left to do there, and for the moment of each deletion the journal lets no
run begin. Work that is in no journal of ours is known by the age of what it has written.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from drivers.compute import CachedVolume
from drivers.errors import DriverError
from flows.stored_images import texts
from flows.world import World
from planvirt.errors import Conflict, PlanvirtError
from planvirt.journal.journal import Journal
from planvirt.journal.transitions import RunState, StepState
from planvirt.units import format_duration

DOWNLOADS = ""  # in place of a host: the folder of downloaded images on this machine

_FORWARD = frozenset({RunState.PENDING, RunState.RUNNING})
_BEHIND = frozenset({StepState.DONE, StepState.COMMITTED, StepState.SKIPPED})
_PARTS = (".part", ".from", ".from.new")  # what may stand beside a download


@dataclass(frozen=True, slots=True)
class Item:
    """Something that is kept only to save time. `host` is DOWNLOADS for a file of this machine.

    `kept` tells why it stays; None when it may go. `in_use` is true when that is because something is built on it.
    """

    host: str
    name: str
    kind: str
    size: int
    kept: str | None = None
    in_use: bool = False

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return self.host or "this machine"


@dataclass(frozen=True, slots=True)
class Found:
    """All that there is, and what could not be asked."""

    items: tuple[Item, ...]
    errors: tuple[PlanvirtError, ...] = field(default=())

    @property
    def unused(self) -> tuple[Item, ...]:
        """What may go."""
        return tuple(item for item in self.items if item.kept is None)


def look(world: World, journal: Journal, hosts: Sequence[str], *, downloads: bool, age: float) -> Found:
    """What there is on the hosts, and with `downloads` on this machine. Nothing younger than `age` seconds may go."""
    items: list[Item] = []
    errors: list[PlanvirtError] = []
    for host in hosts:
        try:
            cached = world.host(host).cached()
        except PlanvirtError as error:
            errors.append(error)
            continue
        items += _unless_busy((_judged(host, volume, age) for volume in cached), _at_work(journal, host))
    if downloads:
        items += _unless_busy(_downloads(world, age), _at_work(journal, DOWNLOADS))
    return Found(tuple(items), tuple(errors))


def delete(item: Item, world: World, journal: Journal, *, age: float) -> int:
    """Delete what was found to be unused, if it still is. Returns the bytes that are free by that.

    Raises Conflict when it is needed by now.
    """
    if item.host == DOWNLOADS:
        now = next((found for found in _downloads(world, age) if found.name == item.name), None)
    else:
        cached = world.host(item.host).cached()
        now = next((_judged(item.host, volume, age) for volume in cached if volume.name == item.name), None)
    if now is None:
        return 0
    with journal.standstill():
        kept = now.kept or _at_work(journal, item.host)
        if kept is not None:
            raise Conflict(f"cannot delete {item.name}: {kept}")
        if item.host == DOWNLOADS:
            _delete_download(world, item.name)
        else:
            world.host(item.host).delete_volume(item.name)
    return now.size


def _judged(host: str, volume: CachedVolume, age: float) -> Item:
    kind = "image" if volume.name.startswith("planvirt-image.") else "kernel or initrd"
    if not volume.whole:
        kind = f"half-made {kind}"
    kept = _too_young(volume.changed, age)
    if volume.users:
        kept = f"used by {', '.join(volume.users)}"
    return Item(host, volume.name, kind, volume.allocation, kept, in_use=bool(volume.users))


def _too_young(changed: float, age: float) -> str | None:
    past = time.time() - changed
    return f"written or read {format_duration(max(0, int(past)))} ago" if past < age else None


def _unless_busy(items: Iterable[Item], why: str | None) -> Iterator[Item]:
    for item in items:
        yield Item(item.host, item.name, item.kind, item.size, item.kept or why, item.in_use)


def _at_work(journal: Journal, host: str) -> str | None:
    """Why nothing may go from the host now: a run can still go forward there. DOWNLOADS are of use to any run."""
    for run, left in journal.open():
        if run.state not in _FORWARD:
            continue
        ahead = [step for step in journal.steps(run.id) if step.state not in _BEHIND]
        if any(host in (DOWNLOADS, step.host, *texts([step.arguments, step.decided])) for step in ahead):
            how = "is at work there" if left else "died at work there; 'planvirt recover' finishes it"
            return f"run {run.id} of plan {run.plan} {how if host else how.replace(' there', '')}"
    return None


def _downloads(world: World, age: float) -> Iterator[Item]:
    """The downloaded files, each with what stands beside it, by the path in their folder."""
    for path in sorted(world.cache.rglob("*")):
        if path.name.endswith((".lock", ".from", ".from.new")):
            continue
        with suppress(FileNotFoundError):
            facts = path.lstat()
            if not stat.S_ISREG(facts.st_mode):
                continue
            half = path.name.endswith(".part") or path.name.startswith(".part-")
            kept = _too_young(max(facts.st_mtime, facts.st_atime), age)
            yield Item(
                DOWNLOADS,
                str(path.relative_to(world.cache)),
                "half-made download" if half else "download",
                facts.st_blocks * 512,
                kept,
            )


def _delete_download(world: World, name: str) -> None:
    path = world.cache / name
    whole = path.with_name(path.name.removesuffix(".part"))
    try:
        with _nobody_fetches(whole):
            path.unlink(missing_ok=True)
            if path != whole:
                for part in _PARTS:
                    whole.with_name(whole.name + part).unlink(missing_ok=True)
    except OSError as error:
        raise DriverError(f"cannot delete {path}", details=(error.strerror or str(error)).lower()) from error


@contextmanager
def _nobody_fetches(whole: Path) -> Iterator[None]:
    """Hold the lock of a download, where there is one."""
    try:
        lock = os.open(whole.with_name(f"{whole.name}.lock"), os.O_RDWR)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Conflict(f"cannot delete {whole}: it is being fetched") from error
    finally:
        os.close(lock)
