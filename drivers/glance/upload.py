"""An upload: what is sent, what the server has of it then, and what becomes of the image when that is not the same."""

import contextlib
from dataclasses import replace
from typing import BinaryIO

from drivers.again import Busy, again
from drivers.errors import DriverError, NotFound, Transient, WrongChecksum
from drivers.glance import records
from drivers.glance.body import Body
from drivers.glance.images import Images
from drivers.glance.records import Record
from drivers.image_store import StoredImage
from drivers.reading import Measured, read_through
from planvirt.deadline import Deadline, DeadlinePassed
from planvirt.errors import Conflict, PlanvirtError

_PAUSE = 0.2  # seconds


class Upload:
    """One upload of some data into an image. `grace` is in seconds."""

    def __init__(self, images: Images, record: Record, measured: Measured, deadline: Deadline, grace: float) -> None:
        self._images = images
        self._record = record
        self._measured = measured
        self._deadline = deadline
        self._grace = grace
        self._brief = f"cannot store image {record.image.id}"

    def compare(self, record: Record) -> StoredImage:
        """An image that is active already, if it has the content that was to be uploaded."""
        self._measured.drain()
        if not self._equal(record):
            raise Conflict(f"cannot upload image {record.image.id}: it has another content already")
        return self._noted(record)

    def send(self, size: int | None, patience: float) -> StoredImage:
        """Send the data to an image that has none, and return it once the server has what was sent."""
        body = Body(self._measured, size)
        try:
            self._images.put(self._record, body, self._deadline, self._brief)
        except BaseException as error:
            if error is body.failure or not isinstance(error, Conflict | NotFound | Transient):
                refused = error is not body.failure and isinstance(error, PlanvirtError)
                self._take_back(body, self._after(0.0 if refused else self._grace), refused=refused)
                raise
            return self._lost(body, error) if isinstance(error, Transient) else self._overtaken(error, patience)
        try:
            return self._confirmed()
        except BaseException:
            self._remake(self._after(0.0))
            raise

    # The end of an upload

    def _confirmed(self) -> StoredImage:
        """The image after an upload, unless the server has something else than was sent."""
        stored = again(self._deadline, self._now)
        if stored.image.status != "active":
            raise DriverError(self._brief, details=f"the server took it all, but the image is {stored.status}")
        if not self._equal(stored):
            raise WrongChecksum(
                f"{self._brief}: the server holds other data than was sent",
                details=f"{self._measured.size} bytes of {self._measured.checksum[:23]}… were sent, the server has "
                f"{stored.image.size} of {stored.hash[:23]}…",
                resolution="see what is between this machine and the server",
            )
        return self._noted(stored)

    def _lost(self, body: Body, error: Transient) -> StoredImage:
        """What becomes of an upload that has failed at the server or on the way: it may have arrived all the same."""
        stored = self._after(self._grace)
        try:
            if stored is not None and stored.image.status == "active":
                return self.compare(stored)
        except Conflict:
            pass  # a part of it has arrived
        except BaseException:
            self._take_back(body, stored, refused=False)
            raise
        self._take_back(body, stored, refused=isinstance(error, Busy))
        raise error

    def _overtaken(self, error: Conflict | NotFound, patience: float) -> StoredImage:
        """What becomes of an upload that the server did not take: mostly another one is faster."""
        stored = settled(self._images, self._now(), self._deadline, patience)
        if stored.image.status != "active":
            raise Transient(self._brief, details="another upload of it has failed") from error
        return self.compare(stored)

    def _now(self) -> Record:
        return self._images.again(self._record, self._brief)

    def _noted(self, record: Record) -> StoredImage:
        """The image with its SHA-256, which Glance keeps for us. If it does not, Glance's own hash must do."""
        checksum = self._measured.checksum
        if record.image.checksum != checksum:
            with contextlib.suppress(DriverError, Conflict, DeadlinePassed):
                return again(self._deadline, lambda: self._images.note(record, checksum, self._brief)).image
        return record.image

    # Comparing

    def _equal(self, record: Record) -> bool:
        """Whether the server has what was read. It is read back where the server's hash is of another kind."""
        if record.image.size != self._measured.size:
            return False
        for hashed in (record.hash, record.image.checksum or ""):
            with contextlib.suppress(KeyError):
                return hashed == self._measured.hashed(hashed.partition(":")[0])
        wanted = replace(record.image, checksum=self._measured.checksum)
        try:
            read_through(self._images.content(record, wanted), lambda _: self._deadline.check())
        except WrongChecksum:
            return False
        return True

    # Failing

    def _after(self, grace: float) -> Record | None:
        """The image once the server has noticed that its upload has ended; None when it cannot be asked."""
        stored, waiting = None, Deadline(grace)
        with contextlib.suppress(DriverError, Conflict, DeadlinePassed):
            if grace:
                waiting.sleep(_PAUSE)  # a broken upload may not even have begun there
            while stored is None or stored.image.status == "saving":
                stored = self._now()
                if stored.image.status == "saving":
                    waiting.sleep(_PAUSE)
        return stored

    def _take_back(self, body: Body, stored: Record | None, *, refused: bool) -> None:
        """Have the image queued again, as far as the server can be reached.

        Glance does so by itself when an upload breaks. But where it has `refused` one, it may keep the data and take no
        other (of another format), or leave the image as it is (over its quota); and it, or what is between, may take a
        part for the whole. If it has more than our body brought, that is somebody else's.
        """
        if stored is None or not body.sent or (stored.image.size or 0) > body.sent:
            return
        if refused or stored.image.status != "queued":
            self._remake(stored)

    def _remake(self, stored: Record | None) -> None:
        if stored is not None:
            image = stored.image
            with contextlib.suppress(DriverError, Conflict):
                self._images.remove(stored)
                self._images.make(image.id, image.name, image.format, image.properties)


def upload(
    images: Images, id: str, data: BinaryIO, size: int | None, deadline: Deadline, *, patience: float, grace: float
) -> StoredImage:
    """Have the data in the image: sent, or there already."""
    deadline.check()
    record = settled(images, images.need(id), deadline, patience)
    measured = Measured(id, data, size, deadline, also=record.hash.partition(":")[0] or records.LONGER)
    one = Upload(images, record, measured, deadline, grace)
    return one.compare(record) if record.image.status == "active" else one.send(size, patience)


def settled(images: Images, record: Record, deadline: Deadline, patience: float) -> Record:
    """The image once nobody uploads it."""
    brief = f"cannot store image {record.image.id}"
    waiting = deadline.within(patience)
    while record.image.status == "saving":
        try:
            waiting.sleep(_PAUSE)
        except DeadlinePassed:
            deadline.check()
            raise Conflict(
                f"{brief}: it is {record.status}",
                details="somebody else uploads it, or did so when he died",
                resolution=f"wait for the end of that, or delete the image: openstack image delete {record.uuid}",
            ) from None
        record = images.again(record, brief)
    return record
