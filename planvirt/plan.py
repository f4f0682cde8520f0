"""What a plan means, once it is checked and rendered: frozen values that the rest of the program trusts.

Sizes are bytes, durations are seconds. A value that only exists while the plan runs (the address of an instance, the
output of an earlier step, a secret) is held as a `Deferred` until its step begins.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from planvirt.states import State


class OnFailure(StrEnum):
    """What a run does about the steps that succeeded when a later one fails."""

    ROLLBACK = "rollback"
    KEEP = "keep"
    ASK = "ask"


class OnCrash(StrEnum):
    """What recovery does with a run whose process died."""

    ROLLBACK = "rollback"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Deferred:
    """A template that is rendered when its step begins.

    `names` are the run-time names that it uses, such as "steps.image", "instances.db", "secrets.ops_key", "run.date".
    `known` holds the values of the other names that it uses (`inputs`, `env`, `each`, `index`), as the plan has them.
    """

    text: str
    names: tuple[str, ...]
    line: int
    column: int
    known: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how patiently, a step that failed for a passing reason is tried again."""

    attempts: int = 1
    delay: float = 5.0
    backoff: float = 2.0
    max_delay: float = 60.0
    jitter: float = 0.0

    def delays(self, chance: random.Random) -> Iterator[float]:
        """Seconds to wait before the second attempt, the third, and so on: one value fewer than attempts."""
        for attempt in range(self.attempts - 1):
            pause = min(self.delay * self.backoff**attempt, self.max_delay)
            yield pause * (1 + chance.uniform(-self.jitter, self.jitter))


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of an instance. The first one is the boot disk and starts as a copy of the image, if there is one.

    `size` is None when the disk is as large as the image; `keep` lets the disk outlive its instance.
    """

    name: str
    size: int | None = None
    keep: bool = False
    format: Literal["qcow2", "raw"] = "qcow2"
    bus: str = "virtio"


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface: on a libvirt network, on a host bridge, or behind QEMU's user-mode network."""

    kind: Literal["network", "bridge", "user"]
    source: str = ""
    mac: str | None = None
    model: str = "virtio"


@dataclass(frozen=True, slots=True)
class Boot:
    """Direct kernel boot. The paths are absolute and were checked against the allowed folders."""

    kernel: Path
    initrd: Path | None = None
    cmdline: str | Deferred = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """When an instance counts as up after its launch: all that is given must hold within `within` seconds."""

    console: str | None = None
    port: int | None = None
    address: bool = False
    within: float = 300.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the plan names: where it comes from, and how to know that it is the right one.

    `source` is an absolute path, or "STORE/IMAGE" for an image in a store. `checksum` is "sha256:HEX" or "sha512:HEX".
    """

    name: str
    source: str
    checksum: str | None = None
    format: Literal["qcow2", "raw"] | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One virtual machine. An entry of the plan with `count` or `for_each` becomes several of these.

    `group` is the entry's key in the plan, `name` the machine's own name. `image` is the name of an entry of `images`,
    a store reference "STORE/IMAGE", or a Deferred that becomes one.
    """

    name: str
    group: str
    host: str
    vcpus: int
    memory: int
    max_vcpus: int = 0  # how far it can grow while it runs; at least vcpus, whatever is said here
    max_memory: int = 0
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    image: str | Deferred | None = None
    boot: Boot | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # names of instances, and ids of operations
    state: State = State.RUNNING
    ready: Ready | None = None
    protect: bool = False
    resize: Mapping[str, Any] = field(
        default_factory=dict
    )  # arguments of the `resize` that a new declared size asks for
    retry: Retry = Retry()
    timeout: float = 600.0
    index: int | None = None
    each: Mapping[str, Any] | None = None
    line: int = 0
    column: int = 0

    def spec(self) -> str:
        """What makes the machine what it is, as 64 hexadecimal digits: 32 for its image, 32 for how it boots.

        An instance whose mark says another spec is another machine. Sizes, disks and network interfaces are no part of
        that: they can change, and the host says how they are.
        """
        boot = self.boot
        parts = (
            _text(self.image),
            None if boot is None else [str(boot.kernel), str(boot.initrd or ""), _text(boot.cmdline)],
        )
        return "".join(hashlib.sha256(json.dumps(part).encode()).hexdigest()[:32] for part in parts)

    def spec_after_rebuild(self, spec: str) -> str:
        """What becomes of that spec when the machine's boot disk is made anew from this definition's image."""
        return self.spec()[:32] + spec[32:]

    def differs_from(self, spec: str) -> tuple[str, ...]:
        """Which parts of what makes the machine are not as in that spec: "image", "boot"."""
        own = self.spec()
        return tuple(
            part
            for part, (begin, end) in {"image": (0, 32), "boot": (32, 64)}.items()
            if own[begin:end] != spec[begin:end]
        )


def _text(value: str | Deferred | None) -> str | None:
    if not isinstance(value, Deferred):
        return value
    return f"{value.text}\0{json.dumps(dict(value.known), sort_keys=True)}" if value.known else value.text


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of `operations` (or of `finally`): an action on instances, in order unless `needs` says otherwise.

    `needs` is None when the plan does not say; then the operation waits for everything before it.
    `arguments` is the entry's `with`; durations in it are seconds, sizes bytes, and its values may be Deferred.
    """

    id: str
    action: str
    instances: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] | None = None
    when: bool | Deferred = True
    parallel: int | None = None
    retry: Retry = Retry()
    timeout: float = 600.0
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole plan, ready to become a graph."""

    name: str
    path: Path
    text: str  # the file as it was read: a run keeps it for its recovery
    description: str = ""
    commit: str | None = None  # the git commit of the file, with "-dirty" when it has changes
    inputs: Mapping[str, Any] = field(default_factory=dict)
    on_failure: OnFailure = OnFailure.ROLLBACK
    on_crash: OnCrash = OnCrash.ROLLBACK
    images: Mapping[str, Image] = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()
    operations: tuple[Operation, ...] = ()
    finally_: tuple[Operation, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 of the text and of the inputs: two runs with the same hash ran the same plan."""
        inputs = json.dumps(dict(self.inputs), sort_keys=True)
        return hashlib.sha256(f"{self.text}\0{inputs}".encode()).hexdigest()

    def instance(self, name: str) -> Instance:
        """The instance of that name; the name is known to exist."""
        return next(instance for instance in self.instances if instance.name == name)
