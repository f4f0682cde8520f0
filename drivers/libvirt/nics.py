"""Network interfaces that come to an instance and go from it. Their hardware address is what tells them apart."""

from functools import partial

from drivers.libvirt import hotplug
from drivers.libvirt.connection import Connection
from drivers.libvirt.domain_xml import find_nic
from drivers.libvirt.hardware import changeable
from drivers.libvirt.rendering import nic_xml
from planvirt.deadline import Deadline
from planvirt.plan import Nic


def attach(connection: Connection, name: str, nic: Nic) -> None:
    """Give the instance another network interface."""
    domain = changeable(connection, name, "attach a network interface to")
    what = f"attach the network interface {nic.mac} to the instance {name}"
    hotplug.attach(domain, nic_xml(nic), partial(find_nic, mac=nic.mac or ""), what)


def detach(connection: Connection, name: str, mac: str, deadline: Deadline) -> None:
    """Take a network interface away from the instance."""
    domain = changeable(connection, name, "detach a network interface of")
    what = f"detach the network interface {mac} of the instance {name}"
    hotplug.detach(connection, domain, partial(find_nic, mac=mac), what, deadline)
