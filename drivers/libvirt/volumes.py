"""Volumes in the pool: what there is, making and deleting them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import libvirt

from drivers.compute import VolumeFacts
from drivers.errors import DriverError, NotFound
from drivers.libvirt import cache, images
from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import code_of, translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.volume_xml import volume_xml
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.mark import is_cached, read_volume_name

BLOCK = 4096  # bytes that storage rounds sizes up to


def is_ours(name: str) -> bool:
    """Whether a volume's name says that planvirt made it."""
    return is_cached(name) or read_volume_name(name) is not None


def listing(pool: Pool) -> Sequence[VolumeFacts]:
    """All volumes that planvirt made, also those that a dead process left behind, sorted by name."""
    by_name = pool.listed()
    # A cached image that is not complete is nobody's to use; the next import of it goes on with it or sweeps it away.
    volumes = [v for name, v in by_name.items() if is_ours(name) and images.is_whole(name, by_name)]
    found = [facts for volume in volumes if (facts := _read(volume)) is not None]
    return sorted(found, key=lambda facts: facts.name)


def _read(volume: Any) -> VolumeFacts | None:
    """Facts of one volume of a listing; None when it vanished meanwhile."""
    try:
        return read(volume)
    except NotFound:
        return None


def read(volume: Any) -> VolumeFacts:
    """The facts of one volume."""
    with translated("read a volume"):
        name = str(volume.name())
        root = parse(volume.XMLDesc())
    marked = read_volume_name(name)
    base = root.findtext("backingStore/path")
    format_node = root.find("target/format")
    return VolumeFacts(
        name=name,
        capacity=int(root.findtext("capacity") or 0),
        allocation=int(root.findtext("allocation") or 0),
        format="raw" if format_node is None else format_node.get("type", "raw"),
        mark=marked[0] if marked else None,
        base=Path(base).name if base else None,
    )


def require(pool: Pool, name: str) -> Any:
    """The virStorageVol of that name; NotFound when there is none."""
    volume = pool.lookup(name)
    if volume is None:
        raise NotFound(f"cannot find the volume {name} in the pool {pool.name}")
    return volume


def require_base(pool: Pool, name: str) -> Any:
    """The virStorageVol of that name, to build on: a cached image must be complete. NotFound when it is not."""
    if is_cached(name) and images.complete(pool, name) is None:
        raise NotFound(f"cannot build on the image {name}: the pool {pool.name} does not have all of it")
    return require(pool, name)


def path_of(pool: Pool, name: str) -> str:
    """The path of a volume on the host."""
    volume = require(pool, name)
    with translated(f"read the volume {name}"):
        return str(volume.path())


def create(
    pool: Pool,
    name: str,
    *,
    size: int,
    format: Literal["qcow2", "raw"],
    base: str | None,
    deadline: Deadline,
) -> VolumeFacts:
    """Make an empty volume, or an overlay on `base`, which is qcow2; whole_copies.py makes the raw ones."""
    deadline.check()
    check_ours(name)
    present = pool.lookup(name)
    if present is not None:
        return same(read(present), size=size, base=base)
    if base is not None:
        check_size(name, size, read(require_base(pool, base)))
    handle = pool.handle()
    backing = None if base is None else (path_of(pool, base), _declared_format(pool, base))
    try:
        with translated(f"create the volume {name}"):
            handle.createXML(volume_xml(name, size, format, backing), 0)
    except Conflict:
        # A concurrent attempt made it. What it made is judged as if it had been there from the start.
        present = pool.lookup(name)
        if present is None:
            raise
        return same(read(present), size=size, base=base)
    return read(require(pool, name))


def check_ours(name: str) -> None:
    """Refuse to make a volume that nobody could tell from a foreign one."""
    if not is_ours(name):
        raise Conflict(f"cannot create the volume {name}: its name bears no mark of planvirt's")


def check_size(name: str, size: int, base: VolumeFacts) -> None:
    """Refuse a disk that its image does not fit on."""
    if size < base.capacity:
        raise DriverError(
            f"cannot create the volume {name}: it is smaller than its image",
            details=f"{size} bytes are asked for, {base.name} has {base.capacity}",
            resolution="make the disk larger, or leave its size out",
        )


def same(facts: VolumeFacts, *, size: int, base: str | None) -> VolumeFacts:
    """A volume that was there already, if it is what is asked for; its name says that it is ours."""
    # Storage rounds a size up to its blocks, so what comes out may be a little larger than what was asked for.
    if not 0 <= facts.capacity - size < BLOCK or facts.base != base:
        raise Conflict(
            f"cannot create the volume {facts.name}: it exists and is another one",
            details=f"it has {facts.capacity} bytes on {facts.base or 'no base'}, "
            f"not {size} bytes on {base or 'no base'}",
        )
    return facts


def _declared_format(pool: Pool, name: str) -> str:
    """A cached image says its format in its name. What a guest may have written into a raw disk is never asked."""
    if is_cached(name):
        suffix = name.rpartition(".")[2]
        return suffix if suffix in {"qcow2", "raw"} else "raw"
    return read(require(pool, name)).format


def delete(pool: Pool, name: str) -> None:
    """Delete a volume of ours. A missing one counts as deleted; one that others build upon is kept."""
    if not is_ours(name):
        raise Conflict(f"cannot delete the volume {name}: planvirt did not make it")
    if is_cached(name):
        cache.delete(pool, name)
        return
    volume = pool.lookup(name)
    if volume is None:
        # Its name is its own in the whole host: if the pool of the configuration has changed since, it is elsewhere.
        volume = pool.elsewhere(name)
        if volume is not None:
            delete_handle(volume)
        return
    overlays = [facts.name for facts in listing(pool) if facts.base == name]
    if overlays:
        raise Conflict(f"cannot delete the volume {name}: other disks are built on it", details=", ".join(overlays))
    delete_handle(volume)


def delete_handle(volume: Any) -> None:
    """Delete a volume without further questions."""
    with translated("delete a volume"):
        try:
            volume.delete(0)
        except libvirt.libvirtError as error:
            if code_of(error) != libvirt.VIR_ERR_NO_STORAGE_VOL and "No such file" not in str(error):
                raise
