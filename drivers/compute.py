"""The one interface to hypervisors. Every driver passes tests/drivers/test_compute_contract.py."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from planvirt.deadline import Deadline
from planvirt.mark import Mark
from planvirt.plan import Nic
from planvirt.states import Note, State, noted_state


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do on this host. `verbs` holds names from planvirt.verbs; a plan is refused by them."""

    verbs: frozenset[str]
    image_formats: frozenset[str] = frozenset({"qcow2", "raw"})
    live_snapshot: bool = True
    quiesce: bool = False
    console: bool = True
    addresses: bool = True
    grow_disks: bool = True
    compressions: frozenset[str] = frozenset()  # what `compress_volume` knows


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host says of itself. `accel` is "kvm" or "tcg" (or "none" where it means nothing); sizes are bytes."""

    name: str
    uri: str
    hypervisor: str
    version: str
    accel: str
    free_space: int
    memory: int
    cpus: int


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A volume as a disk of a domain."""

    volume: str
    format: str = "qcow2"
    bus: str = "virtio"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large an instance is. `max_vcpus` and `max_memory` are how far it can grow while it runs; memory is bytes."""

    vcpus: int
    memory: int
    max_vcpus: int
    max_memory: int


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """An instance as it is on the host. `mark` is None for what planvirt did not make.

    `power` is the hypervisor's own word for its state: running, paused, suspended, stopped or error. `state` is the
    same except while a note says that it is rescued, resized or shelved. `disks` are those in the host's pool, boot
    disk first; each of `nics` has its hardware address. `keep` and `protect` are what its Domain said: the names of the
    disks that outlive it, and whether it may not be terminated. `notes` are what was written down about it.
    """

    name: str
    uuid: str
    host: str
    power: State
    mark: Mark | None
    sizes: Sizes
    disks: tuple[AttachedDisk, ...] = ()
    nics: tuple[Nic, ...] = ()
    addresses: tuple[str, ...] = ()
    set_aside: str | None = None  # the run that set it aside, if one did
    keep: tuple[str, ...] = ()
    protect: bool = False
    notes: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def state(self) -> State:
        """The state that the verb table asks for."""
        return noted_state(self.power, self.notes)

    @property
    def locked(self) -> bool:
        """What `lock` and `unlock` said last."""
        return Note.LOCKED in self.notes

    @property
    def vcpus(self) -> int:
        """The number of virtual processors."""
        return self.sizes.vcpus

    @property
    def memory(self) -> int:
        """The memory in bytes."""
        return self.sizes.memory

    @property
    def volumes(self) -> tuple[str, ...]:
        """The names of its disks' volumes, boot disk first."""
        return tuple(disk.volume for disk in self.disks)


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A volume in the host's pool that planvirt made. `mark` is None for a cached base image."""

    name: str
    capacity: int
    allocation: int
    format: str
    mark: Mark | None
    base: str | None = None  # name of the volume that it is an overlay of


@dataclass(frozen=True, slots=True)
class CachedVolume:
    """A cached base image, kernel or initrd of a host, or the beginning of one.

    `whole` is false while its import has not ended, or never will. `changed` is when it was last written to, in seconds
    since the epoch. `users` are the volumes that are built on it and the instances that have it or boot from it,
    foreign ones included.
    """

    name: str
    allocation: int
    whole: bool
    changed: float
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image file on this machine, already checked: its content hash, real format and virtual size in bytes."""

    path: Path
    sha256: str
    format: Literal["qcow2", "raw"]
    virtual_size: int


@dataclass(frozen=True, slots=True)
class Domain:
    """Everything a driver needs to define an instance. Disks, kernel and initrd are names of volumes in the host's
    pool; secrets are already revealed. The host remembers `keep` and `protect`: they must hold when the plan does not
    name the instance any more.
    """

    name: str
    uuid: str
    vcpus: int
    memory: int
    mark: Mark
    disks: Sequence[AttachedDisk] = ()
    nics: Sequence[Nic] = ()
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()  # names of disks that outlive the instance
    protect: bool = False
    max_vcpus: int = 0  # how far it can grow while it runs; 0: not at all
    max_memory: int = 0

    @property
    def sizes(self) -> Sizes:
        """How large it is, and can become."""
        return Sizes(self.vcpus, self.memory, max(self.vcpus, self.max_vcpus), max(self.memory, self.max_memory))


@dataclass(frozen=True, slots=True)
class Executed:
    """How a program in a guest ended. `truncated` tells that it wrote more than is kept."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class Compute(Protocol):
    """A host with a hypervisor.

    Every method may raise Transient (it may pass), Conflict, NotFound, Unsupported, OutOfSpace or DriverError.
    Methods that make or remove something are idempotent: to make what is there already *with the same mark* succeeds
    and returns it; to remove what is not there succeeds. Nothing without planvirt's mark is ever changed: NameTaken or
    Conflict instead. Methods that take a deadline stop soon after it passes, raising DeadlinePassed, and leave nothing
    half-made; they may be called from several threads at once.
    """

    host: str

    def close(self) -> None:
        """Give back connections. The driver may be used again; it then connects anew."""

    def capabilities(self) -> Capabilities:
        """What can be done here. Needs the host to be reachable."""

    def facts(self) -> HostFacts:
        """What the host is and has left."""

    def instances(self) -> Sequence[InstanceFacts]:
        """All instances of the host, also those that planvirt did not make, sorted by name; without addresses."""

    def instance(self, name: str) -> InstanceFacts | None:
        """One instance by its name (a foreign one too), without addresses; None when there is none."""

    def volumes(self) -> Sequence[VolumeFacts]:
        """All volumes that planvirt made, sorted by name, cached base images included."""

    def cached(self) -> Sequence[CachedVolume]:
        """All cached images, kernels and initrds, half-made ones included, each with what uses it; sorted by name."""

    # Volumes

    def import_image(self, image: LocalImage, deadline: Deadline) -> VolumeFacts:
        """Have the image as a cached base volume, named by its hash. A present one is used as it is."""

    def import_file(self, path: Path, sha256: str, deadline: Deadline) -> str:
        """Have a kernel or initrd of this machine in the host's pool; returns the volume's name, made from the hash."""

    def create_volume(
        self, name: str, *, size: int, format: Literal["qcow2", "raw"], base: str | None, deadline: Deadline
    ) -> VolumeFacts:
        """Make a volume of `size` bytes: empty, or an overlay (qcow2) or full copy (raw) of the volume `base`."""

    def delete_volume(self, name: str) -> None:
        """Delete a volume that bears a mark or is a cached base. A missing one counts as deleted.

        One that another volume is built on is a Conflict, and so is a cached one that an instance uses.
        """

    def compress_volume(self, name: str, target: str, compression: str, deadline: Deadline) -> VolumeFacts:
        """Copy a flat qcow2 volume into the new volume `target`, compressed; one that is there already is replaced.

        When the call fails or its deadline passes, `target` is gone.
        """

    def open_volume(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Read the volume's file from its start, sparse parts as zeros; works over a remote connection too."""

    # Definitions

    def define(self, domain: Domain) -> InstanceFacts:
        """Define an instance, stopped. Raises NameTaken when the name or UUID belongs to something else."""

    def undefine(self, name: str) -> None:
        """Power off and forget an instance with planvirt's mark, all it left on the host besides volumes included."""

    def set_aside(self, name: str, run: str) -> None:
        """Power off an instance and keep it under another name, marked as set aside by `run`: no disk is touched."""

    def bring_back(self, name: str, run: str) -> InstanceFacts:
        """Give an instance that `run` set aside its name again, stopped. NotFound when there is neither."""

    def delete_set_aside(self, name: str, run: str) -> None:
        """Forget for good what `run` set aside under `name`. The caller deletes its volumes."""

    # Power

    def start(self, name: str) -> None:
        """Start a stopped instance; a running one stays as it is. A paused or suspended one is a Conflict."""

    def request_shutdown(self, name: str) -> None:
        """Ask the guest to shut down, without waiting for it."""

    def power_off(self, name: str) -> None:
        """Pull the plug; a stopped instance stays as it is."""

    def reboot(self, name: str, kind: Literal["soft", "hard"], deadline: Deadline) -> None:
        """Restart and return when the guest has begun anew. `soft` asks the guest; `hard` also starts a stopped one."""

    def pause(self, name: str) -> None:
        """Stop a running guest in its tracks, its memory stays; a paused one stays as it is."""

    def unpause(self, name: str) -> None:
        """Let a paused guest go on; a running one stays as it is."""

    def suspend(self, name: str, deadline: Deadline) -> None:
        """Save the memory of a running or paused guest and be off; a suspended instance stays as it is.

        When the deadline passes first, the guest goes on as before.
        """

    def resume(self, name: str, deadline: Deadline) -> None:
        """Let a suspended guest go on from its saved memory; one that runs or is paused stays as it is.

        What was paused when it was saved is paused again, where the hypervisor remembers that.
        """

    def wait_state(self, name: str, states: frozenset[State], deadline: Deadline) -> State:
        """Return as soon as the instance is in one of the states; DeadlinePassed otherwise."""

    # Sizes

    def resize(self, name: str, sizes: Sizes) -> None:
        """Have the instance be of these sizes, in its definition and, while it runs, in the guest.

        While it runs or is paused, processors and memory can grow as far as the maxima of its facts, memory can also
        become less, and the maxima stay: everything else is a Conflict that changes nothing. Otherwise all can change.
        """

    def grow_disk(self, name: str, volume: str, size: int) -> None:
        """Make a disk of the instance `size` bytes large, in the running guest too. A smaller size is a Conflict."""

    # Devices. Both the definition and, while it runs or is paused, the guest are changed.

    def attach_disk(self, name: str, disk: AttachedDisk) -> None:
        """Give the instance a volume as its last disk; one that it has stays as it is."""

    def detach_disk(self, name: str, volume: str, deadline: Deadline) -> None:
        """Take a disk away, and return when the guest has let go of it; the volume stays.

        A guest that does not let go before the deadline keeps the disk, in its definition too. One that it has not
        counts as detached. The boot disk is refused with Conflict.
        """

    def replace_disk(self, name: str, volume: str, by: AttachedDisk) -> None:
        """Have the instance use another volume in place of a disk's, at the same place; both volumes stay.

        The instance must be off (stopped or error), or else it is a Conflict. An instance that uses `by` already stays
        as it is. `volume` need not exist any more.
        """

    def attach_nic(self, name: str, nic: Nic) -> None:
        """Give the instance a network interface, whose hardware address is given; one that it has stays as it is."""

    def detach_nic(self, name: str, mac: str, deadline: Deadline) -> None:
        """Take the network interface with that hardware address away, as `detach_disk` does."""

    # Rescue: an instance that is off can boot from another disk for a time.

    def rescue(self, name: str, disk: AttachedDisk) -> None:
        """Have an instance that is off boot from `disk`, with its own disks behind that, and note Note.RESCUED.

        The text of the note is the driver's own. An instance that is rescued with the same disk stays as it is.
        """

    def unrescue(self, name: str) -> None:
        """Have an instance that is off boot as before its rescue, and strike the note out. The volume stays."""

    # What is written down about an instance, by Note. It outlasts everything but the instance itself.

    def note(self, name: str, note: Note, text: str | None) -> None:
        """Write something down about the instance, in place of an earlier note of that kind; None strikes it out."""

    def set_spec(self, name: str, spec: str) -> None:
        """Change the `spec` in the instance's mark, after it was made to fit another definition."""

    def set_keep(self, name: str, keep: Sequence[str]) -> None:
        """Remember these names of disks as those that outlive the instance, in place of the earlier ones."""

    # The guest's agent

    def execute(self, name: str, command: Sequence[str], stdin: bytes, deadline: Deadline) -> Executed:
        """Run a program in the guest, with its arguments and without a shell, and return when it has ended.

        Raises NoAgent while no agent answers. When the deadline passes first the program is killed.
        """

    # Looking in

    def console(self, name: str) -> str:
        """All that the guest has written to its serial console since its last start or reboot."""

    def addresses(self, name: str) -> Sequence[str]:
        """The guest's IP addresses as far as the host knows them, IPv4 first."""

    # Snapshot

    def export_disks(
        self, name: str, disks: Mapping[str, str], *, quiesce: bool = False, deadline: Deadline
    ) -> Sequence[VolumeFacts]:
        """Copy the content of volumes of instance `name` into new flat qcow2 volumes: `disks` tells the target of each.

        The copies are all of one and the same moment, in every power state; the disks, their chains and their bases
        stay as they are. With `quiesce` the guest's file systems are frozen for that moment; NotFrozen when they cannot
        be. When the call fails or its deadline passes, the file systems are thawed and the targets are gone.
        """

    def thaw(self, name: str) -> None:
        """Thaw what a dead process has left frozen in the guest. A guest with nothing frozen stays as it is.

        So does one that is off, or absent, or has no agent: nothing is frozen there.
        """
