"""What a guest wrote to its serial console: libvirt keeps it in a file of the pool's folder."""

import io
from contextlib import suppress
from pathlib import Path

from drivers.libvirt import instances
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.streams import VolumeReader

_LIMIT = 1024 * 1024  # bytes of the console that are shown

# virtlogd starts a new file every 2 MiB and keeps three old ones, ".0" being the youngest.
_ROTATED = (".0", ".1", ".2")


def _log_name(uuid: str) -> str:
    return f"planvirt-console.{uuid}.log"


def log_path(pool: Pool, uuid: str) -> Path:
    """Where the host keeps the console of an instance."""
    return pool.path() / _log_name(uuid)


def text(pool: Pool, name: str) -> str:
    """The console since the last start or reboot, its last MiB if it is longer."""
    domain = instances.require(pool.connection, name)
    with translated(f"read the console of {name}"):
        uuid = domain.UUIDString()
    log, restart = _log_name(uuid), pool.restarts.get(uuid, 0)
    data, whole = _tail(pool, log, _LIMIT)
    if restart and restart <= whole:
        # A reboot within QEMU leaves the file as it is: what an earlier system wrote stands before this place.
        data = data[-(whole - restart) :] if restart < whole else b""
    elif len(data) < _LIMIT:
        data = _tail(pool, log + _ROTATED[0], _LIMIT - len(data))[0] + data
    return data.decode("utf-8", errors="replace")


def note_restart(pool: Pool, uuid: str) -> None:
    """Remember, for this process, where the console of a guest that just rebooted begins anew."""
    pool.restarts[uuid] = _tail(pool, _log_name(uuid), 1)[1]


def _tail(pool: Pool, log: str, limit: int) -> tuple[bytes, int]:
    """The last bytes of a log, and how long it is."""
    folder = pool.local_folder()
    if folder is not None:
        # What is not there yet, or not for us to read, the daemon can tell of.
        with suppress(OSError), (folder / log).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit), size
    pool.refresh()
    volume = pool.lookup(log)
    if volume is None:
        return b"", 0
    with io.BufferedReader(VolumeReader(pool.connection.get(), volume)) as reader:
        data, size = b"", 0
        while chunk := reader.read(limit):
            data = (data + chunk)[-limit:]
            size += len(chunk)
        return data, size


def forget(pool: Pool, uuid: str) -> None:
    """Delete the console of an instance that is gone."""
    _delete(pool, [_log_name(uuid) + suffix for suffix in ("", *_ROTATED)])


def forget_rotated(pool: Pool, uuid: str) -> None:
    """Delete what an earlier start wrote: libvirt empties the newest file only."""
    pool.restarts.pop(uuid, None)
    _delete(pool, [_log_name(uuid) + suffix for suffix in _ROTATED])


def _delete(pool: Pool, names: list[str]) -> None:
    if pool.connection.hypervisor() == "TEST":
        return  # it keeps no consoles
    folder = pool.local_folder()
    if folder is not None:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        return
    pool.refresh()
    for name in names:
        volume = pool.lookup(name)
        if volume is not None:
            with translated(f"delete the console {name}"):
                volume.delete(0)
