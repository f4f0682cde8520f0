"""What instances there are, and what state they are in."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from drivers.compute import AttachedDisk, InstanceFacts, Sizes
from drivers.errors import NameTaken, NotFound
from drivers.libvirt.connection import Connection
from drivers.libvirt.domain_xml import (
    parse,
    read_disks,
    read_keep,
    read_mark,
    read_nics,
    read_notes,
    read_protect,
    read_sizes,
)
from drivers.libvirt.faults import code_of, translated
from planvirt.errors import Conflict
from planvirt.mark import Mark
from planvirt.states import State

# Set aside is an instance whose domain bears such a name. Renaming is atomic, so there is no half-way state, and no
# second place that could disagree with the name.
_ASIDE = re.compile(r"(?P<name>[a-z0-9-]+)\.aside\.(?P<run>[a-z0-9-]+)")

_BY_STATE = {
    libvirt.VIR_DOMAIN_RUNNING: State.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: State.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: State.RUNNING,  # on its way down
    libvirt.VIR_DOMAIN_PAUSED: State.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: State.SUSPENDED,
    libvirt.VIR_DOMAIN_SHUTOFF: State.STOPPED,
    libvirt.VIR_DOMAIN_CRASHED: State.ERROR,
    libvirt.VIR_DOMAIN_NOSTATE: State.ERROR,
}

# Nobody asked for these pauses; a guest does not leave them by itself.
_FAULTY_PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR,
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG,
    libvirt.VIR_DOMAIN_PAUSED_CRASHED,
}


def aside_name(name: str, run: str) -> str:
    """The name of a domain that `run` set aside."""
    return f"{name}.aside.{run}"


def find(connection: Connection, name: str) -> Any | None:
    """The virDomain of that name, or None."""
    conn = connection.get()
    with translated(f"look for the instance {name}"):
        try:
            return conn.lookupByName(name)
        except libvirt.libvirtError as error:
            if code_of(error) != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return None


def require(connection: Connection, name: str) -> Any:
    """The virDomain of that name; NotFound when there is none."""
    domain = find(connection, name)
    if domain is None:
        raise NotFound(f"cannot find the instance {name}")
    return domain


def require_ours(connection: Connection, name: str) -> Any:
    """The virDomain of that name, which planvirt may change."""
    domain = require(connection, name)
    if mark_of(domain) is None:
        raise NameTaken(
            f"cannot change the instance {name}: planvirt did not make it",
            resolution="give the plan's instance another name, or remove the other one yourself",
        )
    aside = _ASIDE.fullmatch(name)
    if aside is not None:
        raise Conflict(f"cannot change the instance {aside['name']}: run {aside['run']} has set it aside")
    return domain


def mark_of(domain: Any) -> Mark | None:
    """Who made a domain; None when planvirt did not."""
    with translated("read an instance"):
        return read_mark(parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))


def state_of(domain: Any) -> State:
    """The state of a domain, as its hypervisor says; notes do not count."""
    with translated("read an instance's state"):
        state, reason = domain.state()
        if state == libvirt.VIR_DOMAIN_SHUTOFF:
            if reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED:
                return State.ERROR
            return _asleep(domain)
    if state == libvirt.VIR_DOMAIN_PAUSED:
        if reason in _FAULTY_PAUSES:
            return State.ERROR
        if reason == libvirt.VIR_DOMAIN_PAUSED_SAVE:
            return State.SUSPENDED  # its memory is on the way to disk
        if reason == libvirt.VIR_DOMAIN_PAUSED_STARTING_UP:
            return _asleep(domain)  # its first instruction has not run yet
    return _BY_STATE.get(state, State.ERROR)


def _asleep(domain: Any) -> State:
    """What an instance is that does not run: its memory may be saved."""
    with translated("read an instance's state"):
        return State.SUSPENDED if domain.hasManagedSaveImage() else State.STOPPED


def facts_of(domain: Any, host: str) -> InstanceFacts:
    """The facts of one domain."""
    with translated("read an instance"):
        name, uuid = str(domain.name()), str(domain.UUIDString())
        root = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        now = parse(domain.XMLDesc(0)) if domain.isActive() else root
    mark = read_mark(root)
    aside = _ASIDE.fullmatch(name) if mark else None
    return InstanceFacts(
        name=name,
        uuid=uuid,
        host=host,
        power=state_of(domain),
        mark=mark,
        sizes=_sizes(read_sizes(root), read_sizes(now)),
        disks=tuple(AttachedDisk(Path(disk.path).name, disk.format, disk.bus) for disk in read_disks(root)),
        nics=tuple(read_nics(root)),
        set_aside=aside["run"] if aside else None,
        keep=read_keep(root),
        protect=read_protect(root),
        notes=read_notes(root),
    )


def _sizes(told: Sizes, now: Sizes) -> Sizes:
    """How large a domain is. A guest gives memory back in its own time, or never: what counts is what it was told."""
    return replace(now, memory=min(told.memory, now.max_memory))


def listing(connection: Connection, host: str) -> Sequence[InstanceFacts]:
    """All domains of the host, sorted by name."""
    conn = connection.get()
    with translated("list the instances"):
        domains = conn.listAllDomains()
    found = []
    for domain in domains:
        try:
            found.append(facts_of(domain, host))
        except NotFound:  # it went away since the listing
            continue
    return sorted(found, key=lambda facts: facts.name)
