"""What is written down about an instance, in its domain's metadata, for whoever decides what may be done to it."""

from collections.abc import Sequence
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.domain_xml import MARK_NAMESPACE, mark_xml, note_namespace, parse
from drivers.libvirt.faults import translated
from planvirt.states import Note


def write(connection: Connection, name: str, note: Note, text: str | None) -> None:
    """Write a note, or strike it out, in the lasting definition: what a guest runs from is gone when it stops."""
    element = None
    if text is not None:
        node = ET.Element("note")
        node.text = text
        element = ET.tostring(node, encoding="unicode")
    domain = instances.require_ours(connection, name)
    with translated(f"write down that {name} is {note}"):
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            element,
            f"planvirt-{note}",
            note_namespace(note),
            libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )


def set_spec(connection: Connection, name: str, spec: str) -> None:
    """Write another spec into the mark."""
    _set_mark(connection, name, spec=spec)


def set_keep(connection: Connection, name: str, keep: Sequence[str]) -> None:
    """Write the names of other kept disks into the mark."""
    _set_mark(connection, name, keep=keep)


def _set_mark(connection: Connection, name: str, *, spec: str | None = None, keep: Sequence[str] | None = None) -> None:
    domain = instances.require_ours(connection, name)
    with translated(f"change the mark of {name}"):
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            mark_xml(parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)), spec=spec, keep=keep),
            "planvirt",
            MARK_NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
