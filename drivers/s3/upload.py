"""The data of an image on its way into a bucket: in parts that the server checks, each sent again if it is lost.

How much is to come is not known, and an object has 10,000 parts at most. So parts begin small enough to be held in
memory, and grow late: 5 TiB fit. As long as they are all of one size, also servers that insist on that take them.
"""

import base64
import hashlib
import itertools
import tempfile
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from typing import BinaryIO, cast

from drivers.again import again
from drivers.errors import NotFound, Transient
from drivers.reading import Measured
from drivers.s3.bucket import Bucket
from planvirt.deadline import Deadline

PART = 32 << 20  # bytes
_LATE_PART = 1 << 30
_EARLY_PARTS = 5_000


class Part:
    """Some data, to be sent as often as needed: in memory while it is small, else in a file without a name."""

    def __init__(self, in_memory: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(in_memory)  # noqa: SIM115 - closed by close
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size = 0

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        self._file.write(piece)
        self._md5.update(piece)
        self.size += len(piece)

    @property
    def digest(self) -> bytes:
        """Its MD5 sum."""
        return self._md5.digest()

    @property
    def content_md5(self) -> str:
        """Its MD5 sum as a header holds it."""
        return base64.b64encode(self.digest).decode()

    def body(self, deadline: Deadline) -> BinaryIO:
        """The data from its start, for boto3 to read as it sends it."""
        self._file.seek(0)
        return cast(BinaryIO, _Body(self._file, deadline))

    def close(self) -> None:
        """Let the data go."""
        self._file.close()


class _Body:
    """As much of a file as boto3 needs. It stops in the middle of a part when nobody waits any more."""

    def __init__(self, file: "tempfile.SpooledTemporaryFile[bytes]", deadline: Deadline) -> None:
        self._file = file
        self._deadline = deadline
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._deadline.check()
        return self._file.read(size)


def send(bucket: Bucket, key: str, data: Measured, part_size: int, deadline: Deadline, brief: str) -> str:
    """Send all data, at once if it is little, else in parts. Returns the ETag that S3 gives such an object."""
    with closing(_parts(data, part_size)) as parts:
        first = next(parts)
        if first.size >= part_size:
            return _send_parts(bucket, key, itertools.chain((first,), parts), deadline, brief)
        again(deadline, lambda: bucket.put(key, first.body(deadline), brief, md5=first.content_md5))
        return first.digest.hex()


def _parts(data: Measured, size: int) -> Generator[Part, None, None]:
    """The data in parts, of which there is one at least. Each is gone when the next is asked for."""
    number, part = 1, Part(size)
    try:
        for piece in data:
            part.add(piece)
            if part.size >= (size if number <= _EARLY_PARTS else _LATE_PART):
                yield part
                part.close()
                number, part = number + 1, Part(size)
        if part.size or number == 1:
            yield part
    finally:
        part.close()


def _send_parts(bucket: Bucket, key: str, parts: Iterable[Part], deadline: Deadline, brief: str) -> str:
    upload = bucket.begin_upload(key, brief)
    etags: list[str] = []
    digests = bytearray()
    for number, part in enumerate(parts, 1):
        etags.append(again(deadline, partial(_send_part, bucket, key, upload, number, part, deadline, brief)))
        digests += part.digest
    again(deadline, partial(_complete, bucket, key, upload, etags, brief))
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"


def _send_part(bucket: Bucket, key: str, upload: str, number: int, part: Part, deadline: Deadline, brief: str) -> str:
    return bucket.send_part(key, upload, number, part.body(deadline), part.content_md5, brief)


def _complete(bucket: Bucket, key: str, upload: str, etags: list[str], brief: str) -> None:
    """Make the parts one object. They may be one already, if an earlier answer was lost."""
    try:
        bucket.complete_upload(key, upload, etags, brief)
    except (Transient, NotFound):
        if bucket.head(key, brief) is None:
            raise
