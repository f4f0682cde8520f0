"""The cached images and kernels of a host, each with all that uses it: nobody else could tell that one is needed."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt

from drivers.compute import CachedVolume
from drivers.errors import NotFound
from drivers.libvirt import images
from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from planvirt.errors import Conflict
from planvirt.mark import is_cached


def listing(pool: Pool) -> Sequence[CachedVolume]:
    """All of them, sorted by name."""
    by_name = pool.listed()
    names = {name.removesuffix(images.COMPLETE) for name in by_name}
    wanted = sorted(filter(is_cached, names))
    users = _users(pool, wanted) if wanted else {}  # to look for users makes the pool, where there is none yet
    return [facts for name in wanted if (facts := _read(name, by_name, users.get(name, ()))) is not None]


def delete(pool: Pool, name: str) -> None:
    """Delete a cached image or file with its mark of completeness; one that is used is kept."""
    users = _users(pool, [name]).get(name)
    if users:
        raise Conflict(f"cannot delete the volume {name}: it is in use", details=f"by {', '.join(users)}")
    images.forget(pool, name)


def _read(name: str, by_name: Mapping[str, Any], users: Sequence[str]) -> CachedVolume | None:
    """The facts of one; None when it vanished meanwhile. Of some there is only the mark of completeness left."""
    volume = by_name.get(name)
    with suppress(NotFound), translated(f"read the volume {name}"):
        root = parse((volume or by_name[name + images.COMPLETE]).XMLDesc())
        return CachedVolume(
            name=name,
            allocation=int(root.findtext("allocation") or 0),
            whole=volume is not None and images.is_whole(name, by_name),
            changed=float(root.findtext("target/timestamps/mtime") or 0),
            users=tuple(users),
        )
    return None


def _users(pool: Pool, names: Iterable[str]) -> dict[str, list[str]]:
    """What uses each of the cached volumes, by name; what nothing uses is left out."""
    others = _other_pools(pool)
    found: dict[str, set[str]] = {}
    for overlay, base in _overlays(pool):
        if str(base.parent) not in others:
            found.setdefault(base.name, set()).add(overlay)
    for domain, definitions in _domains(pool):
        for name in names:
            if _mentions(definitions, name, others):
                found.setdefault(name, set()).add(domain)
    return {name: sorted(users) for name, users in found.items()}


def _mentions(definitions: str, name: str, others: Container[str]) -> bool:
    """Whether an instance may need the volume.

    Its name has a hash in it. Whatever contains that may need it: a disk, a backing file of a disk, a kernel, a note of
    what the instance booted from before its rescue. Only a file of that name in another pool is another file.
    """
    places = re.findall(rf"([^\s\"'<>&;]*){re.escape(name)}", definitions)
    return any(place.rstrip("/") not in others for place in places)


def _other_pools(pool: Pool) -> set[str]:
    """The folders of the host's other pools, which may hold the same images for another planvirt."""
    ours, others = str(pool.path()), set()
    with translated("list the storage pools of the host"):
        for each in pool.connection.get().listAllStoragePools():
            with suppress(NotFound), translated("read a storage pool"):
                others.add(parse(each.XMLDesc()).findtext("target/path") or "")
    return others - {ours, ""}


def _overlays(pool: Pool) -> Iterator[tuple[str, Path]]:
    """The volumes of all pools that are built on another one, each with the path of that."""
    with translated("list the volumes of the host"):
        pools = pool.connection.get().listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    for each in pools:
        volumes: list[Any] = []
        with suppress(NotFound, Conflict), translated("list the volumes of a pool"):  # somebody may stop it now
            volumes = each.listAllVolumes()
        for volume in volumes:
            with suppress(NotFound), translated("read a volume"):
                base = parse(volume.XMLDesc()).findtext("backingStore/path")
                if base:
                    yield str(volume.name()), Path(base)


def _domains(pool: Pool) -> Iterator[tuple[str, str]]:
    """All domains, each with the texts of its definitions: as it runs, and as it starts the next time."""
    with translated("list the instances"):
        domains = pool.connection.get().listAllDomains()
    for domain in domains:
        with suppress(NotFound), translated("read an instance"):
            yield str(domain.name()), domain.XMLDesc() + domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
