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
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from drivers.errors import DriverError, NotFound, OutOfSpace, WrongChecksum
from drivers.image_store import StoredImage
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

_ID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,255}")
_FORMAT = re.compile(r"[a-z0-9]{1,16}")
_CHUNK = 1 << 20
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
        if _NAME.fullmatch(name) is None:
            raise DriverError(f"cannot name an image {name!r}", details="a name is 1 to 255 printable characters")
        if _FORMAT.fullmatch(format) is None:
            raise DriverError(f"cannot keep an image of format {format!r}")
        with self._locked():
            present = self._read(id)
            if present is None:
                present = StoredImage(
                    id, name, self.name, format, "queued", created=self._clock(), properties=dict(properties)
                )
                self._write(present)
            elif (present.name, present.format) != (name, format):
                raise Conflict(
                    f"cannot create image {id}: there is one with this id",
                    details=f"it is named {present.name!r} and its format is {present.format}",
                )
            return present

    def upload(self, id: str, data: BinaryIO, size: int | None, deadline: Deadline) -> StoredImage:
        """Write a temporary file, read it back from the disk, then give the file its place and the image its data."""
        image = self._need(id)
        deadline.check()
        if image.status == "active":
            return self._same(image, data, deadline)
        try:
            with self._temporary(id) as (file, path):
                sha256, count = self._copy(id, data, file, size, deadline)
                self._read_back(id, file, sha256, count, deadline)
                return self._finish(id, path, sha256, count)
        except BaseException:
            self._requeue(id)
            raise

    def get(self, id: str) -> StoredImage | None:
        """One record."""
        return self._read(id)

    def find(self, reference: str) -> StoredImage | None:
        """An active image by its id, else by its name."""
        if _ID.fullmatch(reference):
            image = self._read(reference)
            if image is not None and image.status == "active":
                return image
        return next((i for i in self.list() if i.name == reference and i.status == "active"), None)

    def list(self) -> Sequence[StoredImage]:
        """All records, newest first. One that cannot be read is an error, not a gap."""
        found = [self._read(path.name.removesuffix(".json")) for path in self._records()]
        return sorted((i for i in found if i is not None), key=lambda i: (-i.created, i.id))

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
            sha256, count = _hash(file, lambda done: deadline.progress(done, image.size or 0))
        if (f"sha256:{sha256}", count) != (image.checksum, image.size):
            raise WrongChecksum(
                f"cannot trust image {id}: its content has changed",
                details=f"{count} bytes of sha256:{sha256[:16]}…, recorded are {image.size} of {image.checksum}",
                resolution="delete the image and make it anew",
            )
        return image

    def delete(self, id: str) -> None:
        """Delete the record, and the content if no other record names it."""
        with self._locked():
            image = self._read(id)
            if image is None:
                return
            self.list()  # a record that cannot be read may name the same content
            if image.status == "active":
                self._loose(self._content(image)).touch()
            self._record(id).unlink()
            _sync_folder(self._images)
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
        if _ID.fullmatch(id) is None:
            raise DriverError(
                f"cannot use {id!r} as the id of an image",
                details="an id is 1 to 128 letters, digits, dots, dashes and underscores, and begins with no dot",
            )
        return self._images / f"{id}.json"

    def _records(self) -> Sequence[Path]:
        return [path for path in self._images.glob("*.json") if not path.name.startswith(".")]

    def _read(self, id: str) -> StoredImage | None:
        path = self._record(id)
        try:
            return _parse(path.read_text(), id, self.name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DriverError(
                f"cannot read the record of image {id}",
                details=f"{path}: {error}",
                resolution="mend the file, or move it away to forget the image",
            ) from error

    def _write(self, image: StoredImage) -> None:
        fields = asdict(image)
        del fields["store"]  # the operator's name for this folder, which may change
        with self._translated(f"cannot write the record of image {image.id}"):
            handle, temporary = tempfile.mkstemp(dir=self._images, prefix=".", suffix=".new")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(fields, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(self._record(image.id))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _sync_folder(self._images)

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

    def _same(self, image: StoredImage, data: BinaryIO, deadline: Deadline) -> StoredImage:
        sha256, _ = _hash(data, lambda done: deadline.progress(done, image.size or 0))
        if f"sha256:{sha256}" != image.checksum:
            raise Conflict(f"cannot upload image {image.id}: it has another content already")
        return image

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

    def _copy(self, id: str, data: BinaryIO, file: BinaryIO, size: int | None, deadline: Deadline) -> tuple[str, int]:
        """Write the data, with holes for zeros; returns its SHA-256 and length."""
        digest, done = hashlib.sha256(), 0
        for chunk in _chunks(data):
            digest.update(chunk)
            with self._translated(f"cannot store image {id}"):
                _write_sparse(file, chunk)
            done += len(chunk)
            if size is not None and done > size:
                break
            deadline.progress(done, size or done)
        if size is not None and done != size:
            raise WrongChecksum(
                f"cannot store image {id}: {size} bytes were expected",
                details="the data goes on after them" if done > size else f"the data ended after {done}",
            )
        with self._translated(f"cannot store image {id}"):
            file.truncate(done)
            os.fsync(file.fileno())
        return digest.hexdigest(), done

    def _read_back(self, id: str, file: BinaryIO, sha256: str, size: int, deadline: Deadline) -> None:
        with self._translated(f"cannot read back image {id}"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
            file.seek(0)
            found = _hash(file, lambda _: deadline.check())
        if found != (sha256, size):
            raise WrongChecksum(
                f"cannot store image {id}: the file differs from what was written to it",
                resolution=f"check the disk under {self._root}",
            )

    def _finish(self, id: str, temporary: Path, sha256: str, size: int) -> StoredImage:
        with self._locked():
            image = self._need(id)
            if image.status == "active":
                if image.checksum != f"sha256:{sha256}":
                    raise Conflict(f"cannot upload image {id}: another upload gave it another content")
                return image
            image = replace(image, status="active", size=size, checksum=f"sha256:{sha256}")
            place = self._content(image)
            try:
                with self._translated(f"cannot store image {id}"):
                    self._loose(place).touch()
                    place.parent.mkdir(exist_ok=True)
                    temporary.replace(place)
                    _sync_folder(place.parent)
                    _sync_folder(self._blobs)
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


def _parse(text: str, id: str, store: str) -> StoredImage:
    image = StoredImage(**json.loads(text), store=store)
    if image.id != id:
        raise ValueError(f"it is the record of {image.id}")
    if image.status == "active":
        if image.size is None or re.fullmatch("sha256:[0-9a-f]{64}", image.checksum or "") is None:
            raise ValueError("an active image has a size and a checksum")
    elif image.status not in ("queued", "saving"):
        raise ValueError(f"there is no status {image.status!r}")
    return image


def _chunks(data: BinaryIO) -> Iterator[bytes]:
    """The data in pieces of full size, also where it arrives in smaller ones."""
    while True:
        parts, wanted = [], _CHUNK
        while wanted and (part := data.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        if parts:
            yield b"".join(parts)
        if wanted:
            return


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
    for chunk in _chunks(file):
        digest.update(chunk)
        done += len(chunk)
        tell(done)
    return digest.hexdigest(), done


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
