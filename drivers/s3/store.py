"""Images in a bucket: records that are written once, contents that are never overwritten.

PREFIX/images/ID/queued.json   the record of an image, written when it is created
PREFIX/images/ID/active.json   the same with size, hash and the name of the content, written when that is whole
PREFIX/data/ID/CONTENT         the content; every upload chooses a name of its own for it

An image is active if and only if it has the second record. Of several uploads at once the first to write it wins, as
the server takes it only if it is not there. So a dead upload leaves nothing to repair: its data counts for nothing, and
the next upload, or the deletion of the image, removes it.
"""

import contextlib
import io
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Self

from drivers import image_records
from drivers.again import Busy, again
from drivers.errors import DriverError, NotFound, Transient, WrongChecksum
from drivers.image_store import StoredImage
from drivers.reading import PIECE, Measured, Resumed, read_through
from drivers.s3.bucket import Bucket, S3Settings
from drivers.s3.upload import PART, send
from planvirt.config import StoreConfig
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.secret import Secret

_READERS = 8  # records that are read at once


@dataclass(frozen=True, slots=True)
class _Record:
    """A record, and the name of the content if there is one."""

    image: StoredImage
    content: str = ""


class S3Store:
    """An image store in a bucket. `part` is how many bytes of an upload are held in memory: 5 MiB at least."""

    def __init__(
        self,
        name: str,
        settings: S3Settings,
        secrets: Mapping[str, Secret],
        *,
        part: int = PART,
        clock: Callable[[], float] = time.time,
    ) -> None:
        prefix = settings.prefix.strip("/")
        self.name = name
        self._bucket = Bucket(name, settings, secrets)
        self._prefix = f"{prefix}/" if prefix else ""
        self._part = part
        self._clock = clock

    @classmethod
    def configured(cls, config: StoreConfig, secrets: Mapping[str, Secret]) -> Self:
        """The store that planvirt.toml describes."""
        return cls(config.name, S3Settings(**config.settings), secrets)

    def create(self, id: str, *, name: str, format: str, properties: Mapping[str, str]) -> StoredImage:
        """Write a record without data."""
        image_records.check_new(id, name, format)
        present = self.get(id)
        if present is None:
            made = StoredImage(
                id, name, self.name, format, "queued", created=self._clock(), properties=dict(properties)
            )
            try:
                self._bucket.put_new(self._queued(id), image_records.to_json(made), f"cannot create image {id}")
            except Conflict:
                present = self._need(id).image
            else:
                return made
        return image_records.check_same(present, name, format)

    def upload(self, id: str, data: BinaryIO, size: int | None, deadline: Deadline) -> StoredImage:
        """Send the data, compare what the server has with what was read, then write the record that makes it count."""
        brief = f"cannot store image {id}"
        image = self._need(id).image
        deadline.check()
        measured = Measured(id, data, size, deadline)
        if image.status == "active":
            return image_records.check_content(image, measured.drain())
        left = self._contents(id)
        content = uuid.uuid4().hex
        key = self._content(id, content)
        try:
            etag = send(self._bucket, key, measured, self._part, deadline, brief)
            image = replace(image, status="active", size=measured.size, checksum=measured.checksum)
            self._confirm(image, key, etag, deadline)
            deadline.check()
        except NotFound:
            self._discard(key)
            return self._overtaken(id, measured)
        except BaseException:
            self._discard(key)
            raise
        active = self._activate(image, content, deadline)
        with contextlib.suppress(DriverError):  # the image is there; what stays now, its deletion removes
            self._bucket.abort_uploads(self._content(id, ""), brief)
            self._bucket.delete(left, brief)
        return active

    def get(self, id: str) -> StoredImage | None:
        """One record."""
        record = self._read(id)
        return None if record is None else record.image

    def find(self, reference: str) -> StoredImage | None:
        """An active image by its id, else by its name."""
        if image_records.is_id(reference):
            image = self.get(reference)
            if image is not None and image.status == "active":
                return image
        return next((i for i in self.list() if i.name == reference and i.status == "active"), None)

    def list(self) -> Sequence[StoredImage]:
        """All records, newest first. One that cannot be read is an error, not a gap."""
        folder = f"{self._prefix}images/"
        keys = self._bucket.keys(folder, f"cannot list image store {self.name}")
        found = (re.fullmatch(r"([^/]+)/(?:queued|active)\.json", key.removeprefix(folder)) for key in keys)
        ids = sorted({match[1] for match in found if match and image_records.is_id(match[1])})
        with ThreadPoolExecutor(_READERS) as pool:
            return image_records.newest_first(image for image in pool.map(self.get, ids) if image is not None)

    @contextmanager
    def open(self, id: str) -> Iterator[BinaryIO]:
        """The content, which goes on where a connection is cut, and ends in WrongChecksum if it is another one."""
        record = self._need(id)
        if record.image.status != "active":
            raise Conflict(f"cannot read image {id}: it is {record.image.status}")
        with self._reading(record.image, self._content(id, record.content)) as content:
            yield content

    def path(self, id: str) -> None:
        """None: the images are not on this machine."""

    def verify(self, id: str, deadline: Deadline) -> StoredImage:
        """Read the content back and compare."""
        image = self._need(id).image
        deadline.check()
        read_through(self.open(id), lambda done: deadline.progress(done, image.size or done))
        return image

    def delete(self, id: str) -> None:
        """Delete the records, then the data. Before the first of these steps the image is whole, after it inactive."""
        brief = f"cannot delete image {id}"
        active, queued = self._active(id), self._queued(id)
        self._bucket.delete((active, queued, active), brief)  # an upload may have ended in between
        self._bucket.abort_uploads(self._content(id, ""), brief)
        self._bucket.delete(self._contents(id), brief)

    def check(self) -> None:
        """Write an object, list it, delete it."""
        brief = f"cannot write to image store {self.name}"
        key = f"{self._prefix}check/{uuid.uuid4().hex}"
        self._bucket.put(key, b"planvirt", brief)
        try:
            self._bucket.keys(key, brief)
        finally:
            self._bucket.delete((key,), brief)

    # Records

    def _queued(self, id: str) -> str:
        return f"{self._prefix}images/{image_records.check_id(id)}/queued.json"

    def _active(self, id: str) -> str:
        return f"{self._prefix}images/{image_records.check_id(id)}/active.json"

    def _read(self, id: str) -> _Record | None:
        return self._parsed(id, self._active(id)) or self._parsed(id, self._queued(id))

    def _parsed(self, id: str, key: str) -> _Record | None:
        brief = f"cannot read the record of image {id}"
        text = self._bucket.get(key, brief)
        if text is None:
            return None
        try:
            image, more = image_records.from_json(text, id, self.name)
            return _Record(image, _content_of(more)) if image.status == "active" else _Record(image)
        except (ValueError, TypeError) as error:
            raise DriverError(
                brief,
                details=f"{key} in bucket {self._bucket.name}: {error}",
                resolution="mend the object, or delete it to forget the image",
            ) from error

    def _need(self, id: str) -> _Record:
        record = self._read(id)
        if record is None:
            raise NotFound(f"cannot find image {id} in store {self.name}")
        return record

    def _activate(self, image: StoredImage, content: str, deadline: Deadline) -> StoredImage:
        """Write the record that makes the content count, unless another upload was faster."""
        brief = f"cannot store image {image.id}"
        key = self._content(image.id, content)
        text = image_records.to_json(image, content=content)
        try:
            again(deadline, lambda: self._bucket.put_new(self._active(image.id), text, brief))
        except Conflict:  # another upload, or our own first try, whose answer was lost
            record = self._need(image.id)
            if record.content != content:
                self._discard(key)
            return image_records.check_content(record.image, image.checksum or "")
        except DriverError as error:
            # After a cut connection the record may be there, or come to be: then its content must stay.
            if isinstance(error, Busy) or not isinstance(error, Transient):
                self._discard(key)
            raise
        if self._bucket.head(self._queued(image.id), brief) is None:
            self.delete(image.id)
            raise NotFound(f"{brief}: it was deleted meanwhile")
        return image

    # Contents

    def _content(self, id: str, content: str) -> str:
        return f"{self._prefix}data/{image_records.check_id(id)}/{content}"

    def _contents(self, id: str) -> Sequence[str]:
        return self._bucket.keys(self._content(id, ""), f"cannot look for data of image {id}")

    def _confirm(self, image: StoredImage, key: str, etag: str, deadline: Deadline) -> None:
        """Raise unless the server has the size and the hash of what was read.

        An ETag is made of MD5 sums, but not by every server, nor in a bucket that encrypts with keys of its own. Where
        it is another one than expected, the content is read back.
        """
        brief = f"cannot store image {image.id}"
        head = again(deadline, lambda: self._bucket.head(key, brief))
        if head is None:
            raise NotFound(brief)
        if head.size != image.size:
            raise WrongChecksum(brief, details=f"{image.size} bytes were sent, the server has {head.size}")
        if head.etag == etag:
            return
        try:
            read_through(self._reading(image, key), lambda _: deadline.check())
        except WrongChecksum as error:
            raise WrongChecksum(
                f"{brief}: the server holds other data than was sent",
                details=error.details,
                resolution="see what is between this machine and the server",
            ) from error

    @contextmanager
    def _reading(self, image: StoredImage, key: str) -> Iterator[BinaryIO]:
        brief = f"cannot read image {image.id}"
        with closing(Resumed(image, lambda start: self._bucket.read_from(key, start, brief))) as content:
            yield io.BufferedReader(content, PIECE)

    def _overtaken(self, id: str, measured: Measured) -> StoredImage:
        """What becomes of an upload whose data is gone from the server: mostly another one has ended before it."""
        image = self._need(id).image
        if image.status == "active":
            return image_records.check_content(image, measured.drain())
        raise Transient(f"cannot store image {id}", details="the server has lost what was uploaded of it")

    def _discard(self, key: str) -> None:
        """Remove what an upload has sent. If even that fails, the next upload or the deletion does it."""
        with contextlib.suppress(DriverError):
            self._bucket.abort_uploads(key, "")
            self._bucket.delete((key,), "")


def _content_of(more: Mapping[str, Any]) -> str:
    content = more.get("content")
    if not isinstance(content, str) or not image_records.is_id(content):
        raise ValueError("an active image has a content")
    return content
