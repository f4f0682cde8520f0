"""snapshot: copy a disk of an instance, as it is at one moment, into a verified image in a store."""

from collections.abc import Mapping
from typing import Any

from drivers.compute import VolumeFacts
from drivers.errors import NotFound, Unsupported
from flows.actions.action import Action, Finding
from flows.call import Call
from flows.disk_image import properties, upload_disk
from planvirt.journal.records import StepRecord
from planvirt.mark import image_id, read_volume_name


def do(call: Call) -> Mapping[str, Any]:
    """Export the disk into a flat volume on the host, upload that, verify it, and remove the volume."""
    found = call.facts()
    if found is None or found.mark is None:
        raise NotFound(f"cannot snapshot {call.instance}: it is not there")
    upload = call.arguments["upload"]
    store = call.world.store(upload["store"])
    volume, disk = _disk(call, found.volumes)
    target = call.mark(found.mark.spec).volume(f"snapshot-{call.operation}-{disk}")
    image = image_id(call.run.id, call.step)
    call.phase("create the image record", store=store.name, image=image, volume=target)
    marked = properties(call, "snapshot", found.mark.spec, disk)
    store.create(image, name=str(upload["name"]), format="qcow2", properties=marked)
    upload_disk(call, store, image, target, lambda: _export(call, volume, target))
    return outputs(call)


def outputs(call: Call) -> Mapping[str, Any]:
    """The image, as later steps refer to it."""
    store, image = call.undo["store"], call.undo["image"]
    stored = call.world.store(store).get(image)
    if stored is None:
        raise NotFound(f"cannot find image {image} in store {store} any more")
    return {
        "image": f"{store}/{image}",
        "id": image,
        "name": stored.name,
        "store": store,
        "size": stored.size,
        "checksum": stored.checksum,
    }


def probe(call: Call) -> Finding:
    """Done when the image is active and the copy on the host is gone."""
    if "image" not in call.undo:
        return Finding.NOTHING
    stored = call.world.store(call.undo["store"]).get(call.undo["image"])
    copied = any(volume.name == call.undo["volume"] for volume in call.compute.volumes())
    if stored is None:
        return Finding.PARTIAL if copied else Finding.NOTHING
    return Finding.DONE if stored.status == "active" and not copied else Finding.PARTIAL


def undo(call: Call) -> None:
    """Delete the image and any half-made copy."""
    if "image" not in call.undo:
        return
    call.phase("delete the image")
    call.world.store(call.undo["store"]).delete(call.undo["image"])
    call.phase("delete the copy on the host")
    call.compute.delete_volume(call.undo["volume"])


def leftovers(record: StepRecord) -> list[str]:
    """The image and the copy, by name."""
    if "image" not in record.undo:
        return []
    return [
        f"image {record.undo['image']} in store {record.undo['store']}",
        f"volume {record.undo['volume']} on {record.host}",
    ]


def _disk(call: Call, volumes: tuple[str, ...]) -> tuple[str, str]:
    """The volume to copy and the disk's name in the plan: the one that `with` names, else the boot disk."""
    named = {known[1]: volume for volume in volumes if (known := read_volume_name(volume))}
    wanted = call.arguments.get("disk") or next(iter(named), None)
    if wanted not in named:
        raise NotFound(
            f"cannot snapshot disk {wanted} of {call.instance}: it has {', '.join(named) or 'none'}",
            resolution="name one of its disks in the step's 'with', or leave 'disk' out for the boot disk",
        )
    return named[wanted], wanted


def _export(call: Call, volume: str, target: str) -> VolumeFacts:
    """Copy the disk, with the guest's file systems frozen if the plan asks for it and the guest can."""
    wanted = call.arguments.get("quiesce", "never")

    def export(*, quiesce: bool) -> VolumeFacts:
        return call.compute.export_disk(call.instance, volume, target, quiesce=quiesce, deadline=call.deadline)

    if wanted == "never":
        return export(quiesce=False)
    try:
        return export(quiesce=True)
    except Unsupported:
        if wanted == "required":
            raise
    call.log("the guest cannot freeze its file systems: the copy is as after a power cut")
    return export(quiesce=False)


ACTION = Action(do=do, probe=probe, undo=undo, leftovers=leftovers, outputs=outputs)
