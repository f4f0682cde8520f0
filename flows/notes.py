"""What is written down about an instance, read: which note says what, and what belongs to the instance by it."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from drivers.compute import InstanceFacts
from planvirt.states import Note


def read_note(found: InstanceFacts, note: Note) -> Mapping[str, Any]:
    """What a note says; nothing when there is none, or when somebody has written something else there."""
    try:
        value = json.loads(found.notes.get(note, ""))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def belongings(found: InstanceFacts, kind: Literal["volumes", "images"]) -> list[str]:
    """The volumes that are attached to nothing, or the images, that are the instance's own while its notes stand."""
    names: dict[str, None] = {}
    for note in Note:
        if note is not Note.RESCUED:  # its text is the driver's own
            listed = read_note(found, note).get(kind)
            names.update(dict.fromkeys(map(str, listed if isinstance(listed, list) else ())))
    return list(names)
