"""Who uses a volume: two guests that write to one disk destroy it."""

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from drivers.errors import NotFound
from drivers.libvirt import volumes
from drivers.libvirt.domain_xml import read_disks
from drivers.libvirt.faults import translated
from drivers.libvirt.hardware import definition, running
from drivers.libvirt.pool import Pool
from planvirt.errors import Conflict
from planvirt.mark import is_cached


def take(pool: Pool, name: str, volume: str) -> str:
    """The path of a volume that the instance may have as a disk, because nobody else uses it."""
    path = volumes.path_of(pool, volume)
    users = {user for user in domains_with(pool, path) if user != name}
    users.update(facts.name for facts in volumes.listing(pool) if facts.base == volume)
    if users or is_cached(volume):
        raise Conflict(
            f"cannot give the volume {volume} to the instance {name}: "
            + ("it is in use" if users else "it is there for others to be built on"),
            details=f"by {', '.join(sorted(users))}" if users else "",
        )
    return path


def domains_with(pool: Pool, path: str) -> Iterator[str]:
    """The names of the domains that have the file as a disk, or boot from it, now or at their next start."""
    conn = pool.connection.get()
    with translated("list the instances"):
        domains = [(str(domain.name()), domain) for domain in conn.listAllDomains()]
    for name, domain in domains:
        if any(path in _files(root) for root in _definitions(domain)):
            yield name


def _definitions(domain: Any) -> list[ET.Element]:
    try:
        return [root for root in (definition(domain), running(domain)) if root is not None]
    except NotFound:  # it went away since the listing
        return []


def _files(root: ET.Element) -> set[str]:
    boot = {root.findtext(f"os/{part}", "") for part in ("kernel", "initrd")}
    return boot.union(disk.path for disk in read_disks(root))
