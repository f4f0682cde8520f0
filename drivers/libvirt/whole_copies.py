"""Disks that are full copies of their image, and share nothing with it: the raw ones."""

from contextlib import suppress
from typing import Any

from drivers.compute import VolumeFacts
from drivers.errors import DriverError
from drivers.libvirt.copying import copy
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.users import domains_with
from drivers.libvirt.volumes import check_ours, check_size, delete_handle, path_of, read, require, require_base, same
from planvirt.deadline import Deadline
from planvirt.errors import Conflict


def create(pool: Pool, name: str, *, size: int, base: str, deadline: Deadline) -> VolumeFacts:
    """Make a raw copy of `base`, made larger to `size` bytes.

    Nothing tells a whole copy from what a daemon left of one when it died in its middle. One that is there is believed
    if an instance has it, as that comes after the disk is whole; any other is made anew.
    """
    deadline.check()
    check_ours(name)
    present = pool.lookup(name)
    if present is not None:
        if any(domains_with(pool, path_of(pool, name))):
            return same(read(present), size=size, base=None)
        delete_handle(present)
    source = require_base(pool, base)
    check_size(name, size, read(source))
    _grow(copy(pool, source, name, size=size, format="raw", deadline=deadline), name, size)
    return read(require(pool, name))


def _grow(made: Any, name: str, size: int) -> None:
    try:
        with translated(f"make the volume {name} larger"):
            if int(made.info()[1]) < size:  # a raw copy comes out as large as its source, whatever is asked for
                made.resize(size)
    except BaseException:
        with suppress(DriverError, Conflict):  # the first error is the one to tell
            delete_handle(made)
        raise
