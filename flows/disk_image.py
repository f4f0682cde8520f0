"""A disk of an instance on its way into an image of a store: copied on the host, uploaded, verified."""

from collections.abc import Callable

from drivers.image_store import ImageStore
from flows.call import Call


def upload_disk(call: Call, store: ImageStore, image: str, target: str, export: Callable[[], object]) -> None:
    """Have a disk in the image, of which there is a record, and the image active.

    `export` copies the disk into the volume `target` of the host, which is gone afterwards.
    """
    stored = store.get(image)
    if stored is None or stored.status != "active":  # else an earlier attempt came that far
        call.phase("copy the disk")
        export()
        call.phase("upload the image")
        with call.compute.open_volume(target) as data:
            store.upload(image, data, None, call.deadline)
    call.phase("delete the copy on the host")
    call.compute.delete_volume(target)


def properties(call: Call, kind: str, spec: str, disk: str) -> dict[str, str]:
    """The image's mark, with the names that OpenStack's image service uses where it has them."""
    return {
        "image_type": kind,
        "instance_uuid": call.uuid,
        "planvirt_plan": call.run.plan,
        "planvirt_instance": call.instance,
        "planvirt_disk": disk,
        "planvirt_run": call.run.id,
        "planvirt_spec": spec,
        "planvirt_commit": call.run.commit,
    }


def delete_image(call: Call, reference: str, kind: str) -> None:
    """Delete the image "STORE/ID" if it is of that kind and of this very instance; a missing one counts as deleted."""
    name, _, image = reference.partition("/")
    store = call.world.store(name)
    stored = store.get(image)
    if stored is not None and (kind, call.uuid) == (
        stored.properties.get("image_type"),
        stored.properties.get("instance_uuid"),
    ):
        call.phase(f"delete image {reference}")
        store.delete(image)
