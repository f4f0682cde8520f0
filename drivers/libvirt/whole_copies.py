"""Disks that are full copies of their image, and share nothing with it: the raw ones."""

from contextlib import suppress
from typing import Any

from drivers.compute import VolumeFacts
from drivers.errors import DriverError
from drivers.libvirt import reading
from drivers.libvirt.copying import copy
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.users import domains_with
from drivers.libvirt.volumes import check_ours, check_size, delete_handle, path_of, read, require, require_base, same
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

# The first bytes of formats whose header can name another file.
_LEAD_ELSEWHERE = {b"QFI\xfb": "qcow2", b"QED\0": "qed", b"KDMV": "vmdk", b"COWD": "vmdk", b"# Di": "vmdk"}


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
    made = copy(pool, source, name, size=size, format="raw", deadline=deadline)
    _check_plain(pool, made, name)
    _grow(made, name, size)
    return read(require(pool, name))


def _check_plain(pool: Pool, made: Any, name: str) -> None:
    """Refuse what a guest may have written to look like a format that leads to other files.

    From its next look on libvirt believes the first bytes: it would make larger whatever file their header names.
    """
    with reading.opened(pool, name) as file:
        head = file.read(4)
    seen = _LEAD_ELSEWHERE.get(head)
    if seen is not None:
        delete_handle(made)
        raise Conflict(
            f"cannot make the raw volume {name}: its content looks like {seen}",
            resolution="leave it in a qcow2 volume or image, where its format is beyond doubt",
        )


def _grow(made: Any, name: str, size: int) -> None:
    try:
        with translated(f"make the volume {name} larger"):
            if int(made.info()[1]) < size:  # a raw copy comes out as large as its source, whatever is asked for
                made.resize(size)
    except BaseException:
        with suppress(DriverError, Conflict):  # the first error is the one to tell
            delete_handle(made)
        raise
