"""A simulated copy of the configured hosts and stores, to rehearse on. The real ones are only read, once each."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from drivers.compute import Capabilities, InstanceFacts, LocalImage, VolumeFacts
from drivers.errors import DriverError, NotFound
from drivers.simulated import SimulatedCompute, disk_file
from drivers.simulated.guards import aside_name
from drivers.simulated.world import Machine, Volume
from drivers.simulated.world import World as Paper
from flows.facts import name_of
from flows.images import at_hand, image_of, local_image
from flows.world import World
from planvirt.config import Config, HostConfig, StoreConfig
from planvirt.deadline import Deadline
from planvirt.graph import Step
from planvirt.plan import Image, Plan
from planvirt.states import State
from planvirt.web import is_address

_ROOM = 1 << 40  # bytes that are free on every copy: a rehearsal does not tell whether disks fit
_UNKNOWN_SIZE = 1 << 20  # bytes of a disk or an image that cannot be looked at


@dataclass(frozen=True, slots=True)
class Replica:
    """The copy: a configuration with the names of the real one, whose hosts and stores are files in one folder.

    `capabilities` are the real ones of the hosts that answered. `images` stand in for the real ones, by reference.
    """

    config: Config
    capabilities: Mapping[str, Capabilities] = field(default_factory=dict)
    images: Mapping[str, LocalImage] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def host(self, name: str) -> SimulatedCompute:
        """The copy of a host, to look at and to change."""
        return SimulatedCompute.in_file(name, self.config.home / "hosts" / f"{name}.json")

    def open(self) -> World:
        """The copy as a world to run in. Every port of its guests answers."""
        world = World(self.config, answers=lambda _address, _port: True)
        for reference, image in self.images.items():
            world.checked_image(reference, lambda image=image: image)  # type: ignore[misc] # a lambda's default
        return world


def replicate(world: World, plan: Plan, folder: Path, *, offline: bool) -> Replica:
    """Ask every host once, side by side, and make the copy in the folder. One that does not answer is empty there."""
    config = world.config
    replica = Replica(
        replace(
            config,
            home=folder,
            hosts={
                name: HostConfig(name, "simulated", path=folder / "hosts" / f"{name}.json") for name in config.hosts
            },
            stores={name: StoreConfig(name, "directory", folder / "stores" / name) for name in config.stores},
            journal_url=f"sqlite:///{folder}/journal.sqlite",
        )
    )
    if offline:
        return replace(replica, notes=("no host was asked: every host begins empty",))
    seen: dict[str, _Seen] = {}
    silent: dict[str, str] = {}

    def ask(host: str) -> None:
        try:
            seen[host] = _look(world, plan, host)
        except DriverError as error:
            silent[host] = error.brief

    with ThreadPoolExecutor(max(1, min(len(config.hosts), 16))) as pool:
        list(pool.map(ask, config.hosts))
    for host, found in seen.items():
        with replica.host(host).world() as paper:
            _fill(paper, found)
    return replace(
        replica,
        capabilities={host: found.capabilities for host, found in seen.items()},
        notes=tuple(f"host {host} begins empty: {why}" for host, why in sorted(silent.items())),
    )


def with_images(replica: Replica, world: World, plan: Plan, steps: Iterable[Step], *, offline: bool) -> Replica:
    """The copy with a small stand-in for every image that the steps make disks from.

    Image files on this machine are checked as a run would check them; those elsewhere are only looked up.
    """
    images: dict[str, LocalImage] = {}
    notes: list[str] = []
    for step in steps:
        reference = image_of(step)
        if reference is None or reference in images:
            continue
        real = _real(reference, plan, world, offline=offline)
        if real is None:
            notes.append(f"image {reference} was not read: it is taken to be right, and to be small")
        images[reference] = _stand_in(reference, real, replica.config.home / "stand-ins")
    return replace(replica, images=images, notes=(*replica.notes, *notes))


@dataclass(frozen=True, slots=True)
class _Seen:
    instances: tuple[InstanceFacts, ...]
    capabilities: Capabilities
    volumes: tuple[VolumeFacts, ...]


def _look(world: World, plan: Plan, host: str) -> _Seen:
    driver = world.host(host)
    instances = tuple(driver.instances())
    # To ask for volumes makes the pool on a host that has none yet, so it is done only where there may be one.
    used = any(item.mark is not None for item in instances)
    kept = any(item.host == host and any(disk.keep for disk in item.disks) for item in plan.instances)
    return _Seen(instances, driver.capabilities(), tuple(driver.volumes()) if used or kept else ())


def _fill(paper: Paper, seen: _Seen) -> None:
    for volume in seen.volumes:
        paper.volumes[volume.name] = Volume(volume.capacity, volume.format, None, volume.base, volume.allocation)
    for item in seen.instances:
        key = item.name if item.set_aside is None else aside_name(name_of(item), item.set_aside)
        paper.instances[key] = Machine(
            name_of(item), item.uuid, item.mark, item.power, item.vcpus, item.memory, item.sizes.max_vcpus,
            item.sizes.max_memory, list(item.disks), list(item.nics), set_aside=item.set_aside,
            starts=int(item.power != State.STOPPED), keep=list(item.keep), protect=item.protect, notes=dict(item.notes),
        )  # fmt: skip
    named = [name for item in seen.instances for name in item.volumes]
    for name in (*named, *(volume.base for volume in seen.volumes if volume.base is not None)):
        paper.volumes.setdefault(name, Volume(_UNKNOWN_SIZE))
    paper.space = _ROOM + sum(volume.allocation for volume in paper.volumes.values())


def _real(reference: str, plan: Plan, world: World, *, offline: bool) -> LocalImage | None:
    """The real image; None when it is not on this machine. Raises what is wrong with it."""
    image = plan.images.get(reference) or Image(name=reference, source=reference)
    if not at_hand(reference, plan.images, world):
        return None
    name, _, wanted = image.source.partition("/")
    if name and not is_address(image.source):
        if offline:
            return None
        store = world.store(name)
        stored = store.find(wanted)
        if stored is None:
            raise NotFound(
                f"cannot find image {wanted} in store {name}", resolution="'planvirt image list' shows what there is"
            )
        if store.path(stored.id) is None:
            return None
    return local_image(reference, plan.images, world, Deadline())


def _stand_in(reference: str, real: LocalImage | None, folder: Path) -> LocalImage:
    """A file of the image's format that says it has the image's size, and holds the image's name."""
    kind, size = ("qcow2", _UNKNOWN_SIZE) if real is None else (real.format, real.virtual_size)
    content = reference.encode()
    data = disk_file.qcow2(size, content, None) if kind == "qcow2" else content
    digest = hashlib.sha256(data).hexdigest()
    folder.mkdir(exist_ok=True)
    (folder / digest).write_bytes(data)
    return LocalImage(folder / digest, digest, "qcow2" if real is None else real.format, size)
