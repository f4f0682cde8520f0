"""The libvirt driver: each method hands over to the file that knows its subject."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Literal

from drivers.compute import (
    AttachedDisk,
    CachedVolume,
    Capabilities,
    Domain,
    Executed,
    HostFacts,
    InstanceFacts,
    LocalImage,
    Sizes,
    VolumeFacts,
)
from drivers.errors import Unsupported
from drivers.libvirt import (
    acceleration,
    addresses,
    agent,
    cache,
    compressing,
    console,
    definitions,
    disks,
    freezing,
    growing,
    images,
    instances,
    nics,
    notes,
    power,
    reading,
    rescue,
    resizing,
    snapshot,
    standstill,
    volumes,
    whole_copies,
)
from drivers.libvirt.connection import Connection
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from planvirt.config import HostConfig
from planvirt.deadline import Deadline
from planvirt.mark import cached_file, cached_image
from planvirt.plan import Nic
from planvirt.states import Note, State
from planvirt.verbs import ACTIONS

# What needs a real hypervisor under libvirt: the test one moves no data, and has no devices that come and go.
_NEED_QEMU = frozenset(
    {"snapshot", "backup", "rescue", "unrescue", "shelve", "unshelve", "attach", "detach", "rebuild", "restore", "exec"}
)

_DOMAIN_TYPE: dict[str, Literal["kvm", "qemu"]] = {"kvm": "kvm", "tcg": "qemu"}


class LibvirtCompute:
    """A host that libvirt manages. `home` is where planvirt remembers whether the host's KVM works."""

    def __init__(self, config: HostConfig, home: Path) -> None:
        self.host = config.name
        self._accel_wanted = config.accel
        self._accel: Literal["kvm", "tcg"] | None = None
        self._accel_lock = threading.Lock()
        self._accel_memory = home / "hosts" / f"{config.name}.acceleration.json"
        self._connection = Connection(config.uri, config.name)
        self._pool = Pool(self._connection, config)
        self._compressions: frozenset[str] | None = None
        self._exports: dict[str, threading.Lock] = {}
        self._changes: dict[str, threading.Lock] = {}

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _is_test(self) -> bool:
        return self._connection.hypervisor() == "TEST"

    def _acceleration(self) -> Literal["kvm", "tcg"]:
        with self._accel_lock:
            if self._accel is None:
                wanted = self._accel_wanted
                self._accel = acceleration.prove(self._pool, self._accel_memory) if wanted == "auto" else wanted
            return self._accel

    def _refuse_test(self, what: str) -> None:
        if self._is_test():
            raise Unsupported(f"cannot {what} on {self.host}: libvirt's test hypervisor moves no data")

    def capabilities(self) -> Capabilities:
        """What this kind of hypervisor can do."""
        if self._is_test():
            return Capabilities(
                verbs=frozenset(ACTIONS) - _NEED_QEMU,
                image_formats=frozenset(),
                live_snapshot=False,
                console=False,
                grow_disks=False,
            )
        with self._accel_lock:
            if self._compressions is None:
                self._compressions = compressing.known(self._pool)
        return Capabilities(verbs=frozenset(ACTIONS), quiesce=True, compressions=self._compressions)

    def facts(self) -> HostFacts:
        """What the host is and has left."""
        conn = self._connection.get()
        test = self._is_test()
        with translated(f"read the facts of {self.host}"):
            info = conn.getInfo()
            return HostFacts(
                name=self.host,
                uri=str(conn.getURI()),
                hypervisor=str(conn.getType()),
                version=f"libvirt {_dotted(conn.getLibVersion())}, {conn.getType()} {_dotted(conn.getVersion())}",
                accel="none" if test else self._acceleration(),
                free_space=self._pool.free_space(),
                memory=int(info[1]) * 1024 * 1024,
                cpus=int(info[2]),
            )

    def instances(self) -> Sequence[InstanceFacts]:
        """All domains of the host."""
        return instances.listing(self._connection, self.host)

    def instance(self, name: str) -> InstanceFacts | None:
        """One domain by its name."""
        domain = instances.find(self._connection, name)
        return None if domain is None else instances.facts_of(domain, self.host)

    def volumes(self) -> Sequence[VolumeFacts]:
        """All volumes that planvirt made."""
        return volumes.listing(self._pool)

    def cached(self) -> Sequence[CachedVolume]:
        """All cached images and files."""
        return cache.listing(self._pool)

    # Volumes

    def import_image(self, image: LocalImage, deadline: Deadline) -> VolumeFacts:
        """Have the image as a cached base volume."""
        self._refuse_test("import an image")
        name = cached_image(image.sha256, image.format)
        return volumes.read(images.bring(self._pool, image.path, name, image.sha256, deadline))

    def import_file(self, path: Path, sha256: str, deadline: Deadline) -> str:
        """Have a kernel or initrd in the pool."""
        self._refuse_test("import a file")
        name = cached_file(sha256)
        images.bring(self._pool, path, name, sha256, deadline)
        return name

    def create_volume(
        self,
        name: str,
        *,
        size: int,
        format: Literal["qcow2", "raw"],
        base: str | None,
        deadline: Deadline,
    ) -> VolumeFacts:
        """Make a volume: empty, an overlay, or a full copy."""
        if base is not None and format == "raw":
            return whole_copies.create(self._pool, name, size=size, base=base, deadline=deadline)
        return volumes.create(self._pool, name, size=size, format=format, base=base, deadline=deadline)

    def delete_volume(self, name: str) -> None:
        """Delete a volume of ours."""
        snapshot.abort_writing(self._pool, name)
        volumes.delete(self._pool, name)

    def compress_volume(self, name: str, target: str, compression: str, deadline: Deadline) -> VolumeFacts:
        """Copy a volume, compressed."""
        self._refuse_test("compress a volume")
        return compressing.compress(self._pool, name, target, compression, deadline)

    def open_volume(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Read a volume from its start."""
        self._refuse_test("read a volume")
        return reading.opened(self._pool, name)

    # Definitions

    def define(self, domain: Domain) -> InstanceFacts:
        """Define an instance, stopped."""
        kind = "test" if self._is_test() else _DOMAIN_TYPE[self._acceleration()]
        return instances.facts_of(definitions.define(self._pool, domain, kind), self.host)

    def undefine(self, name: str) -> None:
        """Power off and forget an instance."""
        definitions.undefine(self._pool, name)

    def set_aside(self, name: str, run: str) -> None:
        """Power off an instance and keep it under another name."""
        definitions.set_aside(self._connection, name, run)

    def bring_back(self, name: str, run: str) -> InstanceFacts:
        """Give an instance its name again."""
        return instances.facts_of(definitions.bring_back(self._connection, name, run), self.host)

    def delete_set_aside(self, name: str, run: str) -> None:
        """Forget for good what `run` set aside."""
        definitions.delete_set_aside(self._pool, name, run)

    # Power

    def start(self, name: str) -> None:
        """Start a stopped instance."""
        power.start(self._pool, name)

    def request_shutdown(self, name: str) -> None:
        """Ask the guest to shut down."""
        power.request_shutdown(self._connection, name)

    def power_off(self, name: str) -> None:
        """Pull the plug."""
        power.power_off(self._connection, name)

    def reboot(self, name: str, kind: Literal["soft", "hard"], deadline: Deadline) -> None:
        """Restart."""
        power.reboot(self._pool, name, kind, deadline)

    def pause(self, name: str) -> None:
        """Stop a running guest in its tracks."""
        standstill.pause(self._connection, name)

    def unpause(self, name: str) -> None:
        """Let a paused guest go on."""
        standstill.unpause(self._connection, name)

    def suspend(self, name: str, deadline: Deadline) -> None:
        """Save a guest's memory."""
        standstill.suspend(self._connection, name, deadline)

    def resume(self, name: str, deadline: Deadline) -> None:
        """Go on from saved memory."""
        standstill.resume(self._connection, name, deadline)

    def wait_state(self, name: str, states: frozenset[State], deadline: Deadline) -> State:
        """Wait for one of the states."""
        return power.wait_state(self._connection, name, states, deadline)

    def _changing(self, name: str) -> threading.Lock:
        """Who writes back a definition that it has read is alone with it. Other processes have no claim on it."""
        return self._changes.setdefault(name, threading.Lock())

    # Sizes

    def resize(self, name: str, sizes: Sizes) -> None:
        """Change processors and memory."""
        with self._changing(name):
            resizing.resize(self._connection, name, sizes)

    def grow_disk(self, name: str, volume: str, size: int) -> None:
        """Make a disk larger."""
        growing.grow_disk(self._pool, name, volume, size)

    # Devices

    def attach_disk(self, name: str, disk: AttachedDisk) -> None:
        """Give an instance another disk."""
        with self._changing(name):
            disks.attach(self._pool, name, disk)

    def detach_disk(self, name: str, volume: str, deadline: Deadline) -> None:
        """Take a disk away."""
        disks.detach(self._pool, name, volume, deadline)

    def replace_disk(self, name: str, volume: str, by: AttachedDisk) -> None:
        """Put another volume at a disk's place."""
        with self._changing(name):
            disks.replace(self._pool, name, volume, by)

    def attach_nic(self, name: str, nic: Nic) -> None:
        """Give an instance another network interface."""
        with self._changing(name):
            nics.attach(self._connection, name, nic)

    def detach_nic(self, name: str, mac: str, deadline: Deadline) -> None:
        """Take a network interface away."""
        nics.detach(self._connection, name, mac, deadline)

    # Rescue

    def rescue(self, name: str, disk: AttachedDisk) -> None:
        """Boot from another disk."""
        with self._changing(name):
            rescue.rescue(self._pool, name, disk)

    def unrescue(self, name: str) -> None:
        """Boot as before."""
        with self._changing(name):
            rescue.unrescue(self._pool, name)

    # Notes

    def note(self, name: str, note: Note, text: str | None) -> None:
        """Write a note into the domain's metadata, or strike it out."""
        with self._changing(name):
            notes.write(self._connection, name, note, text)

    def set_spec(self, name: str, spec: str) -> None:
        """Change the spec in the mark."""
        with self._changing(name):
            notes.set_spec(self._connection, name, spec)

    def set_keep(self, name: str, keep: Sequence[str]) -> None:
        """Change the kept disks in the mark."""
        with self._changing(name):
            notes.set_keep(self._connection, name, keep)

    # The guest's agent

    def execute(self, name: str, command: Sequence[str], stdin: bytes, deadline: Deadline) -> Executed:
        """Run a program in the guest through its agent."""
        self._refuse_test("run a program")
        return agent.execute(self._connection, name, command, stdin, deadline)

    # Looking in

    def console(self, name: str) -> str:
        """The serial console since the last start."""
        self._refuse_test("read a console")
        return console.text(self._pool, name)

    def addresses(self, name: str) -> Sequence[str]:
        """The guest's IP addresses."""
        return addresses.of(self._connection, name)

    # Snapshot

    def export_disks(
        self, name: str, disks: Mapping[str, str], *, quiesce: bool = False, deadline: Deadline
    ) -> Sequence[VolumeFacts]:
        """Copy what disks hold at one moment into flat volumes."""
        self._refuse_test("take a snapshot")
        # A host runs one backup job for a domain at a time.
        with self._exports.setdefault(name, threading.Lock()):
            return snapshot.export(self._pool, name, disks, quiesce=quiesce, deadline=deadline)

    def thaw(self, name: str) -> None:
        """Thaw what was left frozen."""
        if not self._is_test():  # nothing is ever frozen there
            freezing.thaw(self._connection, name)


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
