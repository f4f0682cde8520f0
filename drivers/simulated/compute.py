"""The driver of simulated hosts: the promises of drivers/compute.py, kept strictly and without a hypervisor."""

import io
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Literal

import planvirt
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
from drivers.errors import DriverError, NoAgent
from drivers.simulated import definitions, devices, disk_file, exporting
from drivers.simulated.calls import TICK, Calls
from drivers.simulated.faults import Fault
from drivers.simulated.guards import (
    dependents_of,
    is_ours,
    machine_of,
    own,
    require,
    reserve,
    users_of,
    volume_facts,
    volume_of,
)
from drivers.simulated.world import InFile, InMemory, Machine, Volume, World, Worlds
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.mark import cached_file, cached_image, is_cached, read_volume_name
from planvirt.plan import Nic
from planvirt.states import Note, State
from planvirt.verbs import ACTIONS

_CHUNK = 1 << 20


class SimulatedCompute:
    """A host that exists only on paper."""

    def __init__(self, host: str, worlds: Worlds, *, clock: Callable[[], float] = time.time) -> None:
        self.host = host
        self._worlds = worlds
        self._clock = clock
        self._calls = Calls(worlds, clock)

    @classmethod
    def in_memory(cls, host: str = "simulated") -> "SimulatedCompute":
        """A host that ends with this process."""
        return cls(host, InMemory())

    @classmethod
    def in_file(cls, host: str, path: Path) -> "SimulatedCompute":
        """A host that all processes share which name the same file."""
        return cls(host, InFile(path))

    def close(self) -> None:
        """Nothing is open between calls."""

    # What tests and rehearsals do to the world

    def world(self) -> AbstractContextManager[World]:
        """The world itself, to look at and to change; nobody else uses it in this block."""
        return self._calls.world()

    def fail(
        self,
        call: str,
        *,
        name: str | None = None,
        times: int | None = 1,
        error: str | None = None,
        kill: bool = False,
        hang: float = 0.0,
        at: Literal["before", "during", "after"] = "before",
    ) -> None:
        """Go wrong at the next `times` calls of the method `call` for `name`; without more, by a transient error."""
        with self.world() as world:
            world.faults.append(Fault(call, name, times, error, kill, hang, at))

    def add_foreign(self, name: str, state: State = State.RUNNING, volume: str | None = None) -> None:
        """Put an instance there that planvirt did not make, with a volume of its own."""
        with self.world() as world:
            disk = volume or f"{name}.qcow2"
            world.volumes[disk] = Volume(1 << 30, content=b"foreign".hex())
            world.instances[name] = Machine(name, str(uuid.uuid4()), state=state, disks=[AttachedDisk(disk)])

    def write_disk(self, volume: str, content: bytes) -> None:
        """Let a guest write to its disk, from the start."""
        if len(content) > disk_file.LARGEST_CONTENT:
            raise ValueError("a simulated volume holds little")
        with self.world() as world:
            world.volumes[volume].content = content.hex()

    def events(self) -> list[str]:
        """What took effect, in order: "start web-1"."""
        with self.world() as world:
            return list(world.events)

    # The host

    def capabilities(self) -> Capabilities:
        """Every verb."""
        with self._calls.call("capabilities", self.host):
            return Capabilities(verbs=frozenset(ACTIONS), quiesce=True, compressions=frozenset({"zstd"}))

    def facts(self) -> HostFacts:
        """The host as its world describes it."""
        with self._calls.call("facts", self.host) as world:
            return HostFacts(
                name=self.host,
                uri=f"simulated:{self._worlds.where}",
                hypervisor="simulated",
                version=planvirt.__version__,
                accel="none",
                free_space=world.free(),
                memory=world.memory,
                cpus=world.cpus,
            )

    def instances(self) -> Sequence[InstanceFacts]:
        """All instances, foreign ones and those set aside included."""
        with self._calls.call("instances", self.host) as world:
            return [self._facts(key, world.instances[key]) for key in sorted(world.instances)]

    def instance(self, name: str) -> InstanceFacts | None:
        """One instance, or None."""
        with self._calls.call("instance", name) as world:
            machine = world.instances.get(name)
            return None if machine is None else self._facts(name, machine)

    def volumes(self) -> Sequence[VolumeFacts]:
        """All volumes with a mark, and the cached ones."""
        with self._calls.call("volumes", self.host) as world:
            return [volume_facts(world, name) for name in sorted(world.volumes) if is_ours(name)]

    def cached(self) -> Sequence[CachedVolume]:
        """All cached volumes with their users."""
        with self._calls.call("cached", self.host) as world:
            return [
                CachedVolume(name, volume.allocation, not volume.partial, volume.changed, tuple(users_of(world, name)))
                for name, volume in sorted(world.volumes.items())
                if is_cached(name)
            ]

    # Volumes

    def import_image(self, image: LocalImage, deadline: Deadline) -> VolumeFacts:
        """Keep what the file holds as a base volume, if it is what its hash says."""
        name = cached_image(image.sha256, image.format)
        return self._import("import_image", image.path, image.sha256, name, image.virtual_size, deadline)

    def import_file(self, path: Path, sha256: str, deadline: Deadline) -> str:
        """Keep a kernel or initrd, if it is what its hash says."""
        name = cached_file(sha256)
        self._import("import_file", path, sha256, name, None, deadline)
        return name

    def create_volume(
        self, name: str, *, size: int, format: Literal["qcow2", "raw"], base: str | None, deadline: Deadline
    ) -> VolumeFacts:
        """Make an empty volume, an overlay or a full copy."""
        if read_volume_name(name) is None:
            raise DriverError(f"cannot make volume {name}: its name bears no mark")
        with self._calls.call("create_volume", name, deadline) as world:
            overlay = base if format == "qcow2" else None
            present = world.volumes.get(name)
            if present is not None:
                if (present.capacity, present.format, present.base) != (size, format, overlay):
                    raise Conflict(f"cannot make volume {name}: there is another one of that name")
                return volume_facts(world, name)
            content, allocation = None, 0
            if base is not None:
                source = volume_of(world, base)
                if source.partial:
                    raise Conflict(f"cannot make volume {name}: its base {base} is half-made")
                if size < source.capacity:
                    raise DriverError(f"cannot make volume {name}: it is smaller than its base {base}")
                if overlay is None:
                    content, allocation = world.content(base).hex(), size
            reserve(world, name, allocation)
            world.volumes[name] = Volume(size, format, content, overlay, allocation)
            world.record("create_volume", name)
            return volume_facts(world, name)

    def delete_volume(self, name: str) -> None:
        """Delete a volume that nothing uses."""
        with self._calls.call("delete_volume", name) as world:
            if name not in world.volumes:
                return
            if not is_ours(name):
                raise Conflict(f"cannot delete volume {name}: planvirt did not make it")
            users = (users_of if is_cached(name) else dependents_of)(world, name)
            if users:
                raise Conflict(f"cannot delete volume {name}: it is in use", details=f"by {', '.join(users)}")
            del world.volumes[name]
            world.record("delete_volume", name)

    def compress_volume(self, name: str, target: str, compression: str, deadline: Deadline) -> VolumeFacts:
        """Copy a volume."""
        return self._copy(
            "compress_volume",
            name,
            target,
            lambda world: exporting.compressed(world, name, target, compression),
            deadline,
        )

    @contextmanager
    def open_volume(self, name: str) -> Iterator[BinaryIO]:
        """A file that qemu-img reads, and that begins with the volume's content."""
        with self._calls.call("open_volume", name) as world:
            volume = volume_of(world, name)
            content = b"" if volume.base else world.content(name)
        if volume.format == "raw":
            yield disk_file.raw(volume.capacity, content)
        else:
            yield io.BytesIO(disk_file.qcow2(volume.capacity, content, volume.base))

    # Definitions

    def define(self, domain: Domain) -> InstanceFacts:
        """Define an instance whose volumes are there."""
        with self._calls.call("define", domain.name) as world:
            return self._facts(domain.name, definitions.define(world, domain))

    def undefine(self, name: str) -> None:
        """Forget an instance."""
        with self._calls.call("undefine", name) as world:
            definitions.undefine(world, name)

    def set_aside(self, name: str, run: str) -> None:
        """Stop an instance and keep it under another name. Its UUID stays its own, as with libvirt."""
        with self._calls.call("set_aside", name) as world:
            definitions.set_aside(world, name, run)

    def bring_back(self, name: str, run: str) -> InstanceFacts:
        """Give what was set aside its name again."""
        with self._calls.call("bring_back", name) as world:
            return self._facts(name, definitions.bring_back(world, name, run))

    def delete_set_aside(self, name: str, run: str) -> None:
        """Forget what was set aside."""
        with self._calls.call("delete_set_aside", name) as world:
            definitions.delete_set_aside(world, name, run)

    # Power

    def start(self, name: str) -> None:
        """Boot a stopped instance."""
        with self._calls.call("start", name) as world:
            machine = own(world, name, "start")
            if machine.state is State.RUNNING:
                return
            require(machine, name, "start", State.STOPPED)
            machine.start(self._clock())
            world.record("start", name)

    def request_shutdown(self, name: str) -> None:
        """Ask the guest, which may need some time or not listen at all."""
        with self._calls.call("request_shutdown", name) as world:
            machine = own(world, name, "shut down")
            if machine.state is State.STOPPED:
                return
            require(machine, name, "shut down", State.RUNNING)
            guest = world.guest(name)
            if machine.stops is None and not guest.ignores_shutdown:
                machine.stops = self._clock() + guest.shutdown_seconds
                machine.settle(self._clock())
                world.record("request_shutdown", name)

    def power_off(self, name: str) -> None:
        """Be off at once, from every state."""
        with self._calls.call("power_off", name) as world:
            machine = own(world, name, "power off")
            if machine.state is not State.STOPPED:
                machine.stop()
                world.record("power_off", name)

    def reboot(self, name: str, kind: Literal["soft", "hard"], deadline: Deadline) -> None:
        """Stop and start again; a guest that does not listen never reboots softly."""
        with self._calls.call("reboot", name, deadline, after=None) as world:
            machine = own(world, name, "reboot")
            guest = world.guest(name)
            if kind == "soft":
                require(machine, name, "reboot", State.RUNNING)
        if kind == "soft":
            while guest.ignores_shutdown:
                deadline.sleep(TICK)
            deadline.sleep(guest.shutdown_seconds)
        with self._calls.call("reboot", name, deadline, before=None) as world:
            own(world, name, "reboot").start(self._clock())
            world.record("reboot", name)

    def pause(self, name: str) -> None:
        """Let the guest stand still."""
        self._move("pause", name, State.RUNNING, State.PAUSED)

    def unpause(self, name: str) -> None:
        """Let the guest go on."""
        self._move("unpause", name, State.PAUSED, State.RUNNING)

    def _move(self, call: str, name: str, before: State, after: State) -> None:
        with self._calls.call(call, name) as world:
            machine = own(world, name, call)
            if machine.state is not after:
                require(machine, name, call, before)
                machine.state = after
                world.record(call, name)

    def suspend(self, name: str, deadline: Deadline) -> None:
        """Be off, and remember whether the guest was paused."""
        with self._calls.call("suspend", name, deadline) as world:
            machine = own(world, name, "suspend")
            if machine.state is not State.SUSPENDED:
                require(machine, name, "suspend", State.RUNNING, State.PAUSED)
                machine.saved_paused = machine.state is State.PAUSED
                machine.state = State.SUSPENDED
                world.record("suspend", name)

    def resume(self, name: str, deadline: Deadline) -> None:
        """Be what the guest was before: its start and its console are those of then."""
        with self._calls.call("resume", name, deadline) as world:
            machine = own(world, name, "resume")
            if machine.state not in (State.RUNNING, State.PAUSED):
                require(machine, name, "resume", State.SUSPENDED)
                machine.state = State.PAUSED if machine.saved_paused else State.RUNNING
                world.record("resume", name)

    def wait_state(self, name: str, states: frozenset[State], deadline: Deadline) -> State:
        """Look until the state is one of these. Only what is there at first can be waited for."""
        with self._calls.call("wait_state", name, deadline) as world:
            if State.ABSENT not in states:
                machine_of(world, name)
        while True:
            with self.world() as world:
                machine = world.instances.get(name)
                state = State.ABSENT if machine is None else machine.state
            if state in states:
                return state
            deadline.sleep(TICK)

    # Sizes and devices

    def resize(self, name: str, sizes: Sizes) -> None:
        """Be of these sizes; a guest that runs only as far as it can grow."""
        with self._calls.call("resize", name) as world:
            devices.resize(world, name, sizes)

    def grow_disk(self, name: str, volume: str, size: int) -> None:
        """Make a disk larger."""
        with self._calls.call("grow_disk", name) as world:
            devices.grow_disk(world, name, volume, size)

    def attach_disk(self, name: str, disk: AttachedDisk) -> None:
        """Give it another disk."""
        with self._calls.call("attach_disk", name) as world:
            devices.attach_disk(world, name, disk)

    def detach_disk(self, name: str, volume: str, deadline: Deadline) -> None:
        """Take a disk away, if the guest lets go of it."""
        with self._calls.call("detach_disk", name, deadline, after=None) as world:
            devices.check_detach_disk(world, name, volume)
        self._let_go(name, deadline)
        with self._calls.call("detach_disk", name, deadline, before=None) as world:
            devices.detach_disk(world, name, volume)

    def replace_disk(self, name: str, volume: str, by: AttachedDisk) -> None:
        """Use another volume at the place of a disk's."""
        with self._calls.call("replace_disk", name) as world:
            devices.replace_disk(world, name, volume, by)

    def attach_nic(self, name: str, nic: Nic) -> None:
        """Give it another network interface."""
        with self._calls.call("attach_nic", name) as world:
            devices.attach_nic(world, name, nic)

    def detach_nic(self, name: str, mac: str, deadline: Deadline) -> None:
        """Take a network interface away, if the guest lets go of it."""
        with self._calls.call("detach_nic", name, deadline, after=None) as world:
            devices.check_detach(world, name)
        self._let_go(name, deadline)
        with self._calls.call("detach_nic", name, deadline, before=None) as world:
            devices.detach_nic(world, name, mac)

    def _let_go(self, name: str, deadline: Deadline) -> None:
        """Wait for a guest that runs; one that keeps its devices never lets go."""
        with self.world() as world:
            running = machine_of(world, name).state in (State.RUNNING, State.PAUSED)
            keeps = running and world.guest(name).keeps_devices
        while keeps:
            deadline.sleep(TICK)

    # Rescue

    def rescue(self, name: str, disk: AttachedDisk) -> None:
        """Boot from another disk."""
        with self._calls.call("rescue", name) as world:
            devices.rescue(world, name, disk)

    def unrescue(self, name: str) -> None:
        """Boot as before."""
        with self._calls.call("unrescue", name) as world:
            devices.unrescue(world, name)

    # Notes

    def note(self, name: str, note: Note, text: str | None) -> None:
        """Write it down, or strike it out."""
        with self._calls.call("note", name) as world:
            machine = own(world, name, "write something down about")
            if machine.notes.get(note) == text:
                return
            if text is None:
                del machine.notes[note]
            else:
                machine.notes[str(note)] = text
            world.record(f"note {note}" if text is not None else f"strike out {note}", name)

    def set_spec(self, name: str, spec: str) -> None:
        """Change the mark."""
        with self._calls.call("set_spec", name) as world:
            machine = own(world, name, "change the mark of")
            if machine.mark is not None and machine.mark.spec != spec:
                machine.mark = replace(machine.mark, spec=spec)
                world.record("set_spec", name)

    def set_keep(self, name: str, keep: Sequence[str]) -> None:
        """Change which disks are kept."""
        with self._calls.call("set_keep", name) as world:
            machine = own(world, name, "change the kept disks of")
            if machine.keep != list(keep):
                machine.keep = list(keep)
                world.record("set_keep", name)

    # The guest's agent

    def execute(self, name: str, command: Sequence[str], stdin: bytes, deadline: Deadline) -> Executed:
        """What the guest is told to come to for the program: see Guest.programs."""
        del stdin  # no simulated program reads it
        with self._calls.call("execute", name, deadline) as world:
            machine = own(world, name, "run a program in")
            require(machine, name, "run a program in", State.RUNNING)
            guest = world.guest(name)
            if not guest.agent or self._clock() < machine.started + guest.boot_seconds:
                raise NoAgent(
                    f"cannot run {command[0]} in {name}: its guest agent does not answer",
                    resolution="install and start qemu-guest-agent in the guest",
                )
            world.record(f"execute {command[0]}", name)
            return guest.run(command[0])

    # Looking in

    def console(self, name: str) -> str:
        """The guest's text, once it has booted."""
        with self._calls.call("console", name) as world:
            machine = machine_of(world, name)
            guest = world.guest(name)
            up = machine.starts > 0 and self._clock() >= machine.started + guest.boot_seconds
            return guest.console.replace("{name}", name) if up else ""

    def addresses(self, name: str) -> Sequence[str]:
        """Addresses from ranges that no network uses, the same ones each time, once the guest has booted."""
        with self._calls.call("addresses", name) as world:
            machine = machine_of(world, name)
            guest = world.guest(name)
            running = machine.state is State.RUNNING
            if not running or self._clock() < machine.started + guest.boot_seconds:
                return ()
            if guest.addresses is not None:
                return tuple(guest.addresses)
            number = uuid.UUID(machine.uuid).int
            return (f"198.18.{number >> 8 & 0xFF}.{number & 0xFF}", f"2001:db8::{number & 0xFFFF:x}")[
                : 2 * len(machine.nics)
            ]

    # Snapshot

    def export_disks(
        self, name: str, disks: Mapping[str, str], *, quiesce: bool = False, deadline: Deadline
    ) -> Sequence[VolumeFacts]:
        """Copy what the guest sees of its disks at one moment into flat volumes; what was left there is replaced."""
        with self.world() as world:
            exporting.copies(world, name, disks)  # nothing is frozen for what would be refused

        def begin(world: World) -> dict[str, Volume]:
            volumes = exporting.copies(world, name, disks)
            exporting.thaw(world, name)
            return volumes

        try:
            if quiesce:
                with self._calls.call("freeze", name, deadline) as world:
                    exporting.freeze(world, name)
            self._calls.make("export_disks", name, begin, deadline)
        except BaseException:
            with self.world() as world:
                exporting.thaw(world, name)
            raise
        with self.world() as world:
            return [volume_facts(world, target) for target in disks.values()]

    def thaw(self, name: str) -> None:
        """Thaw what is frozen."""
        with self._calls.call("thaw", name) as world:
            exporting.thaw(world, name)

    # How calls go

    def _copy(
        self, call: str, name: str, target: str, begin: Callable[[World], Volume | None], deadline: Deadline
    ) -> VolumeFacts:
        """Make the volume `target`. `begin` checks, and returns it as it will be; None when the one there will do."""

        def begin_it(world: World) -> dict[str, Volume]:
            volume = begin(world)
            return {} if volume is None else {target: volume}

        self._calls.make(call, name, begin_it, deadline)
        with self.world() as world:
            return volume_facts(world, target)

    def _import(
        self, call: str, path: Path, sha256: str, target: str, capacity: int | None, deadline: Deadline
    ) -> VolumeFacts:
        with self.world() as world:
            present = target in world.volumes and not world.volumes[target].partial
        content, size = (b"", 0) if present else disk_file.read_file(path, sha256, deadline)

        def begin(world: World) -> Volume | None:
            if target in world.volumes and not world.volumes[target].partial:
                return None
            kind = "qcow2" if target.endswith(".qcow2") else "raw"
            made, allocation = size if capacity is None else capacity, len(content)
            return Volume(made, kind, content.hex(), None, allocation, changed=self._clock())

        return self._copy(call, target, target, begin, deadline)

    def _facts(self, key: str, machine: Machine) -> InstanceFacts:
        return InstanceFacts(
            name=key,
            uuid=machine.uuid,
            host=self.host,
            power=machine.state,
            mark=machine.mark,
            sizes=machine.sizes,
            disks=tuple(machine.disks),
            nics=tuple(machine.nics),
            set_aside=machine.set_aside,
            keep=tuple(machine.keep),
            protect=machine.protect,
            notes=dict(machine.notes),
        )
