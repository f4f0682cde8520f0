"""Compressed copies of volumes. libvirt makes none, so qemu-img does, where the pool is a folder of this machine."""

import os
import re
import select
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from drivers.compute import VolumeFacts
from drivers.errors import DriverError, OutOfSpace, Unsupported
from drivers.libvirt import reading
from drivers.libvirt.pool import Pool
from drivers.libvirt.volumes import check_ours, delete_handle, read, require
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

_LOOK = 0.2  # seconds between two looks at the deadline
_PROGRESS = re.compile(rb"\((\d+)\.\d+/100%\)")


def known(pool: Pool) -> frozenset[str]:
    """The ways of compression that work: none where the pool's folder is out of reach."""
    program = _program()
    if program is None or not pool.connection.is_local() or not _writable(pool.place()):
        return frozenset()
    with tempfile.TemporaryDirectory() as folder:
        words = ["create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", f"{folder}/probe", "64K"]
        probe = subprocess.run([program, *words], capture_output=True, check=False)
    return frozenset({"zstd"}) if probe.returncode == 0 else frozenset()


def compress(pool: Pool, name: str, target: str, compression: str, deadline: Deadline) -> VolumeFacts:
    """Copy a flat qcow2 volume into a compressed one; a failure leaves no target."""
    deadline.check()
    check_ours(target)
    program, folder, source = _program(), pool.local_folder(), read(require(pool, name))
    if compression != "zstd" or source.format != "qcow2" or source.base is not None:
        raise DriverError(f"cannot compress the volume {name} with {compression}: it is no flat qcow2 volume")
    if program is None or folder is None or not reading.is_local(pool, name):
        raise Unsupported(
            f"cannot compress the volume {name}: its file is out of reach",
            resolution="run planvirt on the host itself, with qemu-img and the right to write to the pool's folder",
        )
    _discard(pool, target)
    try:
        _convert(program, folder / name, folder / target, source.capacity, deadline)
        pool.refresh()
        return read(require(pool, target))
    except BaseException:
        (folder / target).unlink(missing_ok=True)
        with suppress(DriverError, Conflict):  # the first error is the one to tell
            _discard(pool, target)
        raise


def _convert(program: str, source: Path, target: Path, size: int, deadline: Deadline) -> None:
    options = ["-p", "-c", "-f", "qcow2", "-O", "qcow2", "-o", "compression_type=zstd"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [program, "convert", *options, str(source), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            umask=0o077,  # whoever may not read the disk may not read its copy
            process_group=0,  # Ctrl-C is for planvirt, which ends the program in its own time
        ) as process,
    ):
        try:
            if process.stdout is not None:
                _follow(process.stdout, size, deadline)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            full = "No space left" in said
            raise (OutOfSpace if full else DriverError)(
                f"cannot compress the volume {source.name}",
                details=said or f"qemu-img ended with {process.returncode}",
                resolution="make room where the host keeps its storage pool" if full else "",
            )


def _follow(output: IO[bytes], size: int, deadline: Deadline) -> None:
    """Wait until the program has said all, telling its progress."""
    while True:
        deadline.check()
        if not select.select([output], [], [], _LOOK)[0]:
            continue
        said = os.read(output.fileno(), 4096)
        if not said:
            return
        percents = _PROGRESS.findall(said)
        if percents:
            deadline.progress(size * int(percents[-1]) // 100, size)


def _program() -> str | None:
    return shutil.which("qemu-img")


def _writable(place: Path) -> bool:
    """Whether files can be made there, or the folder itself."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return os.access(place, os.W_OK | os.X_OK)


def _discard(pool: Pool, target: str) -> None:
    volume = pool.lookup(target)
    if volume is not None:
        delete_handle(volume)
