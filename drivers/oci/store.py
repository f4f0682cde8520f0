"""Images as artifacts in a registry: a manifest for the record, a blob for the content, the image's id for a tag.

An image without data is a manifest whose only layer is the empty one. When its content is a blob, another manifest with
that layer takes the tag over; the registry compares both with their hashes. A registry knows no conditions: of two
uploads at once with different contents, both of which look just before they end, the last one may win.

Blobs are never deleted here, as other images may have the same content. What no manifest names is the registry's own to
collect, as are uploads that were broken off.
"""

import contextlib
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import BinaryIO, Self

from drivers import image_records
from drivers.again import again
from drivers.errors import DriverError, NotFound, Transient, Unsupported
from drivers.image_store import StoredImage
from drivers.oci.manifest import EMPTY, EMPTY_DIGEST, Manifest, moment, read, written
from drivers.oci.repository import OciSettings, Repository
from drivers.oci.upload import CHUNK, Upload
from drivers.reading import PIECE, Measured, Resumed, read_through
from planvirt.config import StoreConfig
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.secret import Secret

_READERS = 8  # manifests that are read at once
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_TRIES = 3  # to delete what is replaced meanwhile


class OciStore:
    """An image store in a repository of a registry. `chunk` is how many bytes of an upload are held in memory."""

    def __init__(
        self,
        name: str,
        settings: OciSettings,
        secrets: Mapping[str, Secret],
        *,
        chunk: int = CHUNK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._repository = Repository(name, settings, secrets)
        self._chunk = chunk
        self._clock = clock

    @classmethod
    def configured(cls, config: StoreConfig, secrets: Mapping[str, Secret]) -> Self:
        """The store that planvirt.toml describes."""
        return cls(config.name, OciSettings(**config.settings), secrets)

    def create(self, id: str, *, name: str, format: str, properties: Mapping[str, str]) -> StoredImage:
        """Write a manifest without data."""
        image_records.check_new(id, name, format)
        brief = f"cannot create image {id}"
        present = self._manifest(id)
        if present is not None:
            if present.image is None:
                raise Conflict(
                    f"{brief}: something else has this tag",
                    details=f"{self._repository.name}:{id} is no image of planvirt's",
                    resolution="use a repository that holds nothing else",
                )
            return image_records.check_same(present.image, name, format)
        made = StoredImage(
            id, name, self.name, format, "queued", created=moment(self._clock()), properties=dict(properties)
        )
        self._repository.put_blob(EMPTY_DIGEST, EMPTY, brief)
        # While somebody else writes that blob for the first time, too, the registry may not see it for a moment.
        again(Deadline(), lambda: self._repository.put_manifest(id, written(made), brief))
        return made

    def upload(self, id: str, data: BinaryIO, size: int | None, deadline: Deadline) -> StoredImage:
        """Send the content, which the registry compares with its hash, then let another manifest name it."""
        image, _ = self._need(id)
        deadline.check()
        measured = Measured(id, data, size, deadline)
        if image.status == "active":
            return image_records.check_content(image, measured.drain())
        upload = Upload(self._repository, self._chunk, deadline, f"cannot store image {id}")
        try:
            upload.send(measured)
            deadline.check()
        except BaseException:
            upload.cancel()
            raise
        return self._activate(id, measured, deadline)

    def get(self, id: str) -> StoredImage | None:
        """One image, if its tag is there and planvirt's."""
        manifest = self._manifest(id)
        return None if manifest is None else manifest.image

    def find(self, reference: str) -> StoredImage | None:
        """An active image by its id, else by its name."""
        if _TAG.fullmatch(reference):
            image = self.get(reference)
            if image is not None and image.status == "active":
                return image
        return next((i for i in self.list() if i.name == reference and i.status == "active"), None)

    def list(self) -> Sequence[StoredImage]:
        """All images, newest first. One that cannot be read is an error, not a gap; what is not planvirt's is none."""
        tags = self._repository.tags(f"cannot list image store {self.name}")
        ids = sorted(tag for tag in set(tags) if image_records.is_id(tag))
        with ThreadPoolExecutor(_READERS) as pool:
            return image_records.newest_first(image for image in pool.map(self.get, ids) if image is not None)

    @contextmanager
    def open(self, id: str) -> Iterator[BinaryIO]:
        """The content, which goes on where a connection is cut, and ends in WrongChecksum if it is another one."""
        image, _ = self._need(id)
        if image.status != "active":
            raise Conflict(f"cannot read image {id}: it is {image.status}")
        digest, brief = image.checksum or "", f"cannot read image {id}"
        with closing(Resumed(image, lambda start: self._repository.read_blob(digest, start, brief))) as content:
            yield io.BufferedReader(content, PIECE)

    def path(self, id: str) -> None:
        """None: the images are not on this machine."""

    def verify(self, id: str, deadline: Deadline) -> StoredImage:
        """Read the content back and compare."""
        image, _ = self._need(id)
        deadline.check()
        read_through(self.open(id), lambda done: deadline.progress(done, image.size or done))
        return image

    def delete(self, id: str) -> None:
        """Delete the manifest, and with it the tag. The registry may collect the content then."""
        brief = f"cannot delete image {id}"
        for _ in range(_TRIES):
            manifest = self._manifest(id)
            if manifest is None or manifest.image is None:
                return
            try:
                self._repository.delete_manifest(manifest.digest, brief)
            except Unsupported as error:
                wanted = "allow deletions in the registry's configuration (docker-registry: storage, delete, enabled)"
                raise DriverError(brief, details=error.details, resolution=wanted) from error
        if self._manifest(id) is not None:
            raise Transient(brief, details="it is written again and again meanwhile")

    def check(self) -> None:
        """Write the blob that every record needs, and list."""
        brief = f"cannot write to image store {self.name}"
        session = self._repository.begin(brief)
        self._repository.cancel(session.url, brief)
        self._repository.put_blob(EMPTY_DIGEST, EMPTY, brief)
        self._repository.tags(brief)

    def _manifest(self, id: str) -> Manifest | None:
        brief = f"cannot read the record of image {id}"
        if _TAG.fullmatch(image_records.check_id(id)) is None:
            details = "in a registry an id begins with a letter, a digit or an underscore"
            raise DriverError(f"cannot use {id!r} as the id of an image", details=details)
        body = self._repository.manifest(id, brief)
        if body is None:
            return None
        try:
            return read(body, id, self.name)
        except (ValueError, KeyError, TypeError) as error:
            raise DriverError(
                brief,
                details=f"the manifest of {self._repository.name}:{id} is none of an image: {error!r}",
                resolution="mend the manifest, or delete it to forget the image",
            ) from error

    def _need(self, id: str) -> tuple[StoredImage, str]:
        """The image, and the digest of its manifest."""
        manifest = self._manifest(id)
        if manifest is None or manifest.image is None:
            raise NotFound(f"cannot find image {id} in store {self.name}")
        return manifest.image, manifest.digest

    def _activate(self, id: str, measured: Measured, deadline: Deadline) -> StoredImage:
        """Replace the manifest by one with the content, unless another upload was faster."""
        brief = f"cannot store image {id}"
        present, digest = again(deadline, lambda: self._need(id))
        if present.status == "active":
            return image_records.check_content(present, measured.checksum)
        image = replace(present, status="active", size=measured.size, checksum=measured.checksum)
        again(deadline, lambda: self._repository.put_manifest(id, written(image), brief))
        with contextlib.suppress(DriverError):  # without a tag it counts for nothing
            self._repository.delete_manifest(digest, brief)
        return image
