"""Where a disk with content comes from: a file of the plan, a file of the web, or an image in a store."""

import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from drivers.compute import LocalImage, VolumeFacts
from drivers.download import download, whole_file
from drivers.errors import NotFound, WrongChecksum
from drivers.image_file import inspect
from drivers.image_store import StoredImage
from flows.call import Call
from flows.world import World
from planvirt.deadline import Deadline
from planvirt.errors import PlanvirtError
from planvirt.graph import Step
from planvirt.plan import Image, Instance, Plan
from planvirt.units import format_size
from planvirt.web import is_address, shown


class UnusableImages(PlanvirtError):
    """Some images are missing, broken or do not fit, so nothing was begun."""


def local_image(reference: str, images: Mapping[str, Image], world: World, deadline: Deadline) -> LocalImage:
    """The checked image file behind the name of one of the plan's images, or behind a store reference "STORE/IMAGE"."""
    image = images.get(reference) or Image(name=reference, source=reference)
    if image.source.startswith("/") or is_address(image.source) or world.has_checked(reference):
        found = world.checked_image(reference, lambda: _check(image, world, deadline), deadline)
    else:
        # By its id: an earlier step may have made a newer image of that name since it was last asked for.
        stored = _find(image, world)
        found = world.checked_image(
            f"{stored.store}/{stored.id}", lambda: _stored(stored, image, world, deadline), deadline
        )
    if found.path.is_relative_to(world.cache):
        _note_use(found.path)
    return found


def at_hand(reference: str, images: Mapping[str, Image], world: World) -> bool:
    """Whether the image can be looked at without fetching it from the web."""
    image = images.get(reference)
    if image is None or image.checksum is None or not is_address(image.source) or world.has_checked(reference):
        return True
    return whole_file(_downloads(world), image.checksum).exists()


def base_of(call: Call, reference: str) -> VolumeFacts:
    """The image as a volume on the step's host that disks are built on: brought there if it is not there yet."""
    call.phase(f"fetch image {reference}")
    image = local_image(reference, call.run.images, call.world, call.deadline)
    return call.compute.import_image(image, call.deadline)


def image_of(step: Step) -> str | None:
    """The image that the step makes a disk from; None when there is none, or when an earlier step makes it."""
    wanted = step.instance.image
    if step.action in ("rescue", "rebuild", "restore"):
        wanted = step.arguments.get("image", wanted)
    elif step.action != "launch":
        return None
    return wanted if isinstance(wanted, str) else None


def check_images(plan: Plan, steps: Iterable[Step], world: World) -> None:
    """Raise, before anything is touched, what is wrong with the images that the steps make disks from.

    An image that an earlier step makes cannot be looked at yet, nor one that is still in the web: the step fetches it,
    which can take long, be tried again, and goes on where it was.
    """
    errors: dict[str, PlanvirtError] = {}
    for step in steps:
        reference = image_of(step)
        if reference is None or not at_hand(reference, plan.images, world):
            continue
        try:
            image = local_image(reference, plan.images, world, Deadline())
            if step.action == "launch":
                _check_size(step.instance, reference, image)
        except PlanvirtError as error:
            errors.setdefault(str(error), error)
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise UnusableImages(
            f"cannot run {plan.name}: {len(errors)} images cannot be used",
            details="\n".join(errors),
            resolution="\n".join(dict.fromkeys(error.resolution for error in errors.values() if error.resolution)),
        )


def _check_size(instance: Instance, reference: str, image: LocalImage) -> None:
    size = instance.disks[0].size if instance.disks else None
    if size is not None and size < image.virtual_size:
        raise UnusableImages(
            f"cannot launch {instance.name}: image {reference} is larger than the disk",
            details=f"the image needs {format_size(image.virtual_size)}, disk {instance.disks[0].name} has "
            f"{format_size(size)}",
            resolution="give the disk the image's size or more, or no size at all",
        )


def _check(image: Image, world: World, deadline: Deadline) -> LocalImage:
    if image.source.startswith("/"):
        return inspect(Path(image.source), checksum=image.checksum, declared_format=image.format)
    if is_address(image.source):
        return _from_the_web(image, world, deadline)
    return _stored(_find(image, world), image, world, deadline)


def _find(image: Image, world: World) -> StoredImage:
    store_name, _, wanted = image.source.partition("/")
    stored = world.store(store_name).find(wanted)
    if stored is None:
        raise NotFound(
            f"cannot find image {wanted} in store {store_name}", resolution="'planvirt image list' shows what there is"
        )
    return stored


def _stored(stored: StoredImage, image: Image, world: World, deadline: Deadline) -> LocalImage:
    path = world.store(stored.store).path(stored.id) or _fetch(stored, world, deadline)
    return inspect(path, checksum=image.checksum or stored.checksum, declared_format=image.format or stored.format)


def _from_the_web(image: Image, world: World, deadline: Deadline) -> LocalImage:
    """Fetch the image unless it is there. A copy that has gone bad on this machine's disk is fetched anew."""
    folder = _downloads(world)

    def look(path: Path) -> LocalImage:
        called = shown(image.source)
        return inspect(path, checksum=image.checksum, declared_format=image.format, deadline=deadline, called=called)

    path = download(image.source, image.checksum, folder, deadline)
    try:
        return look(path)
    except WrongChecksum:
        path.unlink(missing_ok=True)
        return look(download(image.source, image.checksum, folder, deadline))


def _note_use(path: Path) -> None:
    """Tell `image prune` that the file was wanted just now: not every file system notes when a file is read."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _downloads(world: World) -> Path:
    return world.cache / "downloads"


def _fetch(stored: StoredImage, world: World, deadline: Deadline) -> Path:
    """Bring an image of a remote store into the cache: whole or not at all."""
    folder = world.cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{stored.store}-{stored.id}"
    if target.exists():
        return target
    with (
        world.store(stored.store).open(stored.id) as source,
        tempfile.NamedTemporaryFile(dir=folder, prefix=".part-") as part,
    ):
        done = 0
        while block := source.read(1 << 20):
            deadline.check()
            part.write(block)
            done += len(block)
            deadline.progress(done, stored.size or done)
        part.flush()
        os.fsync(part.fileno())
        # A link, not a rename: the temporary file takes its own name away at the end.
        if not target.exists():
            os.link(part.name, target)
    return target
