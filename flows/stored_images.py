"""Images in stores as people name them on the command line: STORE/IMAGE, where IMAGE is an id or a name."""

from collections.abc import Iterator, Mapping
from typing import Any

from drivers.errors import NotFound
from drivers.image_records import is_id
from drivers.image_store import StoredImage
from flows.world import World
from planvirt.errors import Conflict, UsageError
from planvirt.problems import did_you_mean

_KINDS = {"snapshot": "a snapshot", "backup": "a backup", "shelve": "a shelved disk"}


def stored_image(world: World, reference: str, *, alone: bool = False) -> StoredImage:
    """The image of that id, or the newest of that name; an active one, if there is one.

    With `alone` a name that several images have is refused.
    """
    store_name, wanted = split_reference(world, reference)
    store = world.store(store_name)
    found = store.get(wanted) if is_id(wanted) else None
    if found is not None:
        return found
    images = store.list()
    named = [image for image in images if image.name == wanted]
    if not named:
        hint = did_you_mean(wanted, (image.name for image in images))
        raise NotFound(
            f"cannot find image {wanted} in store {store_name}",
            details="" if images else "there are no images in it",
            resolution="\n".join(part for part in (hint, "'planvirt image list' shows what there is") if part),
        )
    if alone and len(named) > 1:
        raise UsageError(
            f"cannot tell which image is meant: store {store_name} has {len(named)} of the name {wanted}",
            details="\n".join(f"{store_name}/{image.id}" for image in named),
            resolution="name the image by its id",
        )
    return next((image for image in named if image.status == "active"), named[0])


def active_image(world: World, reference: str) -> StoredImage:
    """The same, for those who need its content."""
    found = stored_image(world, reference)
    if found.status != "active":
        raise Conflict(
            f"cannot use image {reference}: it is {found.status}",
            details="its upload has not ended, or never will",
            resolution=f"wait for it, or remove it with 'planvirt image rm {found.store}/{found.id}'",
        )
    return found


def split_reference(world: World, reference: str) -> tuple[str, str]:
    """The store and the image that are named. Raises UsageError when it is no such reference."""
    store, slash, wanted = reference.partition("/")
    if slash and store and wanted:
        return store, wanted
    stores = world.config.stores
    near = f"{store}/IMAGE" if store in stores else f"{world.config.default_store}/{reference.strip('/') or 'IMAGE'}"
    raise UsageError(
        f"cannot read {reference!r} as an image", details="an image is named as STORE/IMAGE",
        resolution=f"did you mean '{near}'?",
    )  # fmt: skip


def told(image: StoredImage) -> list[tuple[str, str]]:
    """What the properties of an image mean, in words, where planvirt has written them."""
    rest = dict(image.properties)
    words: list[tuple[str, str]] = []
    kind = rest.get("image_type", "")
    whose = [rest.get(f"planvirt_{part}", "") for part in ("disk", "instance", "plan", "run")]
    if kind in _KINDS and all(whose):
        disk, instance, plan, run = whose
        words.append(("what", f"{_KINDS[kind]}: disk {disk} of instance {instance}"))
        words.append(("made by", f"plan {plan} in run {run}"))
        if rest.get("planvirt_commit"):
            words.append(("plan at", f"commit {rest['planvirt_commit']}"))
        if rest.get("instance_uuid"):
            words.append(("instance", rest["instance_uuid"]))
        known = {"image_type", "instance_uuid", *(f"planvirt_{key}" for key in ("disk", "instance", "plan", "run"))}
        rest = {key: value for key, value in rest.items() if key not in known | {"planvirt_commit"}}
    if kind == "upload" and rest.get("planvirt_file"):
        words.append(("what", f"pushed from the file {rest['planvirt_file']}"))
        rest = {key: value for key, value in rest.items() if key not in ("image_type", "planvirt_file")}
    return words + sorted((key, value) for key, value in rest.items() if value)


def texts(value: Any) -> Iterator[str]:
    """All texts in plain data, and in JSON that is kept as a text in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value
        yield from _in_json(value)


def _in_json(text: str) -> Iterator[str]:
    import json

    if text.startswith(("{", "[")):
        try:
            inner = json.loads(text)
        except ValueError:
            return
        yield from texts(inner)
