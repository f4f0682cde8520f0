"""A second opinion on image files, by a reader that was not written here: the one of OpenStack, from oslo.utils.

What either of the two does not like is refused. This one knows more formats that can hide in another one's file, and
less of qcow2. Two of its checks do not count: the one of partition tables, which are the guest's own business, and the
one of qcow2's features, of which it does not know all that the first reader lets through one by one.
"""

import io
import logging
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from oslo_utils.imageutils.format_inspector import FileInspector

_PIECE = 1 << 16
_WITHIN: dict[str, frozenset[str]] = {
    "qcow2": frozenset({"qcow2"}),
    "raw": frozenset({"raw", "gpt", "iso"}),  # a disk with partitions, and a disc that boots as a disk as well
}
_NOT_COUNTED = frozenset({"mbr", "unknown_features"})


def objection(head: bytes, found: Literal["qcow2", "raw"]) -> str | None:
    """What it has against a file that begins so, and that the first reader found to be of that format; in words."""
    from oslo_utils.imageutils import format_inspector as oslo

    logging.getLogger(oslo.__name__).setLevel(logging.CRITICAL + 1)  # it warns of what is told here
    wrapper = oslo.InspectWrapper(io.BytesIO(head))
    try:
        while wrapper.read(_PIECE):
            pass
        wrapper.close()
        formats = wrapper.formats or []
        others = sorted({str(item) for item in formats} - _WITHIN[found])
        if others:
            return f"it can be read as {found} and as {' and '.join(others)}"
        return next(filter(None, (_fault(item) for item in formats)), None)
    except Exception:  # noqa: BLE001 - whatever it stumbles over, it does not vouch for
        return "a second reader cannot make sense of it"


def _fault(item: "FileInspector") -> str | None:
    from oslo_utils.imageutils.format_inspector import SafetyCheckFailed

    try:
        item.safety_check()
    except SafetyCheckFailed as error:
        if counted := sorted(set(error.failures) - _NOT_COUNTED):
            return f"a second reader finds fault with its {' and '.join(counted).replace('_', ' ')}"
    return None
