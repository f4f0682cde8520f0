"""An image as a manifest: what a registry keeps of it, and what other tools see."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from drivers.image_store import StoredImage

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.planvirt.image.v1"
EMPTY = b"{}"  # the content of a descriptor that stands for nothing
EMPTY_DIGEST = f"sha256:{hashlib.sha256(EMPTY).hexdigest()}"

_NOTHING = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY_DIGEST, "size": len(EMPTY)}
_LAYER = "application/vnd.planvirt.image.layer.v1."
_NAME, _CREATED = "org.opencontainers.image.title", "org.opencontainers.image.created"
_ID, _FORMAT, _PROPERTY = "vnd.planvirt.image.id", "vnd.planvirt.image.format", "vnd.planvirt.image.property."


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as the registry has it. `image` is None where somebody else has made it, or for another tag."""

    digest: str
    image: StoredImage | None


def written(image: StoredImage) -> bytes:
    """The manifest of an image. Without data it has nothing for a layer."""
    layer: Mapping[str, Any] = _NOTHING
    if image.status == "active":
        layer = {
            "mediaType": _LAYER + image.format,
            "digest": image.checksum,
            "size": image.size,
            "annotations": {_NAME: f"{image.id}.{image.format}"},
        }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": _NOTHING,
        "layers": [layer],
        "annotations": {
            _NAME: image.name,
            _CREATED: datetime.fromtimestamp(image.created, UTC).isoformat(timespec="microseconds"),
            _ID: image.id,
            _FORMAT: image.format,
            **{_PROPERTY + key: value for key, value in image.properties.items()},
        },
    }
    return json.dumps(manifest, ensure_ascii=False, indent=1).encode()


def read(body: bytes, tag: str, store: str) -> Manifest:
    """The manifest with this tag. Raises ValueError, KeyError or TypeError when it is a broken one of planvirt's."""
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    manifest = json.loads(body)
    if not isinstance(manifest, dict) or manifest.get("artifactType") != ARTIFACT:
        return Manifest(digest, None)
    notes: dict[str, str] = manifest["annotations"]
    if notes[_ID] != tag:
        return Manifest(digest, None)
    (layer,) = manifest["layers"]
    whole = str(layer["mediaType"]).startswith(_LAYER)
    if whole and re.fullmatch("sha256:[0-9a-f]{64}", layer["digest"]) is None:
        raise ValueError(f"an image has no digest {layer['digest']}")
    return Manifest(
        digest,
        StoredImage(
            id=tag,
            name=notes[_NAME],
            store=store,
            format=notes[_FORMAT],
            status="active" if whole else "queued",
            size=int(layer["size"]) if whole else None,
            checksum=layer["digest"] if whole else None,
            created=datetime.fromisoformat(notes[_CREATED]).timestamp(),
            properties={key.removeprefix(_PROPERTY): text for key, text in notes.items() if key.startswith(_PROPERTY)},
        ),
    )


def moment(seconds: float) -> float:
    """The time as a manifest can hold it: to the microsecond."""
    return datetime.fromisoformat(datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")).timestamp()
