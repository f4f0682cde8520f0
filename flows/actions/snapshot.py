"""snapshot: copy disks of an instance, as they are at one moment, into verified images in a store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drivers.compute import InstanceFacts
from drivers.errors import NotFound, NotFrozen
from drivers.image_store import ImageStore
from flows.actions.action import Action, Finding
from flows.call import Call
from flows.disk_image import properties
from flows.disks import disks_of
from planvirt.journal.records import StepRecord
from planvirt.mark import image_id


@dataclass(frozen=True, slots=True)
class DiskImage:
    """An image that a step makes of a disk, and the volumes on the host that the disk goes through on its way.

    `made` is what the copy is made into, raw or compressed; "" where it is uploaded as it is.
    """

    disk: str
    id: str
    name: str
    copy: str
    made: str

    @property
    def volumes(self) -> tuple[str, ...]:
        """The volumes that are gone when the image is there."""
        return (self.copy, self.made) if self.made else (self.copy,)


def do(call: Call) -> Mapping[str, Any]:
    """Copy the disks into flat volumes on the host, upload these, verify the images, and remove the volumes."""
    return take(call, "snapshot", {})


def take(call: Call, kind: str, more: Mapping[str, str]) -> Mapping[str, Any]:
    """Make images of that kind of the disks that the arguments name; `more` are properties for them."""
    found = call.facts()
    if found is None or found.mark is None:
        raise NotFound(f"cannot {kind} {call.instance}: it is not there")
    chosen = _chosen(call, kind, found)
    store = call.world.store(call.arguments["upload"]["store"])
    begun = "images" in call.undo
    records = "the image record" if len(chosen) == 1 else "the image records"
    call.phase(f"create {records}", store=store.name, images=_planned(call, kind, chosen))
    images = list(images_of(call.undo))
    sizes: Mapping[str, int] = {}
    whole = all(_is_active(store, image.id) for image in images)  # then an earlier attempt came that far
    if not whole:
        if begun:
            _let_go_on(call)
        for image in images:
            _create(call, store, image, {**properties(call, kind, found.mark.spec, image.disk), **more})
        sizes = _export(call, {chosen[image.disk]: image.copy for image in images})
    for image in images:
        if not whole:
            _upload(call, store, image, sizes[image.copy], _of(image, images))
        _clean_up(call, image, _of(image, images))  # at once, as the next one may need the room
    return outputs(call)


def outputs(call: Call) -> Mapping[str, Any]:
    """The images, as later steps refer to them, by disk; where it is just one, all that is known of it besides."""
    store, images = call.undo["store"], list(images_of(call.undo))
    found = {image.disk: call.world.store(store).get(image.id) for image in images}
    for image in images:
        if found[image.disk] is None:
            raise NotFound(f"cannot find image {image.id} in store {store} any more")
    names = {"images": {image.disk: f"{store}/{image.id}" for image in images}}
    stored = found[images[0].disk]
    if len(images) > 1 or stored is None:
        return names
    return names | {
        "image": f"{store}/{stored.id}",
        "id": stored.id,
        "name": stored.name,
        "store": store,
        "size": stored.size,
        "checksum": stored.checksum,
    }


def probe(call: Call) -> Finding:
    """Done when the images are active and the copies on the host are gone."""
    images = list(images_of(call.undo))
    if not images:
        return Finding.NOTHING
    store = call.world.store(call.undo["store"])
    there = {volume.name for volume in call.compute.volumes()}
    copied = any(there.intersection(image.volumes) for image in images)
    if all(_is_active(store, image.id) for image in images) and not copied:
        return Finding.DONE
    recorded = any(store.get(image.id) is not None for image in images)
    return Finding.PARTIAL if copied or recorded else Finding.NOTHING


def undo(call: Call) -> None:
    """Thaw the guest if it was left frozen, and delete the images and any half-made copy."""
    images = list(images_of(call.undo))
    if not images:
        return
    store = call.world.store(call.undo["store"])
    if any(not _is_active(store, image.id) for image in images):
        _let_go_on(call)
    for image in images:
        call.phase(f"delete the image{_of(image, images)}")
        store.delete(image.id)
    for image in images:
        _clean_up(call, image, _of(image, images))


def leftovers(record: StepRecord) -> list[str]:
    """The images and the copies, by name."""
    images = list(images_of(record.undo))
    return [
        *(f"image {image.id} in store {record.undo['store']}" for image in images),
        *(f"volume {volume} on {record.host}" for image in images for volume in image.volumes),
    ]


def images_of(undo: Mapping[str, Any]) -> Iterator[DiskImage]:
    """The images of a step, from what it has recorded; none if it has not begun."""
    for disk, image in undo.get("images", {}).items():
        yield DiskImage(disk, **image)
    if "image" in undo and "images" not in undo:  # written by a planvirt that knew one disk at a time
        yield DiskImage("", undo["image"], "", undo["volume"], "")


def _chosen(call: Call, kind: str, found: InstanceFacts) -> dict[str, str]:
    """The volumes to copy by the names of the disks: those that `with` names, else the boot disk."""
    present = {name: disk.volume for name, disk in disks_of(found).items()}
    wanted = call.arguments.get("disks") or [call.arguments.get("disk") or next(iter(present), "")]
    if wanted == "all":
        wanted = list(present)
    missing = [name for name in wanted if name not in present]
    if missing or not wanted:
        raise NotFound(
            f"cannot {kind} disk {', '.join(filter(None, missing))} of {call.instance}: "
            f"it has {', '.join(present) or 'none'}",
            resolution="name its disks in the step's 'with', or leave that out for the boot disk",
        )
    return {name: present[name] for name in wanted}


def _planned(call: Call, kind: str, chosen: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The images to make, with all their names, before any of them is there."""
    several, name = len(chosen) > 1, str(call.arguments["upload"]["name"])
    images = {}
    for disk in chosen:
        images[disk] = {
            "id": image_id(call.run.id, f"{call.step}/{disk}" if several else call.step),
            "name": f"{name}-{disk}" if several else name,
            "copy": call.volume(f"{kind}-{call.operation}-{disk}"),
            "made": call.volume(f"{kind}-made-{call.operation}-{disk}") if _is_made(call) else "",
        }
    return images


def _of(image: DiskImage, images: list[DiskImage]) -> str:
    """Which image is meant, in words; nothing where there is just one."""
    return f" of disk {image.disk}" if len(images) > 1 else ""


def _is_active(store: ImageStore, image: str) -> bool:
    stored = store.get(image)
    return stored is not None and stored.status == "active"


def _create(call: Call, store: ImageStore, image: DiskImage, marked: Mapping[str, str]) -> None:
    """Have a record without data: what an earlier attempt uploaded is of an earlier moment than the others."""
    if _is_active(store, image.id):
        call.phase(f"delete the image of disk {image.disk}: it is of an earlier moment")
        store.delete(image.id)
    store.create(image.id, name=image.name, format=_format(call), properties=marked)


def _format(call: Call) -> str:
    return str(call.arguments.get("format", "qcow2"))


def _is_made(call: Call) -> bool:
    return _format(call) == "raw" or "compress" in call.arguments


def _export(call: Call, copies: Mapping[str, str]) -> Mapping[str, int]:
    """Copy the disks, with the guest's file systems frozen if the plan asks for it and the guest can.

    Returns how large the disk in each copy is.
    """
    wanted = call.arguments.get("quiesce", "never")
    call.phase("copy the disk" if len(copies) == 1 else "copy the disks", quiesce=wanted)

    def export(*, quiesce: bool) -> Mapping[str, int]:
        made = call.compute.export_disks(call.instance, copies, quiesce=quiesce, deadline=call.deadline)
        return {volume.name: volume.capacity for volume in made}

    if wanted != "never":
        try:
            return export(quiesce=True)
        except NotFrozen:
            if wanted == "required":
                raise
        call.log("the guest cannot freeze its file systems: the copy is as after a power cut")
    return export(quiesce=False)


def _let_go_on(call: Call) -> None:
    """Thaw the guest, if a process that froze it may have died before it thawed it."""
    if call.undo.get("quiesce", "never") != "never":
        call.phase("thaw the guest's file systems, if they are frozen")
        call.compute.thaw(call.instance)


def _upload(call: Call, store: ImageStore, image: DiskImage, size: int, which: str) -> None:
    """Have the copy in the image."""
    if image.made:
        _make(call, image, size, which)
    call.phase(f"upload the image{which}")
    with call.compute.open_volume(image.made or image.copy) as data:
        store.upload(image.id, data, None, call.deadline)


def _make(call: Call, image: DiskImage, size: int, which: str) -> None:
    """Make of the copy what the image is to be. QEMU's own raw copies would have no holes."""
    if _format(call) == "raw":
        call.phase(f"make the copy{which} raw")
        call.compute.delete_volume(image.made)  # an earlier attempt's is of another moment
        call.compute.create_volume(image.made, size=size, format="raw", base=image.copy, deadline=call.deadline)
    else:
        call.phase(f"compress the copy{which}")
        call.compute.compress_volume(image.copy, image.made, str(call.arguments["compress"]), call.deadline)
    call.compute.delete_volume(image.copy)


def _clean_up(call: Call, image: DiskImage, which: str) -> None:
    call.phase(f"delete the copy{which} on the host")
    for volume in image.volumes:
        call.compute.delete_volume(volume)


ACTION = Action(do=do, probe=probe, undo=undo, leftovers=leftovers, outputs=outputs)
