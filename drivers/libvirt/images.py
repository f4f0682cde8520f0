"""Images and kernels of this machine in the host's pool, each once, named by its hash.

libvirt can neither rename a volume nor replace one atomically, so a second, empty volume NAME.ok says that NAME is
complete. Whoever finds NAME alone writes it once more from its start: two writers at the same time write the same bytes
to the same places, so it does not matter which of them ends first, and what a killed process left is simply finished.
"""

import hashlib
import os
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import libvirt

from drivers.errors import DriverError, NotFound, Transient, WrongChecksum
from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import code_of, translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.streams import VolumeWriter, writing
from drivers.libvirt.volume_xml import volume_xml
from planvirt.deadline import Deadline
from planvirt.mark import is_cached

COMPLETE = ".ok"
_CHUNK = 1024 * 1024
_STALE_SECONDS = 24 * 3600
_WAIT_FOR_OTHER = 0.5


def complete(pool: Pool, name: str) -> Any | None:
    """The cached volume of that name, if all of it is there."""
    return pool.lookup(name) if pool.lookup(name + COMPLETE) is not None else None


def is_whole(name: str, names: Container[str]) -> bool:
    """Whether a volume of a pool with such names has all its content, as far as names can tell."""
    return not is_cached(name) or name + COMPLETE in names


def bring(pool: Pool, path: Path, name: str, sha256: str, deadline: Deadline) -> Any:
    """Have the file at `path` in the pool as `name`; a complete one is used as it is."""
    deadline.check()
    present = complete(pool, name)
    if present is not None:
        return present
    _sweep(pool)
    try:
        with path.open("rb") as file:
            return _write(pool, file, name, sha256, deadline)
    except OSError as error:
        raise DriverError(f"cannot read {path}", details=str(error)) from error


def _write(pool: Pool, file: BinaryIO, name: str, sha256: str, deadline: Deadline) -> Any:
    length = os.fstat(file.fileno()).st_size
    while True:
        volume = _make(pool, name, length)
        try:
            with writing(pool.connection.get(), volume, length) as writer:
                found = _pump(file, length, writer, deadline)
        except Transient as error:
            if "in use" not in error.details:
                raise
            # Another process writes it right now: libvirt lets in one writer at a time.
            deadline.sleep(_WAIT_FOR_OTHER)
            present = complete(pool, name)
            if present is not None:
                return present
            continue
        if found != sha256:
            forget(pool, name)
            raise WrongChecksum(
                f"cannot import {name}: the file is not what it was when it was checked",
                details=f"its SHA-256 is {found}, not {sha256}",
            )
        # Only now does the pool learn the format and the virtual size of what was written.
        pool.refresh()
        _make(pool, name + COMPLETE, 0)
        return _make(pool, name, length)


def _make(pool: Pool, name: str, length: int) -> Any:
    present = pool.lookup(name)
    if present is not None:
        return present
    handle = pool.handle()
    with translated(f"create the volume {name}"):
        try:
            handle.createXML(volume_xml(name, length, "raw"), 0)
        except libvirt.libvirtError as error:
            if code_of(error) != libvirt.VIR_ERR_STORAGE_VOL_EXIST:
                raise
    made = pool.lookup(name)
    if made is None:
        raise NotFound(f"cannot find the volume {name} right after it was made")
    return made


def _pump(file: BinaryIO, length: int, writer: VolumeWriter, deadline: Deadline) -> str:
    """Send the file and return its SHA-256."""
    digest = hashlib.sha256()
    zeros = bytes(_CHUNK)
    done = 0
    for start, end, is_data in _sections(file, length):
        file.seek(start)
        if not is_data:
            writer.skip(end - start)
        while done < end:
            size = min(_CHUNK, end - done)
            chunk = file.read(size) if is_data else zeros[:size]
            if is_data:
                if len(chunk) < size:
                    raise DriverError("cannot import a file: it became shorter meanwhile")
                writer.write(chunk)
            digest.update(chunk)
            done += size
            deadline.progress(done, length)
    return digest.hexdigest()


def _sections(file: BinaryIO, length: int) -> Iterator[tuple[int, int, bool]]:
    """The file as (start, end, whether it is data) in order; what is not data is a hole."""
    at = 0
    while at < length:
        try:
            data = min(os.lseek(file.fileno(), at, os.SEEK_DATA), length)
        except OSError:  # ENXIO: nothing but a hole follows
            data = length
        if data > at:
            yield at, data, False
        if data < length:
            at = min(os.lseek(file.fileno(), data, os.SEEK_HOLE), length)
            yield data, at, True
        else:
            at = length


def forget(pool: Pool, name: str) -> None:
    """Delete a cached volume; its mark of completeness goes first."""
    for each in (name + COMPLETE, name):
        volume = pool.lookup(each)
        if volume is not None:
            with translated(f"delete the volume {each}"):
                volume.delete(0)


def _sweep(pool: Pool) -> None:
    """Delete what a process that died a day ago left half-written."""
    handle = pool.handle()
    with translated(f"list the volumes of the pool {pool.name}"):
        names = {str(name) for name in handle.listVolumes()}
    for name in names:
        if not is_whole(name, names) and _age(pool, name) > _STALE_SECONDS:
            try:
                forget(pool, name)
            except Transient:
                continue  # somebody is at it after all


def _age(pool: Pool, name: str) -> float:
    volume = pool.lookup(name)
    if volume is None:
        return 0.0
    with translated(f"read the volume {name}"):
        written = parse(volume.XMLDesc()).findtext("target/timestamps/mtime")
    return time.time() - float(written) if written else 0.0
