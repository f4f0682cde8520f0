"""The one interface to places that keep images. Every store passes tests/drivers/test_store_contract.py."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from planvirt.deadline import Deadline


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in a store. `size` is bytes and `checksum` "sha256:HEX", both None until the data is there and verified.

    Of an image that others made, the checksum is what the store has: "sha512:HEX", or None if it is of no known kind.
    `status` is "queued" (a record without data), "saving" or "active". `created` is seconds since the epoch.
    """

    id: str
    name: str
    store: str
    format: str
    status: Literal["queued", "saving", "active"]
    size: int | None = None
    checksum: str | None = None
    created: float = 0.0
    properties: Mapping[str, str] = field(default_factory=dict)


class ImageStore(Protocol):
    """A place for images.

    The caller chooses an image's id, so that a repeat finds its own work. Methods may raise Transient, Conflict,
    NotFound, OutOfSpace, WrongChecksum or DriverError, and may be called from several threads and processes at once.
    """

    name: str

    def create(self, id: str, *, name: str, format: str, properties: Mapping[str, str]) -> StoredImage:
        """Make a record without data. A record with this id, name and format is returned as it is; else Conflict."""

    def upload(self, id: str, data: BinaryIO, size: int | None, deadline: Deadline) -> StoredImage:
        """Read `data` to its end into the image, and return it once the store's size and hash equal what was read.

        `size` is the expected number of bytes, if known. After a failure the record is queued again, and no data is
        left. An active image with the same content is returned as it is.
        """

    def get(self, id: str) -> StoredImage | None:
        """One image by its id, or None."""

    def find(self, reference: str) -> StoredImage | None:
        """One active image by id, or the newest active one of that name."""

    def list(self) -> Sequence[StoredImage]:
        """All images, newest first."""

    def open(self, id: str) -> AbstractContextManager[BinaryIO]:
        """Read an active image from its start."""

    def path(self, id: str) -> Path | None:
        """The file of an active image where the store is on this machine, else None."""

    def verify(self, id: str, deadline: Deadline) -> StoredImage:
        """Read the whole image again and compare size and hash; WrongChecksum when they differ."""

    def delete(self, id: str) -> None:
        """Delete the image, with its data unless another image shares it. A missing one counts as deleted."""

    def check(self) -> None:
        """Raise what would keep the store from taking an image now: missing, not writable, no space."""
