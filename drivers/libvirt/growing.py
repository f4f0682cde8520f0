"""Disks that become larger: by QEMU, when it has the disk open, or else by the host's storage."""

from contextlib import suppress
from typing import Any

import libvirt

from drivers.errors import NotFound, Transient
from drivers.libvirt import volumes
from drivers.libvirt.domain_xml import DiskXml, find_disk, read_disk
from drivers.libvirt.faults import translated
from drivers.libvirt.hardware import changeable, definition, running
from drivers.libvirt.pool import Pool
from planvirt.errors import Conflict


def grow_disk(pool: Pool, name: str, volume: str, size: int) -> None:
    """Make a disk of the instance larger."""
    domain = changeable(pool.connection, name, "grow a disk of")
    live = running(domain)
    opened = None if live is None else find_disk(live, volume)
    if opened is not None:
        _grow_open(domain, read_disk(opened), volume, size)
        return
    kept = find_disk(definition(domain), volume)
    if kept is None:
        raise NotFound(f"cannot grow the disk {volume}: the instance {name} has no such disk")
    _grow_closed(pool, read_disk(kept), volume, size)


def _grow_open(domain: Any, disk: DiskXml, volume: str, size: int) -> None:
    with translated(f"grow the disk {volume}"):
        if _grows(volume, int(domain.blockInfo(disk.target)[0]), size):
            domain.blockResize(disk.target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def _grow_closed(pool: Pool, disk: DiskXml, volume: str, size: int) -> None:
    with suppress(Transient):  # somebody writes to the pool for long; nobody can tell libvirt another format meanwhile
        pool.refresh()
    handle = volumes.require(pool, volume)
    facts = volumes.read(handle)
    # libvirt takes a volume for what its first bytes looked like at the last refresh. On a raw disk a guest may have
    # written a qcow2 header; libvirt would change that, and follow it to whatever file of the host it names.
    if facts.format != disk.format:
        raise Conflict(
            f"cannot grow the disk {volume}: its content looks like {facts.format}, but the disk is {disk.format}",
            resolution="grow it while the instance is running",
        )
    if _grows(volume, facts.capacity, size):
        with translated(f"grow the disk {volume}"):
            handle.resize(size, 0)


def _grows(volume: str, now: int, size: int) -> bool:
    """Whether the size is a larger one. Storage rounds sizes up to its blocks, and so has more than was asked for."""
    if size <= now - volumes.BLOCK:
        raise Conflict(f"cannot make the disk {volume} smaller", details=f"it has {now} bytes, not {size}")
    return size > now
