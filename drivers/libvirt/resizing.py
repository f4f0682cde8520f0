"""How large an instance is: processors and memory."""

from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.compute import Sizes
from drivers.libvirt import instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.faults import code_of, translated
from drivers.libvirt.hardware import changeable, definition, redefine, running
from planvirt.errors import Conflict

_KIB, _MIB = 1 << 10, 1 << 20
_BOTH = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG


def resize(connection: Connection, name: str, sizes: Sizes) -> None:
    """Have the instance be of these sizes."""
    domain = changeable(connection, name, "resize")
    if sizes.max_vcpus < sizes.vcpus or sizes.max_memory < sizes.memory:
        raise Conflict(f"cannot resize the instance {name}: it would be larger than it can become")
    now = instances.facts_of(domain, "").sizes
    if running(domain) is not None:
        _check_live(name, now, sizes)
        with translated(f"resize the instance {name}"):
            # Memory first: a processor that came to a running guest cannot be taken back.
            _set_memory(domain, -(-sizes.memory // _KIB))
            domain.setVcpusFlags(sizes.vcpus, _BOTH)
    elif sizes != now:
        _define(connection, domain, name, sizes)


def _check_live(name: str, now: Sizes, sizes: Sizes) -> None:
    grown = now.vcpus <= sizes.vcpus <= now.max_vcpus and sizes.memory <= now.max_memory
    if not grown or (sizes.max_vcpus, sizes.max_memory) != (now.max_vcpus, now.max_memory):
        raise Conflict(
            f"cannot resize the instance {name} while its guest is there",
            details=f"it has {now.vcpus} of at most {now.max_vcpus} processors, "
            f"{now.memory // _MIB} of at most {now.max_memory // _MIB} MiB",
            resolution="stop it first",
        )


def _set_memory(domain: Any, kib: int) -> None:
    try:
        domain.setMemoryFlags(kib, _BOTH)
    except libvirt.libvirtError as error:
        if code_of(error) != libvirt.VIR_ERR_INVALID_ARG:
            raise
        for flag in (libvirt.VIR_DOMAIN_AFFECT_CONFIG, libvirt.VIR_DOMAIN_AFFECT_LIVE):
            domain.setMemoryFlags(kib, flag)  # the test hypervisor does one at a time only


def _define(connection: Connection, domain: Any, name: str, sizes: Sizes) -> None:
    root = definition(domain)
    # The state of single processors, which libvirt writes down when some came to a running guest, fits no other number.
    for tag in ("vcpu", "vcpus", "memory", "currentMemory"):
        for node in root.findall(tag):
            root.remove(node)
    ET.SubElement(root, "memory", unit="b").text = str(sizes.max_memory)
    ET.SubElement(root, "currentMemory", unit="b").text = str(sizes.memory)
    ET.SubElement(root, "vcpu", current=str(sizes.vcpus)).text = str(sizes.max_vcpus)
    redefine(connection, root, f"resize the instance {name}")
