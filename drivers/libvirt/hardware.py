"""What every change of an instance's hardware begins and ends with: whether it may be changed now, and how its
definition is read and written as a whole. What is not changed in it stays: the mark, notes, addresses of devices.
"""

from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.domain_xml import parse
from drivers.libvirt.faults import translated
from planvirt.errors import Conflict
from planvirt.states import State


def changeable(connection: Connection, name: str, verb: str) -> Any:
    """The virDomain of an instance that may be changed as it is now. A saved memory fits the old hardware only."""
    domain = instances.require_ours(connection, name)
    state = instances.state_of(domain)
    if state is State.SUSPENDED:
        raise Conflict(f"cannot {verb} the instance {name}: it is {state}", resolution="resume it first")
    return domain


def changeable_off(connection: Connection, name: str, verb: str) -> Any:
    """The same for what is possible only while no guest runs, nor stands still."""
    domain = changeable(connection, name, verb)
    if running(domain) is not None:
        state = instances.state_of(domain)
        raise Conflict(f"cannot {verb} the instance {name}: it is {state}", resolution="stop it first")
    return domain


def running(domain: Any) -> ET.Element | None:
    """What the domain's guest has now; None when there is no guest."""
    with translated("read an instance"):
        if not domain.isActive():
            return None
        # A guest that ends in between leaves its definition here, which does no harm.
        return parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))


def definition(domain: Any) -> ET.Element:
    """What the next start will make of the domain."""
    with translated("read an instance"):
        return parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))


def redefine(connection: Connection, root: ET.Element, what: str) -> None:
    """Put a definition in place of the one that is there, in one step. `what` completes "cannot …"."""
    conn = connection.get()
    with translated(what):
        conn.defineXMLFlags(ET.tostring(root, encoding="unicode"), 0)
