"""A volume's bytes over the connection to its host: reading as a file, and writing. Holes cost nothing either way."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import libvirt

from drivers.libvirt.faults import translated

_CHUNK = 256 * 1024
_AT_HOLE = -3  # what recvFlags returns where a hole begins


class VolumeReader(io.RawIOBase):
    """The bytes of a volume's file from its start. Not seekable: a stream goes one way."""

    def __init__(self, conn: Any, volume: Any) -> None:
        super().__init__()
        self._ended = False
        self._hole = 0
        with translated("read a volume"):
            self._name = str(volume.name())
            self._stream = conn.newStream(0)
            volume.download(self._stream, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)

    def readable(self) -> bool:
        """It is only ever read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what one message holds; 0 at the end."""
        view = memoryview(buffer).cast("B")
        while not self._ended:
            if self._hole:
                length = min(len(view), self._hole)
                view[:length] = bytes(length)
                self._hole -= length
                return length
            with translated(f"read the volume {self._name}"):
                got = self._stream.recvFlags(min(len(view), _CHUNK), libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
                if got == _AT_HOLE:
                    self._hole = int(self._stream.recvHole())
                elif got:
                    view[: len(got)] = got
                    return len(got)
                else:
                    self._stream.finish()
                    self._ended = True
        return 0

    def close(self) -> None:
        """End the stream, also in its middle."""
        if not self.closed and not self._ended:
            self._ended = True
            with suppress(libvirt.libvirtError):  # the connection died, and the stream with it
                self._stream.abort()
        super().close()


class VolumeWriter:
    """Writes into a volume's file from its start."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, data: bytes) -> None:
        """Send all of the data."""
        with translated(f"write the volume {self._name}"):
            sent = 0
            while sent < len(data):
                sent += self._stream.send(data[sent : sent + _CHUNK])

    def skip(self, length: int) -> None:
        """Leave a hole."""
        with translated(f"write the volume {self._name}"):
            self._stream.sendHole(length)


@contextmanager
def writing(conn: Any, volume: Any, length: int) -> Iterator[VolumeWriter]:
    """Write `length` bytes to a volume. They have arrived when the block ends without an exception."""
    with translated("write a volume"):
        name = str(volume.name())
        stream = conn.newStream(0)
        volume.upload(stream, 0, length, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
    try:
        yield VolumeWriter(stream, name)
        with translated(f"write the volume {name}"):
            stream.finish()
    except BaseException:
        with suppress(libvirt.libvirtError):  # it failed already, or the connection died
            stream.abort()
        raise
