"""A guest's IP addresses, from whoever knows them: the network's leases, the guest agent, the host's ARP table."""

import ipaddress
from collections.abc import Sequence
from typing import Any

import libvirt

from drivers.libvirt import instances
from drivers.libvirt.connection import Connection

_SOURCES = (
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
)


def of(connection: Connection, name: str) -> Sequence[str]:
    """The addresses that others can reach the guest at, IPv4 first, from the first source that knows any."""
    domain = instances.require(connection, name)
    for source in _SOURCES:
        found = _ask(domain, source)
        if found:
            return [str(address) for address in sorted(found, key=lambda address: (address.version, int(address)))]
    return []


def _ask(domain: Any, source: int) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        interfaces = domain.interfaceAddresses(source, 0)
    except libvirt.libvirtError:
        return set()  # not running, no agent, or not supported here: the next source may know
    texts = [each["addr"] for interface in interfaces.values() for each in interface["addrs"] or ()]
    addresses = {ipaddress.ip_address(text.partition("%")[0]) for text in texts}
    return {address for address in addresses if not (address.is_loopback or address.is_link_local)}
