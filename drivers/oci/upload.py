"""The data of an image on its way into a registry: in chunks, and on from where the registry has it when one is lost.

An upload has one stream of bytes, from the first to the last. If the registry cannot say any more how far it came, all
has to be read anew, which is the plan's matter.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import httpx

from drivers.again import again
from drivers.errors import DriverError, Transient, WrongChecksum
from drivers.oci.repository import Repository
from drivers.reading import Measured
from planvirt.deadline import Deadline

CHUNK = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some data in pieces, of which the first `skipped` bytes are not to be sent any more."""

    pieces: tuple[bytes, ...]
    deadline: Deadline
    skipped: int = 0

    @property
    def size(self) -> int:
        """How many bytes are to be sent."""
        return sum(len(piece) for piece in self.pieces) - self.skipped

    def __iter__(self) -> Iterator[bytes]:
        """The bytes, as often as they are sent. It stops in their middle when nobody waits any more."""
        skip = self.skipped
        for piece in self.pieces:
            self.deadline.check()
            yield piece[skip:]
            skip = max(0, skip - len(piece))


class Upload:
    """An upload of an image's content."""

    def __init__(self, repository: Repository, chunk: int, deadline: Deadline, brief: str) -> None:
        self._repository = repository
        self._deadline = deadline
        self._brief = brief
        session = again(deadline, lambda: repository.begin(brief))
        self._url: httpx.URL = session.url
        self._chunk = max(chunk, session.least)
        self._done = 0
        self._in_doubt = False

    def send(self, data: Measured) -> None:
        """Send all data, and make a blob of it that has its size and hash."""
        for chunk in self._chunks(data):
            again(self._deadline, partial(self._send, chunk))
            self._done += chunk.size
        again(self._deadline, lambda: self._finish(data.checksum, data.size))

    def cancel(self) -> None:
        """Make the registry forget it. If that fails, the registry does so after some days."""
        with contextlib.suppress(DriverError):
            self._repository.cancel(self._url, self._brief)

    def _chunks(self, data: Measured) -> Iterator[Chunk]:
        pieces: list[bytes] = []
        for piece in data:
            pieces.append(piece)
            if sum(map(len, pieces)) >= self._chunk:
                yield Chunk(tuple(pieces), self._deadline)
                pieces.clear()
        if pieces:
            yield Chunk(tuple(pieces), self._deadline)

    def _send(self, chunk: Chunk) -> None:
        start = self._done
        if self._in_doubt:
            self._url, start = self._repository.progress(self._url, self._brief)
            if not self._done <= start <= self._done + chunk.size:
                raise Transient(self._brief, details=f"the registry has {start} bytes, {self._done} are sent")
        rest = replace(chunk, skipped=start - self._done)
        self._in_doubt = True
        if rest.size:
            self._url = self._repository.send(self._url, start, rest.size, rest, self._brief)
        self._in_doubt = False

    def _finish(self, digest: str, size: int) -> None:
        """End the upload. It may have ended already, if an earlier answer was lost."""
        try:
            self._repository.finish(self._url, digest, self._brief)
        except Transient:
            if self._repository.blob_size(digest, self._brief) != size:
                raise
            self.cancel()
        found = self._repository.blob_size(digest, self._brief)
        if found != size:
            raise WrongChecksum(self._brief, details=f"{size} bytes were sent, the registry has {found}")
