"""Images as Glance tells of them, and as planvirt does.

Glance takes only UUIDs as ids, of all projects together, and none for a second time, even when its image is gone. So
the caller's id stands in a property, and the UUID is the first of a fixed row that nobody has had: several processes
that create one image come to the same.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from drivers.image_store import StoredImage

Status = Literal["queued", "saving", "active"]

ID, SHA256 = "planvirt_id", "planvirt_sha256"
LONGER = "sha512"  # what Glance hashes with unless it is told otherwise

_NAMESPACE = uuid.UUID("0f8f5b66-6a0c-5a53-9a52-3c1f0d6f8c0e")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEPT = {"image_type", "instance_uuid", "base_image_ref"}  # names that mean to others what they mean to us
_OWN, _FOREIGN = "planvirt_", "planvirt_x_"
_STATUS: Mapping[str, Status] = {"queued": "queued", "active": "active", "deactivated": "active"}
_CHECKSUMS = ("sha256", "sha512")  # what everybody who reads a checksum knows


@dataclass(frozen=True, slots=True)
class Record:
    """An image, with what only Glance knows of it. `content` is the image with the best checksum there is, or None."""

    uuid: str
    image: StoredImage
    status: str
    protected: bool
    visibility: str
    own: bool  # of the store's project
    hash: str  # "ALGORITHM:HEX" as Glance has it, or ""

    @property
    def content(self) -> StoredImage:
        """The image with a checksum that can be computed here, if there is any."""
        return self.image if self.image.checksum else replace(self.image, checksum=self.hash or None)


def read(body: Mapping[str, Any], store: str, project: str | None) -> Record:
    """What the server's answer says. Raises KeyError, TypeError or ValueError when it is no image."""
    own = project is None or body.get("owner") == project
    status: Status = _STATUS.get(body["status"], "saving")
    hashed = _hash(body) if status == "active" else ""
    image = StoredImage(
        id=_id(body, own=own),
        name=str(body.get("name") or ""),
        store=store,
        format=str(body.get("disk_format") or ""),
        status=status,
        size=int(body["size"]) if status == "active" else None,
        checksum=_checksum(body, hashed) if status == "active" else None,
        created=datetime.fromisoformat(body["created_at"]).timestamp(),
        properties=_properties(body),
    )
    return Record(
        uuid=uuid_of(body),
        image=image,
        status=str(body["status"]),
        protected=body.get("protected") is True,
        visibility=str(body.get("visibility")),
        own=own,
        hash=hashed,
    )


def uuid_of(body: Mapping[str, Any]) -> str:
    """Glance's own id of an image, which becomes part of paths."""
    return str(uuid.UUID(body["id"]))


def is_uuid(id: str) -> bool:
    """Whether Glance would take it."""
    return _UUID.fullmatch(id) is not None


def uuids(id: str, project: str | None) -> Iterator[str]:
    """What the image can be called at the server, the best first."""
    row = uuid.uuid5(_NAMESPACE, project or "")
    yield id if is_uuid(id) else str(uuid.uuid5(row, id))
    for number in range(1, 100):
        yield str(uuid.uuid5(row, f"{id}#{number}"))


def to_properties(id: str, properties: Mapping[str, str]) -> dict[str, str]:
    """The caller's properties and id under names that neither Glance nor a hypervisor takes for orders."""
    named = {
        key if key in _KEPT or (key.startswith(_OWN) and not _reserved(key)) else f"{_FOREIGN}{key}": value
        for key, value in properties.items()
    }
    return {**named, ID: id}


def _reserved(key: str) -> bool:
    return key in (ID, SHA256) or key.startswith(_FOREIGN)


def _properties(body: Mapping[str, Any]) -> dict[str, str]:
    return {
        key.removeprefix(_FOREIGN): value
        for key, value in body.items()
        if isinstance(value, str)
        and (key in _KEPT or key.startswith(_FOREIGN) or (key.startswith(_OWN) and not _reserved(key)))
    }


def _id(body: Mapping[str, Any], *, own: bool) -> str:
    """The caller's id. What others call their images is theirs to say, so of those it is Glance's."""
    given = body.get(ID)
    return given if own and isinstance(given, str) and given else uuid_of(body)


def _hash(body: Mapping[str, Any]) -> str:
    """The hash that Glance has, if it can be computed here."""
    algorithm, value = body.get("os_hash_algo"), body.get("os_hash_value")
    if algorithm and value and algorithm in hashlib.algorithms_guaranteed and not algorithm.startswith("shake"):
        return f"{algorithm}:{value}".lower()
    return f"md5:{body['checksum']}".lower() if body.get("checksum") else ""


def _checksum(body: Mapping[str, Any], hashed: str) -> str | None:
    own = body.get(SHA256)
    if isinstance(own, str) and re.fullmatch("[0-9a-f]{64}", own):
        return f"sha256:{own}"
    return hashed if hashed.partition(":")[0] in _CHECKSUMS else None
