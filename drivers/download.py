"""Files from the web: fetched once, whole or not at all, and read on where a connection or a process has ended.

NAME         a whole file. Its name is its checksum, so all plans and runs that mean it share it
NAME.part    what there is of it so far
NAME.from    which edition of which address that is, so that nothing of another one is put behind it
NAME.lock    held by the process that fetches
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from drivers.durable import sync_folder
from drivers.errors import DriverError, OutOfSpace, WrongChecksum
from drivers.web_request import PATIENCE, answer, refused
from planvirt.deadline import Deadline
from planvirt.units import format_size
from planvirt.web import AddressRefused, check_address, shown

if TYPE_CHECKING:
    import httpx

LARGEST = 256 << 30  # bytes of a file; an address may never end
_SPARE = 64 << 20  # bytes of the disk that are left to others
_CHUNK = 1 << 20
_PAUSE = 0.2
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CHECKSUM = re.compile(r"(sha256):[0-9a-f]{64}|(sha512):[0-9a-f]{128}")


class TooLarge(DriverError):
    """The file is larger than anything that is fetched."""


def whole_file(folder: Path, checksum: str) -> Path:
    """Where the file with that checksum is, once it is there."""
    return folder / checksum.replace(":", "-")


def download(
    url: str,
    checksum: str | None,
    folder: Path,
    deadline: Deadline,
    *,
    largest: int = LARGEST,
    patience: float = PATIENCE,
) -> Path:
    """The file from an address, with its checksum ("sha256:HEX" or "sha512:HEX"); fetched unless it is there.

    Raises Transient when it may succeed another time, which then goes on where this one has ended.
    """
    if checksum is None or _CHECKSUM.fullmatch(checksum) is None:
        raise DriverError(f"cannot fetch {shown(url)}", details="there is no checksum to know it by")
    try:
        check_address(url)
    except AddressRefused as error:
        raise DriverError("cannot fetch an image", details=str(error), resolution=error.hint) from error
    target = whole_file(folder, checksum)
    if target.exists():
        return target
    with _disk_errors(url, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f"{target.name}.lock"), deadline):
            if not target.exists():
                _Fetching(url, checksum, target, deadline, largest, patience).carry_out()
    return target


@dataclass(frozen=True, slots=True)
class _Edition:
    """Which edition of a file an answer was of. Only one that the server can tell from others can be read on."""

    url: str
    etag: str = ""
    modified: str = ""

    @classmethod
    def of(cls, url: str, response: "httpx.Response") -> "_Edition":
        return cls(url, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))

    @property
    def condition(self) -> str:
        """What If-Range says: a weak tag does not promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Fetching:
    """One file on its way. The lock is held."""

    def __init__(
        self, url: str, checksum: str, target: Path, deadline: Deadline, largest: int, patience: float
    ) -> None:
        self._url = url
        self._checksum = checksum
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._from = target.with_name(f"{target.name}.from")
        self._deadline = deadline
        self._largest = largest
        self._patience = patience
        self._done = 0
        self._before = 0  # bytes of that which an earlier attempt has fetched
        self._digest = self._new_digest()

    def carry_out(self) -> None:
        """Fetch what is missing, compare, and give the file its name."""
        with os.fdopen(os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
            self._recall(file)
            if not self._right:
                self._receive(file)
            if not self._right and self._before:
                # What was there before was not what it seemed, as after a power loss.
                self._restart(file, None)
                self._receive(file)
            if not self._right:
                self._throw_away()
                raise self._wrong()
            os.fsync(file.fileno())
        self._part.replace(self._target)
        self._from.unlink(missing_ok=True)
        sync_folder(self._target.parent)

    def _recall(self, file: BinaryIO) -> None:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(_CHUNK):
            self._digest.update(chunk)
            self._done += len(chunk)
            self._deadline.progress(self._done, total)
        self._before = self._done

    def _receive(self, file: BinaryIO) -> None:
        """Get the rest of the file, or all of it where that cannot be done."""
        condition = "" if (known := self._edition()) is None else known.condition
        if self._done and condition and self._read_on(file, condition):
            return
        with answer(self._url, {}, self._deadline, patience=self._patience) as response:
            self._take_whole(file, response)

    def _read_on(self, file: BinaryIO, condition: str) -> bool:
        """Whether the answer has brought the rest, or the whole."""
        headers = {"Range": f"bytes={self._done}-", "If-Range": condition}
        with answer(self._url, headers, self._deadline, patience=self._patience) as response:
            if response.status_code == 416:
                return False
            if response.status_code != 206:
                self._take_whole(file, response)
                return True
            begin = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            found, known = _Edition.of(self._url, response), self._edition()
            if begin is None or int(begin[1]) != self._done or known is None or found.etag not in ("", known.etag):
                return False
            self._take(file, response, None if begin[2] == "*" else int(begin[2]))
            return True

    def _take_whole(self, file: BinaryIO, response: "httpx.Response") -> None:
        if response.status_code != 200:
            raise refused(self._url, response)
        self._restart(file, _Edition.of(self._url, response))
        length = response.headers.get("Content-Length")
        self._take(file, response, int(length) if length is not None else None)

    def _take(self, file: BinaryIO, response: "httpx.Response", total: int | None) -> None:
        """Append what comes. `total` is what the server says that the whole file has."""
        self._check_size(total or 0)
        self._check_room((total or self._done) - self._done)
        for chunk in response.iter_raw():
            self._check_size(self._done + len(chunk))
            if total is None:
                self._check_room(len(chunk), throw_away=True)
            self._digest.update(chunk)
            self._done += len(chunk)
            _write(file, chunk)
            self._deadline.progress(self._done, total or 0)
        self._deadline.check()  # an answer of unknown length also ends when its connection is cut for us

    def _restart(self, file: BinaryIO, edition: _Edition | None) -> None:
        """Forget what there is, then note of which edition that is which comes: never the other way round."""
        file.truncate(0)
        file.seek(0)
        self._done, self._before, self._digest = 0, 0, self._new_digest()
        self._from.unlink(missing_ok=True)
        if edition is not None:
            fresh = self._from.with_name(f"{self._from.name}.new")
            fresh.write_text(json.dumps(asdict(edition)))
            fresh.replace(self._from)

    def _edition(self) -> _Edition | None:
        """The edition that the part is of; None when it is of another address, or that cannot be told."""
        try:
            edition = _Edition(**json.loads(self._from.read_bytes()))
        except (FileNotFoundError, TypeError, ValueError):
            return None
        return edition if edition.url == self._url else None

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            self._throw_away()
            raise TooLarge(
                f"cannot fetch {shown(self._url)}",
                details=f"it has more than {format_size(self._largest)}",
                resolution="fetch it yourself, and give its path",
            )

    def _check_room(self, size: int, *, throw_away: bool = False) -> None:
        """Raise OutOfSpace before the disk is full. Of what may never end nothing is kept then."""
        free = shutil.disk_usage(self._target.parent).free
        if size + _SPARE > free:
            if throw_away:
                self._throw_away()
            raise OutOfSpace(
                f"cannot fetch {shown(self._url)}",
                details=f"{size} bytes are to come, {free} are free in {self._target.parent}",
                resolution="make room there; old files in that folder can go",
            )

    def _throw_away(self) -> None:
        self._part.unlink(missing_ok=True)
        self._from.unlink(missing_ok=True)

    @property
    def _right(self) -> bool:
        return self._digest.hexdigest() == self._checksum.partition(":")[2]

    def _wrong(self) -> WrongChecksum:
        kind, _, expected = self._checksum.partition(":")
        return WrongChecksum(
            f"cannot use {shown(self._url)}: its checksum is wrong",
            details=f"what came is {kind}:{self._digest.hexdigest()[:12]}…, {self._done} bytes, "
            f"the plan says {kind}:{expected[:12]}…",
            resolution="check the address; if its publisher has changed the file, change the checksum in the plan",
        )

    def _new_digest(self) -> "hashlib._Hash":
        return hashlib.new(self._checksum.partition(":")[0], usedforsecurity=True)


@contextmanager
def _locked(path: Path, deadline: Deadline) -> Iterator[None]:
    """Hold the lock, however long another process or thread has it: what it fetches is ours as well."""
    with path.open("a") as file:
        while True:
            deadline.check()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                deadline.sleep(_PAUSE)
        yield


@contextmanager
def _disk_errors(url: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        brief = f"cannot keep {shown(url)} in {folder}"
        if error.errno in _NO_ROOM:
            raise OutOfSpace(brief, details="the disk is full", resolution="make room there") from error
        raise DriverError(
            brief, details=str(error), resolution="check that it is a folder that you may write to"
        ) from error


def _write(file: BinaryIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
