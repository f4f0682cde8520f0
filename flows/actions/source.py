"""Where an instance's first disk comes from: a file of the plan, or an image in a store."""

import os
import tempfile
from pathlib import Path

from drivers.compute import LocalImage
from drivers.errors import NotFound
from drivers.image_file import inspect
from drivers.image_store import StoredImage
from flows.call import Call
from planvirt.plan import Image


def local_image(call: Call, reference: str) -> LocalImage:
    """The checked image file behind the name of one of the plan's images, or behind a store reference "STORE/IMAGE"."""
    image = call.run.images.get(reference) or Image(name=reference, source=reference)
    return call.world.checked_image(reference, lambda: _check(call, image))


def _check(call: Call, image: Image) -> LocalImage:
    if image.source.startswith("/"):
        return inspect(Path(image.source), checksum=image.checksum, declared_format=image.format)
    store_name, _, wanted = image.source.partition("/")
    store = call.world.store(store_name)
    stored = store.find(wanted)
    if stored is None:
        raise NotFound(
            f"cannot find image {wanted} in store {store_name}", resolution="'planvirt image list' shows what there is"
        )
    path = store.path(stored.id) or _fetch(call, stored, store_name)
    return inspect(path, checksum=image.checksum or stored.checksum, declared_format=image.format or stored.format)


def _fetch(call: Call, stored: StoredImage, store_name: str) -> Path:
    """Bring an image of a remote store into the cache: whole or not at all."""
    folder = call.world.cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{store_name}-{stored.id}"
    if target.exists():
        return target
    with (
        call.world.store(store_name).open(stored.id) as source,
        tempfile.NamedTemporaryFile(dir=folder, prefix=".part-") as part,
    ):
        done = 0
        while block := source.read(1 << 20):
            part.write(block)
            done += len(block)
            call.deadline.progress(done, stored.size or done)
        part.flush()
        os.fsync(part.fileno())
        # A link, not a rename: the temporary file takes its own name away at the end.
        if not target.exists():
            os.link(part.name, target)
    return target
