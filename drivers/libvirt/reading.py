"""A volume as a readable file: the file itself where it is within reach, a stream of it otherwise."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.streams import VolumeReader
from drivers.libvirt.volumes import require

_BUFFER = 1024 * 1024


@contextmanager
def opened(pool: Pool, name: str, *, stream: bool = False) -> Iterator[BinaryIO]:
    """Read a volume from its start. `stream` goes the long way even where a short one exists."""
    volume = require(pool, name)
    local = None if stream else _local_file(pool, volume)
    if local is not None:
        with local:
            yield local
        return
    with io.BufferedReader(VolumeReader(pool.connection.get(), volume), _BUFFER) as reader:
        yield cast(BinaryIO, reader)


def is_local(pool: Pool, name: str) -> bool:
    """Whether the volume's file can be read here as it is."""
    file = _local_file(pool, require(pool, name))
    if file is None:
        return False
    file.close()
    return True


def _local_file(pool: Pool, volume: Any) -> BinaryIO | None:
    """The volume's file, opened, if this process may read it and it is the same file that the daemon sees."""
    if not pool.connection.is_local():
        return None
    with translated("read a volume"):
        path, xml = Path(volume.path()), parse(volume.XMLDesc())
    seen = xml.findtext("target/timestamps/mtime"), xml.findtext("physical")
    try:
        file = path.open("rb")
    except OSError:
        return None
    stat = path.stat()
    # A socket may be tunnelled here from elsewhere: the same path is then another file.
    if seen != (f"{stat.st_mtime_ns // 10**9}.{stat.st_mtime_ns % 10**9:09d}", str(stat.st_size)):
        file.close()
        return None
    return file
