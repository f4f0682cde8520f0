"""The lock of an instance: a mark in its domain's metadata, for whoever decides what may be done to it."""

import libvirt

from drivers.libvirt import instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.domain_xml import LOCK_NAMESPACE
from drivers.libvirt.faults import translated

_PREFIX = "planvirt-lock"


def lock(connection: Connection, name: str) -> None:
    """Put the mark there."""
    _write(connection, name, "<locked/>")


def unlock(connection: Connection, name: str) -> None:
    """Take the mark away."""
    _write(connection, name, None)


def _write(connection: Connection, name: str, element: str | None) -> None:
    """Change the lasting definition: what a running guest was started from is gone when it stops."""
    domain = instances.require_ours(connection, name)
    with translated(f"change the lock of {name}"):
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, _PREFIX, LOCK_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
        )
