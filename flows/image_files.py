"""Images on their way between files and stores: checked before they go in, compared when they come out."""

import errno
import hashlib
import io
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from drivers.compute import LocalImage
from drivers.errors import DriverError, OutOfSpace, WrongChecksum
from drivers.image_file import RefusedImage, inspect
from drivers.image_store import ImageStore, StoredImage
from drivers.reading import pieces
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NAMESPACE = uuid.UUID("0f5a7a52-29a5-5e25-8f6b-6a4f2e1f6c11")


def push(
    path: Path, store: ImageStore, *, name: str, format: str | None, checksum: str | None, deadline: Deadline
) -> tuple[StoredImage, bool]:
    """Check the file as one from a stranger and bring it into the store; also whether that was to do.

    The id is made from what the image is, so that a push that is repeated finds its own work. When it fails, nothing is
    left in the store that was not there before.
    """
    checked = _checked(path, format, checksum, deadline)
    image = str(uuid.uuid5(_NAMESPACE, f"{store.name}/{name}/{checked.format}/{checked.sha256}"))
    before = store.get(image)
    if before is not None and before.status == "active":
        return before, False
    properties = {"image_type": "upload", "planvirt_file": path.name}
    store.create(image, name=name, format=checked.format, properties=properties)
    try:
        with path.open("rb") as file:
            data = _Hashed(file)
            stored = store.upload(image, data, os.fstat(file.fileno()).st_size, deadline)
    except BaseException as error:
        if before is None:
            store.delete(image)
        if isinstance(error, OSError):
            raise DriverError(f"cannot read {path}", details=error.strerror or str(error)) from error
        raise
    if data.sha256 != checked.sha256:
        store.delete(image)  # nobody has looked at what it is
        raise WrongChecksum(f"cannot push {path}: it changed after it was checked")
    return stored, True


def _checked(path: Path, format: str | None, checksum: str | None, deadline: Deadline) -> LocalImage:
    try:
        checked = inspect(path, checksum=checksum, declared_format=None, deadline=deadline)
    except WrongChecksum as error:
        raise WrongChecksum(
            error.brief,
            details=error.details.replace("the plan says", "not"),
            resolution="fetch the file again, or ask its publisher for its checksum",
        ) from error
    if format not in (None, checked.format):
        raise RefusedImage(
            f"cannot push {path}: it is {checked.format}, not {format}",
            resolution=f"say --format {checked.format} if you trust the file",
        )
    return checked


class _Hashed(io.BytesIO):
    """A file that is read from its start to its end, and the SHA-256 of that."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, size: int | None = -1) -> bytes:
        data = self._file.read(-1 if size is None else size)
        self._digest.update(data)
        return data


def export(image: StoredImage, store: ImageStore, path: Path, *, force: bool, deadline: Deadline) -> None:
    """Have the image's content in the file: whole and compared with its record, or not at all."""
    refuse_present(path, force=force)
    with _disk_errors(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as part:
        with store.open(image.id) as source:
            _copy(image, source, part.file, deadline)
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(part.fileno(), 0o666 & ~umask)
        os.fsync(part.fileno())
        _settle(Path(part.name), path, force=force)


def refuse_present(path: Path, *, force: bool) -> None:
    """Raise Conflict when the file is there already and shall stay."""
    if path.is_dir() or (not force and os.path.lexists(path)):
        raise Conflict(
            f"cannot write {path}: it is there already"
            if not path.is_dir()
            else f"cannot write {path}: it is a folder",
            resolution="name another file" + ("" if path.is_dir() else ", or say --force to replace it"),
        )


def _copy(image: StoredImage, source: BinaryIO, target: IO[bytes], deadline: Deadline) -> None:
    """Write the content, with holes for zeros, and compare it with the record."""
    algorithm = (image.checksum or "sha256:").partition(":")[0]
    digest, done = hashlib.new(algorithm, usedforsecurity=False), 0
    for piece in pieces(source):
        digest.update(piece)
        _write_sparse(target, piece)
        done += len(piece)
        deadline.progress(done, image.size or done)
    target.truncate(done)
    target.flush()
    found = f"{algorithm}:{digest.hexdigest()}"
    if done != (image.size or done) or found != (image.checksum or found):
        raise WrongChecksum(
            f"cannot trust image {image.store}/{image.id}: its content is not what its record says",
            details=f"{done} bytes of {found[:23]}…, recorded are {image.size} of {str(image.checksum)[:23]}…",
            resolution="delete the image and make it anew",
        )


def _write_sparse(file: IO[bytes], piece: bytes) -> None:
    for start in range(0, len(piece), _BLOCK):
        block = piece[start : start + _BLOCK]
        if block == _ZEROS[: len(block)]:
            file.seek(len(block), os.SEEK_CUR)
        else:
            file.write(block)


def _settle(part: Path, path: Path, *, force: bool) -> None:
    """Give the finished file its name. A link never replaces what has appeared there meanwhile."""
    if force:
        place = part.with_name(f"{part.name}.whole")
        os.link(part, place)  # the temporary file takes its own name away at the end
        try:
            place.replace(path)
        except OSError:
            place.unlink()
            raise
    else:
        try:
            os.link(part, path)
        except FileExistsError:
            refuse_present(path, force=False)
            raise
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _NO_ROOM
        raise (OutOfSpace if full else DriverError)(
            f"cannot write {path}",
            details=(error.strerror or str(error)).lower(),
            resolution="make room there, or name another place"
            if full
            else "check that its folder is there and that you may write to it",
        ) from error
