"""What is true of a simulated host, and where that is kept: in memory, or in one JSON file that processes share.

A person may write the file by hand; every key is optional.
`{"faults": [{"call": "start", "name": "web-1"}]}` is a world.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

from drivers.compute import AttachedDisk, Executed, Sizes
from drivers.errors import DriverError
from drivers.simulated.faults import Fault
from planvirt.mark import Mark
from planvirt.plan import Nic
from planvirt.states import State

_MOST_EVENTS = 10_000


@dataclass(slots=True)
class Guest:
    """How a guest behaves. Times are seconds; `{name}` in the console text becomes the instance's name."""

    console: str = "{name} is up\n"
    boot_seconds: float = 0.0
    shutdown_seconds: float = 0.0
    ignores_shutdown: bool = False
    agent: bool = True
    keeps_devices: bool = False  # does not let go of what is taken away while it runs
    programs: dict[str, dict[str, Any]] = field(default_factory=dict)  # what a program comes to, by its name
    addresses: list[str] | None = None  # None: made from its UUID when it has a network interface

    def run(self, program: str) -> Executed:
        """What the program comes to: `exit_code`, `stdout` and `stderr`; one that is not listed succeeds silently."""
        end = self.programs.get(program, {})
        out, err = (str(end.get(key, "")).encode() for key in ("stdout", "stderr"))
        return Executed(int(end.get("exit_code", 0)), out, err)


@dataclass(slots=True)
class Machine:
    """An instance. `name` is its own name, also while it is set aside under another one."""

    name: str
    uuid: str
    mark: Mark | None = None
    state: State = State.STOPPED
    vcpus: int = 1
    memory: int = 1 << 30
    max_vcpus: int = 0  # at least vcpus, whatever is said here
    max_memory: int = 0
    disks: list[AttachedDisk] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    kernel: str | None = None
    initrd: str | None = None
    set_aside: str | None = None
    starts: int = 0
    started: float = 0.0
    stops: float | None = None  # when a guest that was asked to shut down will be off
    keep: list[str] = field(default_factory=list)
    protect: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    saved_paused: bool = False  # the guest was paused when its memory was saved
    frozen: bool = False  # the guest's file systems wait to be thawed

    def settle(self, now: float) -> None:
        """Let happen what time has brought."""
        if self.stops is not None and now >= self.stops:
            self.stop()

    def start(self, now: float) -> None:
        """Boot the guest."""
        self.state = State.RUNNING
        self.started, self.stops = now, None
        self.starts += 1

    def stop(self) -> None:
        """Be off."""
        self.state, self.stops, self.saved_paused, self.frozen = State.STOPPED, None, False, False

    def uses(self, volume: str) -> bool:
        """Whether the volume is one of its disks, or what it boots from."""
        return volume in (*self.volumes, self.kernel, self.initrd)

    @property
    def volumes(self) -> list[str]:
        """The names of its disks' volumes."""
        return [disk.volume for disk in self.disks]

    @property
    def sizes(self) -> Sizes:
        """How large it is, and can become."""
        return Sizes(self.vcpus, self.memory, max(self.vcpus, self.max_vcpus), max(self.memory, self.max_memory))


@dataclass(slots=True)
class Volume:
    """A file in the pool. `content` is what was written to it, as hex; None where an overlay shows its base."""

    capacity: int
    format: str = "qcow2"
    content: str | None = None
    base: str | None = None
    allocation: int = 0
    partial: bool = False  # a copy that has not ended
    changed: float = 0.0  # when a cached one was written; others do not keep it


@dataclass(slots=True)
class World:
    """Everything about one simulated host. `guests` holds fields of Guest by instance name, or by "*" for all."""

    instances: dict[str, Machine] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    guests: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    events: list[str] = field(default_factory=list)  # "start web-1": what took effect, in order
    space: int = 1 << 40
    memory: int = 1 << 38
    cpus: int = 64
    copy_seconds: float = 0.0  # how long a copy between files takes

    def guest(self, name: str) -> Guest:
        """How the guest of that name behaves."""
        return Guest(**(self.guests.get("*", {}) | self.guests.get(name, {})))

    def free(self) -> int:
        """Bytes left in the pool."""
        return max(0, self.space - sum(volume.allocation for volume in self.volumes.values()))

    def content(self, volume: str) -> bytes:
        """What a guest reads from the volume: its own content, or else its base's."""
        found = self.volumes[volume]
        if found.content is None and found.base is not None:
            return self.content(found.base)
        return bytes.fromhex(found.content or "")

    def record(self, call: str, name: str) -> None:
        """Remember what took effect."""
        self.events.append(f"{call} {name}")
        del self.events[:-_MOST_EVENTS]

    def take_fault(self, call: str, name: str, at: str | None) -> Fault | None:
        """The first fault that is due here; it is used up by one."""
        for fault in self.faults:
            if fault.at == at and fault.call in ("*", call) and fault.name in (None, name) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None


class Worlds(Protocol):
    """A place that keeps a world."""

    where: str

    def change(self) -> AbstractContextManager[World]:
        """The world, for this block alone; what the block leaves is kept unless it raises."""


class InMemory:
    """A world that ends with its process. A block that raises must not have changed anything before."""

    where = "memory"

    def __init__(self) -> None:
        self._world = World()
        self._lock = RLock()

    @contextmanager
    def change(self) -> Iterator[World]:
        """The world itself, under a lock."""
        with self._lock:
            yield self._world


class InFile:
    """A world in a JSON file, shared by all processes that open it."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path

    @contextmanager
    def change(self) -> Iterator[World]:
        """Read, change, replace, under a lock between processes. What did not change is not written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(self._path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._path.read_text() if self._path.exists() else "{}"
            world = _parse(before, self._path)
            yield world
            after = json.dumps(asdict(world), indent=1)
            if after != before:
                self._replace(after)

    def _replace(self, text: str) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            Path(temporary).replace(self._path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _parse(text: str, path: Path) -> World:
    try:
        data = json.loads(text)
        instances = {name: _machine(item) for name, item in data.pop("instances", {}).items()}
        volumes = {name: Volume(**item) for name, item in data.pop("volumes", {}).items()}
        faults = [Fault(**item) for item in data.pop("faults", [])]
        world = World(instances=instances, volumes=volumes, faults=faults, **data)
        for name in world.guests:
            world.guest(name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DriverError(
            f"cannot read the simulated host in {path}",
            details=str(error),
            resolution="mend the file, or delete it to begin with an empty host",
        ) from error
    return world


def _machine(item: dict[str, Any]) -> Machine:
    mark = item.pop("mark", None)
    state = State(item.pop("state", "stopped"))
    disks = [AttachedDisk(**disk) for disk in item.pop("disks", [])]
    nics = [Nic(**nic) for nic in item.pop("nics", [])]
    return Machine(**item, mark=None if mark is None else Mark(**mark), state=state, disks=disks, nics=nics)
