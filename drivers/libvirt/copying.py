"""A flat copy of a volume, made by the host itself."""

import threading
from contextlib import suppress
from typing import Any, Literal

import libvirt

from drivers.errors import Transient
from drivers.libvirt.faults import translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.volume_xml import volume_xml
from planvirt.deadline import Deadline, DeadlinePassed

_LOOK = 0.05  # seconds between looks at the copy
_GRACE = 5.0  # seconds that a copy may still take after its deadline, to be cleaned up at once


def copy(
    pool: Pool,
    source: Any,
    target: str,
    *,
    size: int,
    format: Literal["qcow2", "raw"],
    deadline: Deadline,
) -> Any:
    """Copy a volume, without its chain, into the new volume `target`.

    libvirt cannot abort such a copy. When the deadline passes, what it still makes is deleted as soon as it is done.
    """
    deadline.check()
    work = _Copy(pool.handle(), source, volume_xml(target, size, format), target)
    threading.Thread(target=work.run, name=f"copy to {target}", daemon=True).start()
    try:
        while not work.done.wait(_LOOK):
            deadline.check()
    except DeadlinePassed:
        work.abandon()
        raise
    return work.result()


class _Copy:
    """One copy, made in a thread of its own."""

    def __init__(self, handle: Any, source: Any, xml: str, target: str) -> None:
        self.done = threading.Event()
        self._handle, self._source, self._xml, self._target = handle, source, xml, target
        self._lock = threading.Lock()
        self._abandoned = False
        self._volume: Any = None
        self._error: libvirt.libvirtError | None = None

    def run(self) -> None:
        """Copy, and clean up if nobody waited for the end."""
        try:
            self._volume = self._handle.createXMLFrom(self._xml, self._source, 0)
        except libvirt.libvirtError as error:
            self._error = error
        with self._lock:
            if self._abandoned and self._volume is not None:
                self._delete()
            self.done.set()

    def abandon(self) -> None:
        """Nobody waits for the copy any more."""
        with self._lock:
            if self.done.is_set() and self._volume is not None:
                self._delete()
            self._abandoned = True
        self.done.wait(_GRACE)

    def _delete(self) -> None:
        with suppress(libvirt.libvirtError):  # it bears our mark: the next attempt, or the undo, deletes it
            self._volume.delete(0)

    def result(self) -> Any:
        """The new volume, or the reason that there is none."""
        with translated(f"copy into the volume {self._target}"):
            if self._error is not None:
                raise self._error
        if self._volume is None:
            raise Transient(f"cannot copy into the volume {self._target}: libvirt gave no answer")
        return self._volume
