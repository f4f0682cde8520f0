"""The data of images in pieces: never a whole image in memory, hashed on the way, and stopped when nobody waits."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from drivers.errors import Transient, WrongChecksum
from drivers.image_store import StoredImage
from planvirt.deadline import Deadline

PIECE = 1 << 20
_RESUMPTIONS = 3  # without a byte in between


def pieces(data: BinaryIO) -> Iterator[bytes]:
    """The data in pieces of full size, also where it arrives in smaller ones."""
    while True:
        parts, wanted = [], PIECE
        while wanted and (part := data.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        if parts:
            yield b"".join(parts)
        if wanted:
            return


class Measured:
    """The data of an upload. It can be read once; afterwards its size and hash are known.

    `size` is what was expected. Other data than that is refused at its end. `also` names another algorithm than SHA-256
    to hash with.
    """

    def __init__(self, id: str, data: BinaryIO, size: int | None, deadline: Deadline, *, also: str = "sha256") -> None:
        self._id = id
        self._expected = size
        self._deadline = deadline
        self._digests = {name: _hash(name) for name in ("sha256", also)}
        self._pieces = pieces(data)
        self.size = 0

    @property
    def checksum(self) -> str:
        """What was read so far, as "sha256:HEX"."""
        return self.hashed("sha256")

    def hashed(self, algorithm: str) -> str:
        """What was read so far, as "ALGORITHM:HEX"."""
        return f"{algorithm}:{self._digests[algorithm].hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        """What is not read yet. Asking for a piece tells that the one before it is done."""
        for piece in self._pieces:
            for digest in self._digests.values():
                digest.update(piece)
            self.size += len(piece)
            if self._expected is not None and self.size > self._expected:
                break
            yield piece
            self._deadline.progress(self.size, self._expected or self.size)
        if self._expected is not None and self.size != self._expected:
            raise WrongChecksum(
                f"cannot store image {self._id}: {self._expected} bytes were expected",
                details="the data goes on after them"
                if self.size > self._expected
                else f"the data ended after {self.size}",
            )

    def drain(self) -> str:
        """Read the rest only to know the hash of the whole."""
        for _ in self:
            pass
        return self.checksum


class Resumed(io.RawIOBase):
    """The content of a remote image, read on where a connection was cut, and compared with its record at the end.

    `begin` opens the content at an offset and yields its bytes; it raises Transient when the connection is cut. The
    record's checksum can be of any algorithm; without one the size alone is compared.
    """

    def __init__(self, image: StoredImage, begin: Callable[[int], AbstractContextManager[Iterator[bytes]]]) -> None:
        self._image = image
        self._begin = begin
        self._opened: AbstractContextManager[Iterator[bytes]] | None = None
        self._rest: Iterator[bytes] = iter(())
        self._piece = b""
        self._at = 0
        self._cuts = 0
        self._algorithm = (image.checksum or "sha256:").partition(":")[0]
        self._digest = _hash(self._algorithm)
        self._open()

    def readable(self) -> bool:
        """It is, from its start to its end."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what BufferedReader hands over
        """The next bytes; at the end WrongChecksum, if they were not those of the record."""
        if not self._piece:
            self._piece = self._next()
        taken = self._piece[: len(buffer)]
        buffer[: len(taken)] = taken
        self._piece = self._piece[len(taken) :]
        return len(taken)

    def close(self) -> None:
        """Let the connection go."""
        if not self.closed:
            self._close()
        super().close()

    def _open(self) -> None:
        self._opened = self._begin(self._at)
        self._rest = self._opened.__enter__()

    def _close(self) -> None:
        opened, self._opened, self._rest = self._opened, None, iter(())
        if opened is not None:
            opened.__exit__(None, None, None)

    def _next(self) -> bytes:
        size = self._image.size or 0
        while self._at < size:
            try:
                piece = self._received()
            except Transient:
                self._close()
                self._cuts += 1
                if self._cuts > _RESUMPTIONS:
                    raise
                continue
            self._cuts = 0
            self._at += len(piece)
            self._digest.update(piece)
            if self._at <= size:
                return piece
        found = f"{self._algorithm}:{self._digest.hexdigest()}"
        if self._at > size or found != (self._image.checksum or found):
            raise changed(self._image, self._at, found)
        return b""

    def _received(self) -> bytes:
        """What comes next over the connection. A content ends with its size, so an end before it is a cut."""
        if self._opened is None:
            self._open()
        piece = next(self._rest, b"")
        if not piece:
            raise Transient(
                f"cannot read image {self._image.id}",
                details=f"the connection ended after {self._at} of {self._image.size} bytes",
            )
        return piece


def read_through(content: AbstractContextManager[BinaryIO], tell: Callable[[int], None]) -> None:
    """Read a content to its end, which raises WrongChecksum by itself when it is not what its record says."""
    done = 0
    with content as file:
        for piece in pieces(file):
            done += len(piece)
            tell(done)


def _hash(algorithm: str) -> "hashlib._Hash":
    return hashlib.new(algorithm, usedforsecurity=False)


def changed(image: StoredImage, size: int, checksum: str) -> WrongChecksum:
    """The error that a content is not what the record says."""
    return WrongChecksum(
        f"cannot trust image {image.id}: its content has changed",
        details=f"{size} bytes of {checksum[:23]}…, recorded are {image.size} of {image.checksum}",
        resolution="delete the image and make it anew",
    )
