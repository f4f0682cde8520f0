"""Defining and forgetting instances, and setting them aside until a run commits."""

from typing import Any, Literal

import libvirt

from drivers.compute import Domain
from drivers.errors import NameTaken, NotFound
from drivers.libvirt import console, instances
from drivers.libvirt.connection import Connection
from drivers.libvirt.faults import code_of, translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.power import power_off_domain
from drivers.libvirt.rendering import render
from drivers.libvirt.volumes import path_of

_UNDEFINE_EVERYTHING = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def define(pool: Pool, domain: Domain, type: Literal["kvm", "qemu", "test"]) -> Any:
    """Define an instance. One that is there with the same mark stays as it is: its devices may be others by now."""
    present = _present(pool.connection, domain)
    if present is not None:
        return present
    names = [disk.volume for disk in domain.disks]
    names += [name for name in (domain.kernel, domain.initrd) if name]
    paths = {name: path_of(pool, name) for name in names}
    log = "" if type == "test" else str(console.log_path(pool, domain.uuid))
    xml = render(domain, type=type, paths=paths, console=log)
    conn = pool.connection.get()
    with translated(f"define the instance {domain.name}"):
        return conn.defineXMLFlags(xml, 0 if type == "test" else libvirt.VIR_DOMAIN_DEFINE_VALIDATE)


def _present(connection: Connection, domain: Domain) -> Any | None:
    """Name and UUID must both be free, or both belong to this very instance, which is returned then."""
    conn = connection.get()
    found: Any | None = None
    for found in (instances.find(connection, domain.name), _by_uuid(conn, domain.uuid)):
        if found is None:
            continue
        with translated(f"look for the instance {domain.name}"):
            name, uuid = found.name(), found.UUIDString()
        if (name, uuid) != (domain.name, domain.uuid) or instances.mark_of(found) != domain.mark:
            taken = f"name {name}" if name == domain.name else f"UUID {uuid}"
            raise NameTaken(
                f"cannot define the instance {domain.name}: its {taken} belongs to another one",
                details=f"{name} has the UUID {uuid}",
                resolution="give the plan's instance another name, or remove the other one",
            )
    return found


def _by_uuid(conn: Any, uuid: str) -> Any | None:
    with translated("look for an instance"):
        try:
            return conn.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if code_of(error) != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return None


def undefine(pool: Pool, name: str) -> None:
    """Power off and forget an instance of ours with all that it left on the host, except its volumes."""
    if instances.find(pool.connection, name) is None:
        return
    _forget(pool, instances.require_ours(pool.connection, name), name)


def _forget(pool: Pool, domain: Any, name: str) -> None:
    power_off_domain(domain)
    with translated(f"undefine the instance {name}"):
        uuid = domain.UUIDString()
        try:
            _undefine(domain)
        except libvirt.libvirtError as error:
            if code_of(error) != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    console.forget(pool, uuid)


def _undefine(domain: Any) -> None:
    try:
        domain.undefineFlags(_UNDEFINE_EVERYTHING)
    except libvirt.libvirtError as error:
        if code_of(error) not in {libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_SUPPORT}:
            raise
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)  # the test hypervisor knows this one only


def set_aside(connection: Connection, name: str, run: str) -> None:
    """Power an instance off and rename it. A saved memory is given up, as when the plug is pulled."""
    aside = instances.aside_name(name, run)
    if instances.find(connection, name) is None:
        if instances.find(connection, aside) is None:
            raise NotFound(f"cannot set the instance {name} aside: there is none")
        return
    domain = instances.require_ours(connection, name)
    power_off_domain(domain)
    with translated(f"set the instance {name} aside"):
        domain.rename(aside, 0)


def bring_back(connection: Connection, name: str, run: str) -> Any:
    """Rename an instance that `run` set aside back."""
    domain = instances.find(connection, instances.aside_name(name, run))
    present = instances.find(connection, name)
    if domain is None:
        if present is None:
            raise NotFound(f"cannot bring the instance {name} back: run {run} set none aside")
        return instances.require_ours(connection, name)
    if present is not None:
        raise NameTaken(
            f"cannot bring the instance {name} back: its name is taken",
            resolution=f"remove or rename the other instance {name}",
        )
    with translated(f"bring the instance {name} back"):
        domain.rename(name, 0)
    return instances.require(connection, name)


def delete_set_aside(pool: Pool, name: str, run: str) -> None:
    """Forget what `run` set aside."""
    domain = instances.find(pool.connection, instances.aside_name(name, run))
    if domain is not None and instances.mark_of(domain) is not None:
        _forget(pool, domain, name)
