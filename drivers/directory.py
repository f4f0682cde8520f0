"""Images in a folder: contents named by their hash, a record per image, and nothing half-made under a final name.

blobs/sha256/ab/ab12…   the contents; images with the same content share one
images/ID.json          the records
tmp/                    uploads in progress, each locked by its process; what is not locked is left over from a dead one
lock                    held while records and contents change together
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from drivers import image_records
from drivers.durable import sync_folder
from drivers.errors import DriverError, NotFound, OutOfSpace, WrongChecksum
from drivers.image_store import StoredImage
from drivers.reading import Measured, changed, pieces
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_LEAST_ROOM = 1 << 20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DirectoryStore:
    """An image store in a folder of this machine, or of a file server that keeps locks."""

    def __init__(self, name: str, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._images = root / "images"
        self._tmp = root / "tmp"
        self._clock = clock

    def create(self, id: str, *, name: str, format: str, properties: Mapping[str, str]) -> StoredImage:
        """Write a record without data."""
        image_records.check_new(id, name, format)
        with self._locked():
            present = self._read(id)
            if present is None:
                present = StoredImage(
                    id, name, self.name, format, "queued", created=self._clock(), properties=dict(properties)
                )
                self._write(present)
            return image_records.check_same(present, name, format)

    def upload(self, id: str, data: BinaryIO, size: int | None, deadline: Deadline) -> StoredImage:
        """Write a temporary file, read it back from the disk, then give the file its place and the image its data."""
        image = self._need(id)
        deadline.check()
        measured = Measured(id, data, size, deadline)
        if image.status == "active":
            return image_records.check_content(image, measured.drain())
        try:
            with self._temporary(id) as (file, path):
                self._copy(id, measured, file)
                self._read_back(id, file, measured, deadline)
                return self._finish(id, path, measured)
        except BaseException:
            self._requeue(id)
            raise

    def get(self, id: str) -> StoredImage | None:
        """One record."""
        return self._read(id)

    def find(self, reference: str) -> StoredImage | None:
        """An active image by its id, else by its name."""
        if image_records.is_id(reference):
            image = self._read(reference)
            if image is not None and image.status == "active":
                return image
        return next((i for i in self.list() if i.name == reference and i.status == "active"), None)

    def list(self) -> Sequence[StoredImage]:
        """All records, newest first. One that cannot be read is an error, not a gap."""
        found = [self._read(path.name.removesuffix(".json")) for path in self._records()]
        return image_records.newest_first(image for image in found if image is not None)

    @contextmanager
    def open(self, id: str) -> Iterator[BinaryIO]:
        """The content, as it is now: deleting the image does not disturb the reader."""
        path = self._content(self._need(id))
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"cannot open image {id}: its content is gone", details=f"{path} is missing") from error
        except OSError as error:
            raise DriverError(f"cannot open image {id}", details=str(error)) from error
        with file:
            yield file

    def path(self, id: str) -> Path | None:
        """The content's file, which must not be changed."""
        image = self._read(id)
        return None if image is None or image.status != "active" else self._content(image)

    def verify(self, id: str, deadline: Deadline) -> StoredImage:
        """Read the content from the disk and compare."""
        image = self._need(id)
        with self.open(id) as file:
            checksum, count = _hash(file, lambda done: deadline.progress(done, image.size or 0))
        if (checksum, count) != (image.checksum, image.size):
            raise changed(image, count, checksum)
        return image

    def delete(self, id: str) -> None:
        """Delete the record, and the content if no other record names it."""
        with self._locked():
            image = self._read(id)
            if image is None:
                return
            self.list()  # a record that cannot be read may name the same content
            with self._translated(f"cannot delete image {id}"):
                if image.status == "active":
                    self._loose(self._content(image)).touch()
                self._record(id).unlink()
                sync_folder(self._images)
            self._sweep_contents()

    def check(self) -> None:
        """Write a byte, and look how much room is left."""
        brief = f"cannot write to image store {self.name}"
        with self._locked():
            self._sweep()
        with self._translated(brief):
            with tempfile.TemporaryFile(dir=self._tmp, buffering=0) as file:
                file.write(b"\1")
                os.fsync(file.fileno())
            room = os.statvfs(self._tmp)
            if room.f_bavail * room.f_frsize < _LEAST_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Records

    def _record(self, id: str) -> Path:
        return self._images / f"{image_records.check_id(id)}.json"

    def _records(self) -> Sequence[Path]:
        return [path for path in self._images.glob("*.json") if not path.name.startswith(".")]

    def _read(self, id: str) -> StoredImage | None:
        path = self._record(id)
        try:
            return image_records.from_json(path.read_text(), id, self.name)[0]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DriverError(
                f"cannot read the record of image {id}",
                details=f"{path}: {error}",
                resolution="mend the file, or move it away to forget the image",
            ) from error

    def _write(self, image: StoredImage) -> None:
        with self._translated(f"cannot write the record of image {image.id}"):
            handle, temporary = tempfile.mkstemp(dir=self._images, prefix=".", suffix=".new")
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(image_records.to_json(image))
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(self._record(image.id))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            sync_folder(self._images)

    def _need(self, id: str) -> StoredImage:
        image = self._read(id)
        if image is None:
            raise NotFound(f"cannot find image {id} in store {self.name}")
        return image

    def _content(self, image: StoredImage) -> Path:
        if image.status != "active" or image.checksum is None:
            raise Conflict(f"cannot read image {image.id}: it is {image.status}")
        sha256 = image.checksum.removeprefix("sha256:")
        return self._blobs / sha256[:2] / sha256

    # Uploads

    @contextmanager
    def _temporary(self, id: str) -> Iterator[tuple[BinaryIO, Path]]:
        """A file of this process, gone afterwards unless it found its place. The image is saving meanwhile."""
        with self._locked():
            self._sweep()
            self._write(replace(self._need(id), status="saving"))
            with self._translated(f"cannot store image {id}"):
                handle, name = tempfile.mkstemp(dir=self._tmp, prefix=f"{id}.", suffix=".part")
                file = os.fdopen(handle, "w+b", buffering=0)
                fcntl.flock(file, fcntl.LOCK_EX)
        path = Path(name)
        try:
            with file:
                yield file, path
        finally:
            path.unlink(missing_ok=True)

    def _copy(self, id: str, measured: Measured, file: BinaryIO) -> None:
        """Write the data, with holes for zeros."""
        for piece in measured:
            with self._translated(f"cannot store image {id}"):
                _write_sparse(file, piece)
        with self._translated(f"cannot store image {id}"):
            file.truncate(measured.size)
            os.fsync(file.fileno())

    def _read_back(self, id: str, file: BinaryIO, measured: Measured, deadline: Deadline) -> None:
        with self._translated(f"cannot read back image {id}"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
            file.seek(0)
            found = _hash(file, lambda _: deadline.check())
        if found != (measured.checksum, measured.size):
            raise WrongChecksum(
                f"cannot store image {id}: the file differs from what was written to it",
                resolution=f"check the disk under {self._root}",
            )

    def _finish(self, id: str, temporary: Path, measured: Measured) -> StoredImage:
        with self._locked():
            image = self._need(id)
            if image.status == "active":
                return image_records.check_content(image, measured.checksum)
            image = replace(image, status="active", size=measured.size, checksum=measured.checksum)
            place = self._content(image)
            try:
                with self._translated(f"cannot store image {id}"):
                    self._loose(place).touch()
                    place.parent.mkdir(exist_ok=True)
                    temporary.replace(place)
                    sync_folder(place.parent)
                    sync_folder(self._blobs)
                self._write(image)
            finally:
                self._sweep_contents()
            return image

    def _requeue(self, id: str) -> None:
        """Say that the image waits for data; if even that fails, "saving" may be uploaded as well."""
        with contextlib.suppress(DriverError), self._locked():
            image = self._read(id)
            if image is not None and image.status == "saving":
                self._write(replace(image, status="queued"))

    # Order

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the folder in this block, which must be short."""
        with self._translated(f"cannot use image store {self.name}"):
            for folder in (self._blobs, self._images, self._tmp):
                folder.mkdir(parents=True, exist_ok=True)
            lock = (self._root / "lock").open("w")
        with lock:
            with self._translated(f"cannot lock image store {self.name}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        """Remove what dead processes have left. The caller holds the lock."""
        for path in self._images.glob(".*.new"):
            path.unlink(missing_ok=True)
        for path in self._tmp.glob("*.part"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        self._sweep_contents()

    def _loose(self, content: Path) -> Path:
        """The note that a content may have no record: it outlives a process that dies between the two."""
        return self._tmp / f"{content.name}.loose"

    def _sweep_contents(self) -> None:
        """Remove the contents that were noted as loose and that no record names. The caller holds the lock."""
        notes = list(self._tmp.glob("*.loose"))
        if not notes:
            return
        with contextlib.suppress(DriverError):  # a record that cannot be read may name the content: keep it
            named = {image.checksum for image in self.list()}
            for note in notes:
                sha256 = note.name.removesuffix(".loose")
                if f"sha256:{sha256}" not in named:
                    (self._blobs / sha256[:2] / sha256).unlink(missing_ok=True)
                note.unlink()

    @contextmanager
    def _translated(self, brief: str) -> Iterator[None]:
        """Tell of a disk's trouble in planvirt's words."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise OutOfSpace(
                    brief,
                    details=f"{self._root}: {error.strerror}",
                    resolution="make room there, or choose another store",
                ) from error
            raise DriverError(
                brief, details=str(error), resolution=f"check that {self._root} is a folder you may write to"
            ) from error


def _write_sparse(file: BinaryIO, chunk: bytes) -> None:
    for start in range(0, len(chunk), _BLOCK):
        block = chunk[start : start + _BLOCK]
        if block == _ZEROS[: len(block)]:
            file.seek(len(block), os.SEEK_CUR)
            continue
        while block:
            block = block[file.write(block) :]


def _hash(file: BinaryIO, tell: Callable[[int], None]) -> tuple[str, int]:
    digest, done = hashlib.sha256(), 0
    for piece in pieces(file):
        digest.update(piece)
        done += len(piece)
        tell(done)
    return f"sha256:{digest.hexdigest()}", done
