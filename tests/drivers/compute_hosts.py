"""The hosts that the compute contract is tested on, and what a test can do to one behind the driver's back."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import libvirt
import pytest

from drivers.compute import AttachedDisk, Compute, Domain, InstanceFacts, LocalImage
from drivers.image_file import inspect
from drivers.libvirt.driver import LibvirtCompute
from drivers.simulated import SimulatedCompute
from drivers.simulated.world import Volume
from planvirt.config import HostConfig
from planvirt.deadline import Deadline
from planvirt.mark import Mark, instance_uuid
from planvirt.plan import Nic
from planvirt.states import State

MIB = 1 << 20
SPEC = "5bec" * 16


@dataclass
class Host:
    """A host under test.

    `lacks` names what it cannot do: "files" (volumes without contents), "guest" (nothing boots), "pause", "suspend",
    "saved-pause" (a paused guest runs after it was saved), "devices" (nothing comes and goes), "grow" (no disk grows).
    `boot` gives a domain what its guest needs to come up and to say its name on the console.
    """

    compute: Compute
    add_foreign: Callable[[str], str]  # by instance name; returns the name of a foreign volume in the pool
    all_volumes: Callable[[], set[str]]  # foreign ones included
    pause: Callable[[str], None]
    suspend: Callable[[str], None]
    begin_import: Callable[[str], None] = lambda _: None  # of the cached volume of that name, and die
    make_deaf: Callable[[str], None] = lambda _: None
    hold_devices: Callable[[str], None] = lambda _: None  # let a running guest keep its devices for good
    boot: Callable[["Host", str, bool], dict[str, str]] = lambda _host, _name, _deaf: {}
    nics: tuple[Nic, ...] = (Nic("user"),)
    greeting: str = "{name} is up"
    lacks: frozenset[str] = frozenset()
    patience: float = 10.0
    plan: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")

    def deadline(self) -> Deadline:
        return Deadline(self.patience)

    def name(self, short: str) -> str:
        """A name that no other test uses on the same host."""
        return f"{self.plan}-{short}"

    def mark(self, short: str = "web", run: str = "r1") -> Mark:
        return Mark(self.plan, self.name(short), run, SPEC, "c0ffee")

    def volume(
        self, disk: str = "boot", short: str = "web", *, base: str | None = None, size: int = 8 * MIB,
        format: Literal["qcow2", "raw"] = "qcow2",
    ) -> str:  # fmt: skip
        name = self.mark(short).volume(disk)
        self.compute.create_volume(name, size=size, format=format, base=base, deadline=self.deadline())
        return name

    def domain(self, short: str = "web", *, run: str = "r1", disk: str | None = None, deaf: bool = False) -> Domain:
        name = self.name(short)
        if deaf:
            self.make_deaf(name)
        boot = self.boot(self, name, deaf)
        return Domain(
            name=name,
            uuid=instance_uuid(self.plan, name),
            vcpus=1,
            memory=256 * MIB,
            mark=self.mark(short, run),
            disks=[AttachedDisk(disk or self.volume(short=short))],
            nics=self.nics,
            kernel=boot.get("kernel"),
            initrd=boot.get("initrd"),
            cmdline=boot.get("cmdline", ""),
        )

    def made(self, short: str = "web", state: State = State.STOPPED, *, disk: str | None = None) -> str:
        """Define an instance and bring it into the state; returns its name."""
        name = self.compute.define(self.domain(short, disk=disk)).name
        if state is not State.STOPPED:
            self.compute.start(name)
        if state is State.PAUSED:
            self.pause(name)
        if state is State.SUSPENDED:
            self.suspend(name)
        return name

    def seen(self, name: str) -> InstanceFacts:
        facts = self.compute.instance(name)
        assert facts is not None
        return facts

    def ours(self) -> set[str]:
        """The names of this test's volumes, cached ones left out."""
        return {v.name for v in self.compute.volumes() if v.mark is not None and v.mark.plan == self.plan}

    def clean(self) -> None:
        """Remove all that this test has made."""
        for facts in self.compute.instances():
            if facts.mark is not None and facts.mark.plan == self.plan:
                if facts.set_aside is not None:
                    self.compute.delete_set_aside(facts.mark.instance, facts.set_aside)
                else:
                    self.compute.undefine(facts.name)
        for volume in self.ours():
            self.compute.delete_volume(volume)
        self.compute.close()


def cancelled() -> Deadline:
    deadline = Deadline()
    deadline.cancel()
    return deadline


def require_state(host: Host, state: State) -> None:
    if {State.PAUSED: "pause", State.SUSPENDED: "suspend"}.get(state) in host.lacks:
        pytest.skip(f"this host has no {state} instances")


def greeting(host: Host, name: str) -> str:
    return host.greeting.replace("{name}", name)


def wait_for_console(host: Host, name: str) -> str:
    deadline = host.deadline()
    while greeting(host, name) not in (text := host.compute.console(name)):
        deadline.sleep(0.05)
    return text


def image_file(folder: Path, content: bytes, *, format: Literal["qcow2", "raw"], size: int = 4 * MIB) -> LocalImage:
    """An image that begins with the content."""
    raw = folder / f"{uuid.uuid4().hex}.raw"
    with raw.open("wb") as file:
        file.write(content)
        file.truncate(size)
    if format == "raw":
        return inspect(raw, checksum=None, declared_format="raw")
    qcow2 = raw.with_suffix(".qcow2")
    _convert(raw, "raw", qcow2, "qcow2")
    return inspect(qcow2, checksum=None, declared_format="qcow2")


def content_of(opened: AbstractContextManager[BinaryIO], folder: Path, format: str, length: int) -> bytes:
    """The first bytes that a guest reads from a volume that is open as a file."""
    path = folder / f"{uuid.uuid4().hex}.{format}"
    with opened as stream, path.open("wb") as file:
        while chunk := stream.read(MIB):
            file.write(chunk)
    plain = path.with_suffix(".plain")
    _convert(path, format, plain, "raw")
    with plain.open("rb") as file:
        return file.read(length)


def _convert(source: Path, source_format: str, target: Path, target_format: str) -> None:
    command = ["qemu-img", "convert", "-f", source_format, "-O", target_format, str(source), str(target)]
    subprocess.run(command, check=True)


def _simulated(compute: SimulatedCompute) -> Host:
    def add_foreign(name: str) -> str:
        compute.add_foreign(name, volume=f"{name}.qcow2")
        return f"{name}.qcow2"

    def set_state(name: str, state: State) -> None:
        with compute.world() as world:
            world.instances[name].state = state

    def all_volumes() -> set[str]:
        with compute.world() as world:
            return set(world.volumes)

    def begin_import(name: str) -> None:
        with compute.world() as world:
            world.volumes[name] = Volume(4 * MIB, "raw", partial=True)

    def make_deaf(name: str) -> None:
        with compute.world() as world:
            world.guests[name] = {"ignores_shutdown": True}

    def hold_devices(name: str) -> None:
        with compute.world() as world:
            world.guests[name] = {"keeps_devices": True}

    return Host(
        compute=compute,
        add_foreign=add_foreign,
        all_volumes=all_volumes,
        pause=lambda name: set_state(name, State.PAUSED),
        suspend=lambda name: set_state(name, State.SUSPENDED),
        begin_import=begin_import,
        make_deaf=make_deaf,
        hold_devices=hold_devices,
    )


@contextmanager
def simulated_in_memory(_folder: Path) -> Iterator[Host]:
    yield _simulated(SimulatedCompute.in_memory("host"))


@contextmanager
def simulated_in_file(folder: Path) -> Iterator[Host]:
    yield _simulated(SimulatedCompute.in_file("host", folder / "world.json"))


class _LibvirtDoor:
    """A connection of the tests' own, for what is done behind the driver's back."""

    def __init__(self, uri: str, pool: str) -> None:
        self._uri, self._pool = uri, pool

    @contextmanager
    def connection(self) -> Iterator[Any]:
        connection = libvirt.open(self._uri)
        try:
            yield connection
        finally:
            connection.close()

    def add_foreign(self, name: str, kind: str) -> str:
        disk = f"{name}-foreign.img"
        with self.connection() as connection:
            pool = connection.storagePoolLookupByName(self._pool)
            pool.createXML(f"<volume><name>{disk}</name><capacity>4096</capacity></volume>", 0)
            connection.defineXML(
                f"<domain type='{kind}'><name>{name}</name><memory unit='MiB'>64</memory>"
                "<os><type arch='x86_64'>hvm</type></os></domain>"
            )
        return disk

    def volumes(self) -> set[str]:
        with self.connection() as connection:
            return set(connection.storagePoolLookupByName(self._pool).listVolumes())

    def pause(self, name: str) -> None:
        with self.connection() as connection:
            connection.lookupByName(name).suspend()

    def suspend(self, name: str) -> None:
        with self.connection() as connection:
            connection.lookupByName(name).managedSave(0)

    def remove_foreign(self) -> None:
        """Remove what add_foreign made."""
        with self.connection() as connection:
            pool = connection.storagePoolLookupByName(self._pool)
            for volume in pool.listAllVolumes():
                if volume.name().endswith("-foreign.img"):
                    connection.lookupByName(volume.name().removesuffix("-foreign.img")).undefine()
                    volume.delete(0)


@contextmanager
def libvirt_test(folder: Path) -> Iterator[Host]:
    """libvirt's own hypervisor for tests: its API is the real one, but it boots nothing and keeps no data."""
    uri = "test:///default"
    door = _LibvirtDoor(uri, "planvirt")
    compute = LibvirtCompute(HostConfig("host", uri=uri, pool_path=folder / "pool"), folder)
    compute._pool.handle()  # the pool is there from now on
    with door.connection():  # the hypervisor lives as long as somebody is connected
        yield Host(
            compute=compute,
            add_foreign=lambda name: door.add_foreign(name, "test"),
            all_volumes=door.volumes,
            pause=door.pause,
            suspend=door.suspend,
            nics=(),
            lacks=frozenset({"files", "guest", "saved-pause", "devices", "grow"}),
        )


HOSTS: dict[str, Callable[[Path], AbstractContextManager[Host]]] = {
    "simulated-memory": simulated_in_memory,
    "simulated-file": simulated_in_file,
    "libvirt-test": libvirt_test,
}
