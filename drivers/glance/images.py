"""The images that a store has in Glance: looked up, listed, made, read and removed."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, BinaryIO

from drivers.errors import DriverError, NotFound, Transient
from drivers.glance import records
from drivers.glance.body import Body
from drivers.glance.faults import Forbidden
from drivers.glance.records import Record
from drivers.glance.service import ImageService
from drivers.image_store import StoredImage
from drivers.reading import PIECE, Resumed
from planvirt.deadline import Deadline
from planvirt.errors import Conflict

_PROBE, _MARK = "planvirt check", "planvirt_check"  # the name and a property of the image that `probe` makes


class Images:
    """The images of a store, new ones with this visibility. `page` is how many the server is asked for at once."""

    def __init__(self, store: str, service: ImageService, visibility: str, page: int) -> None:
        self._store = store
        self._service = service
        self._visibility = visibility
        self._page = page

    def read(self, id: str) -> Record | None:
        """The image that we, or Glance, call so."""
        return next(self.all_of(id), None)

    def need(self, id: str) -> Record:
        """The image of that id; NotFound when there is none."""
        record = self.read(id)
        if record is None:
            raise NotFound(f"cannot find image {id} in store {self._store}")
        return record

    def again(self, record: Record, brief: str) -> Record:
        """An image as it is now."""
        return self._by_uuid(record.uuid, brief)

    def all_of(self, id: str) -> Iterator[Record]:
        """The image that Glance calls so, and those of this project that we do."""
        brief = f"cannot look for image {id}"
        found = None
        if records.is_uuid(id):
            with contextlib.suppress(NotFound):
                found = self._by_uuid(id, brief)
                yield found
        for record in self.listed({records.ID: id, **self._owner(brief)}, brief):
            if record.image.id == id and (found is None or record.uuid != found.uuid):
                yield record

    def listed(self, wanted: Mapping[str, str], brief: str) -> Iterator[Record]:
        """The images that the server lists, newest first, without what only its administrators can see."""
        asked: dict[str, str | int] = {**wanted, "sort": "created_at:desc", "limit": self._page}
        everything = not self._service.admin(brief)
        while True:
            try:
                answer = self._service.get("images", brief, asked)
            except (DriverError, Conflict) as error:
                if "marker" not in asked or isinstance(error, Transient):
                    raise
                raise Transient(brief, details="an image was deleted while the list was read") from error
            found = [self._parsed(body, brief) for body in answer.get("images", ())]
            yield from (each for each in found if everything or each.own or each.visibility == "public")
            if not found or not answer.get("next"):
                return
            asked["marker"] = found[-1].uuid

    def make(self, id: str, name: str, format: str, properties: Mapping[str, str]) -> Record:
        """An image without data; the one that is there, if another process was faster."""
        brief = f"cannot create image {id}"
        body = {"name": name, "disk_format": format, **records.to_properties(id, properties)}
        for uuid in records.uuids(id, self._service.project(brief)):
            try:
                return self._posted({**body, "id": uuid}, brief)
            except Conflict:  # that, or an image that is gone has had it
                with contextlib.suppress(NotFound):
                    present = self._by_uuid(uuid, brief)
                    if present.image.id == id:
                        return present
        raise DriverError(brief, details="it was made and deleted a hundred times", resolution="choose another id")

    def put(self, record: Record, body: Body, deadline: Deadline, brief: str) -> None:
        """Send data to an image."""
        self._service.put(f"images/{record.uuid}/file", body, deadline, brief)

    def note(self, record: Record, checksum: str, brief: str) -> Record:
        """Have Glance keep our checksum of an image."""
        properties = {records.SHA256: checksum.removeprefix("sha256:")}
        return self._parsed(self._service.add(f"images/{record.uuid}", properties, brief), brief)

    @contextmanager
    def content(self, record: Record, image: StoredImage) -> Iterator[BinaryIO]:
        """The data, which must be what `image` says."""
        path, brief = f"images/{record.uuid}/file", f"cannot read image {image.id}"
        with closing(Resumed(image, lambda start: self._service.read_from(path, start, brief))) as content:
            yield io.BufferedReader(content, PIECE)

    def remove(self, record: Record) -> None:
        """Delete an image, in whatever state it is. One that is gone counts as deleted."""
        brief = f"cannot delete image {record.image.id}"
        try:
            self._service.delete(f"images/{record.uuid}", brief)
        except NotFound:
            pass
        except Forbidden as error:
            if not record.protected:
                raise
            wanted = f"if you mean it: openstack image set --unprotected {record.uuid}"
            raise Conflict(f"{brief}: it is protected", details=error.details, resolution=wanted) from error

    def probe(self, brief: str) -> None:
        """Make an image and remove it, and those that killed processes have left of that."""
        for left in self.listed({_MARK: "queued", **self._owner(brief)}, brief):
            self.remove(left)
        self.remove(self._posted({"name": _PROBE, "disk_format": "qcow2", _MARK: "queued"}, brief))

    def _by_uuid(self, uuid: str, brief: str) -> Record:
        return self._parsed(self._service.get(f"images/{uuid}", brief), brief)

    def _parsed(self, body: Mapping[str, Any], brief: str) -> Record:
        try:
            return records.read(body, self._store, self._service.project(brief))
        except (KeyError, TypeError, ValueError) as error:
            details = f"the server's answer about it makes no sense: {type(error).__name__} {error}"
            raise DriverError(brief, details=details, resolution="check the store's url") from error

    def _posted(self, body: Mapping[str, Any], brief: str) -> Record:
        try:
            body = {"container_format": "bare", "visibility": self._visibility, **body}
            return self._parsed(self._service.post("images", body, brief), brief)
        except Forbidden as error:
            if self._visibility != "public":
                raise
            wanted = "choose another visibility for the store: as a rule, only administrators publish images"
            raise Forbidden(brief, details=error.details, resolution=wanted) from error

    def _owner(self, brief: str) -> dict[str, str]:
        project = self._service.project(brief)
        return {} if project is None else {"owner": project}
