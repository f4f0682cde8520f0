"""What every store asks of an image's record: the id, the name and the format, and how it is kept as JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from drivers.errors import DriverError
from drivers.image_store import StoredImage
from planvirt.errors import Conflict

_ID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,255}")
_FORMAT = re.compile(r"[a-z0-9]{1,16}")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")


def is_id(text: str) -> bool:
    """Whether a text can be the id of an image: it is a part of paths, keys and URLs as it is."""
    return _ID.fullmatch(text) is not None


def check_id(id: str) -> str:
    """The id, or the error that it can be none."""
    if not is_id(id):
        raise DriverError(
            f"cannot use {id!r} as the id of an image",
            details="an id is 1 to 128 letters, digits, dots, dashes and underscores, and begins with no dot",
        )
    return id


def check_new(id: str, name: str, format: str) -> None:
    """Raise what keeps an image from being made with these."""
    check_id(id)
    if _NAME.fullmatch(name) is None:
        raise DriverError(f"cannot name an image {name!r}", details="a name is 1 to 255 printable characters")
    if _FORMAT.fullmatch(format) is None:
        raise DriverError(f"cannot keep an image of format {format!r}")


def check_same(present: StoredImage, name: str, format: str) -> StoredImage:
    """The image that is there already, if it is the one that was to be made."""
    if (present.name, present.format) != (name, format):
        raise Conflict(
            f"cannot create image {present.id}: there is one with this id",
            details=f"it is named {present.name!r} and its format is {present.format}",
        )
    return present


def check_content(present: StoredImage, checksum: str) -> StoredImage:
    """The active image, if its content is the one that was to be uploaded."""
    if present.checksum != checksum:
        raise Conflict(f"cannot upload image {present.id}: it has another content already")
    return present


def newest_first(images: Iterable[StoredImage]) -> list[StoredImage]:
    """The images in the order of every list."""
    return sorted(images, key=lambda image: (-image.created, image.id))


def to_json(image: StoredImage, **more: str) -> str:
    """The record as text, without the store: that is the operator's name for the place, which may change."""
    fields = asdict(image)
    del fields["store"]
    return json.dumps(fields | more, indent=1)


def from_json(text: str | bytes, id: str, store: str) -> tuple[StoredImage, Mapping[str, Any]]:
    """The record in a text, and what else stands there. Raises ValueError or TypeError when it is no record."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError("a record is a JSON object")
    own = {key: fields.pop(key) for key in StoredImage.__dataclass_fields__ if key in fields}
    image = StoredImage(**own, store=store)
    if image.id != id:
        raise ValueError(f"it is the record of {image.id}")
    if image.status == "active":
        if image.size is None or _CHECKSUM.fullmatch(image.checksum or "") is None:
            raise ValueError("an active image has a size and a checksum")
    elif image.status not in ("queued", "saving"):
        raise ValueError(f"there is no status {image.status!r}")
    return image, fields
