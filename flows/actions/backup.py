"""backup: a snapshot that is one of a class, of which only the newest few are kept."""

from collections.abc import Iterator, Mapping
from typing import Any

from drivers.image_store import ImageStore, StoredImage
from flows.actions import snapshot
from flows.actions.action import Action
from flows.call import Call
from planvirt.errors import PlanvirtError

_KIND = "backup"


def do(call: Call) -> Mapping[str, Any]:
    """Take a snapshot; its images say which class they are of."""
    return snapshot.take(call, _KIND, {"backup_type": str(call.arguments["class"])})


def commit(call: Call) -> None:
    """Delete the surplus images, oldest first. One that cannot be deleted is left to the next backup.

    A run whose images are all there has succeeded; it does not hold its instances until an old image is gone.
    """
    made = list(snapshot.images_of(call.undo))
    if not made:
        return
    name = call.undo["store"]
    try:
        store = call.world.store(name)
        surplus = [old for image in made for old in _surplus(call, store, image)]
    except PlanvirtError as error:
        call.phase(f"cannot look for surplus backups in store {name}: {error}")
        return
    for old in sorted(surplus, key=lambda image: image.created):
        call.phase(f"delete the surplus image {name}/{old.id} ({old.name})")
        try:
            store.delete(old.id)
        except PlanvirtError as error:
            call.phase(f"the image {name}/{old.id} stays, the next backup tries again: {error}")


def _surplus(call: Call, store: ImageStore, made: snapshot.DiskImage) -> Iterator[StoredImage]:
    """What is too much of the class of one disk, beside the image that was just made: that one always stays."""
    wanted = {
        "image_type": _KIND,
        "backup_type": str(call.arguments["class"]),
        "instance_uuid": call.uuid,
        "planvirt_plan": call.run.plan,
        "planvirt_instance": call.instance,
        "planvirt_disk": made.disk,
    }
    own = store.get(made.id)
    if own is None or own.status != "active":  # then nothing tells that there is a newer one
        return
    others = [
        image
        for image in store.list()
        if image.id != made.id and image.status == "active" and wanted.items() <= image.properties.items()
    ]
    yield from others[int(call.arguments["keep"]) - 1 :]


ACTION = Action(
    do=do,
    probe=snapshot.probe,
    undo=snapshot.undo,
    commit=commit,
    leftovers=snapshot.leftovers,
    outputs=snapshot.outputs,
)
