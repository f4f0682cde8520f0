"""Images in OpenStack's image service, whose own hash of an upload is compared with that of what was read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Self

from drivers import image_records
from drivers.glance.images import Images
from drivers.glance.service import GlanceSettings, ImageService
from drivers.glance.upload import upload
from drivers.image_store import StoredImage
from drivers.reading import read_through
from planvirt.config import StoreConfig
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.secret import Secret


class GlanceStore:
    """An image store in a Glance.

    `patience` is how many seconds the upload of somebody else is waited for, `grace` how many the server has to notice
    that an upload has ended badly, and `page` how many images it is asked for at once.
    """

    def __init__(
        self,
        name: str,
        settings: GlanceSettings,
        secrets: Mapping[str, Secret],
        *,
        patience: float = 30.0,
        grace: float = 10.0,
        page: int = 100,
    ) -> None:
        self.name = name
        self._images = Images(name, ImageService(name, settings, secrets), settings.visibility, page)
        self._patience = patience
        self._grace = grace

    @classmethod
    def configured(cls, config: StoreConfig, secrets: Mapping[str, Secret]) -> Self:
        """The store that planvirt.toml describes."""
        return cls(config.name, GlanceSettings(**config.settings), secrets)

    def create(self, id: str, *, name: str, format: str, properties: Mapping[str, str]) -> StoredImage:
        """Make a record without data."""
        image_records.check_new(id, name, format)
        record = self._images.read(id) or self._images.make(id, name, format, properties)
        return image_records.check_same(record.image, name, format)

    def upload(self, id: str, data: BinaryIO, size: int | None, deadline: Deadline) -> StoredImage:
        """Send the data in one request, and have the server's size and hash of it compared with what was read."""
        image_records.check_id(id)
        return upload(self._images, id, data, size, deadline, patience=self._patience, grace=self._grace)

    def get(self, id: str) -> StoredImage | None:
        """One image, by the caller's id or by Glance's."""
        record = self._images.read(image_records.check_id(id))
        return None if record is None else record.image

    def find(self, reference: str) -> StoredImage | None:
        """An active image by its id, else by its name, for which the server looks."""
        if image_records.is_id(reference):
            image = self.get(reference)
            if image is not None and image.status == "active":
                return image
        # Without the operator, what stands before a colon in the name would be taken for one.
        wanted = {"name": f"eq:{reference}", "status": "active"}
        found = (record.image for record in self._images.listed(wanted, f"cannot look for image {reference}"))
        return next((image for image in found if image.name == reference), None)

    def list(self) -> Sequence[StoredImage]:
        """The images of the project, and those that others have published to it, newest first."""
        return [record.image for record in self._images.listed({}, f"cannot list image store {self.name}")]

    @contextmanager
    def open(self, id: str) -> Iterator[BinaryIO]:
        """The content, which goes on where a connection is cut, and ends in WrongChecksum if it is another one."""
        record = self._images.need(image_records.check_id(id))
        if record.status != "active":
            wanted = "have an administrator of Glance activate it again" if record.status == "deactivated" else ""
            raise Conflict(f"cannot read image {id}: it is {record.status}", resolution=wanted)
        with self._images.content(record, record.content) as content:
            yield content

    def path(self, id: str) -> None:
        """None: the images are not on this machine."""

    def verify(self, id: str, deadline: Deadline) -> StoredImage:
        """Read the content back and compare its hash: ours where we made the image, else Glance's own."""
        image = self._images.need(image_records.check_id(id)).image
        deadline.check()
        read_through(self.open(id), lambda done: deadline.progress(done, image.size or done))
        return image

    def delete(self, id: str) -> None:
        """Delete the image, also while it is uploaded."""
        for record in self._images.all_of(image_records.check_id(id)):
            self._images.remove(record)

    def check(self) -> None:
        """Make an image without data, and delete it."""
        self._images.probe(f"cannot write to image store {self.name}")
