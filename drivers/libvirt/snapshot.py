"""A disk's content of one moment, copied into a flat volume: by a backup job of QEMU's while the guest runs, by the
host's storage when it does not. Neither writes to the disk, to its chain or to its base image.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.compute import VolumeFacts
from drivers.errors import DriverError, NotFound, Unsupported
from drivers.libvirt import instances
from drivers.libvirt.copying import copy
from drivers.libvirt.domain_xml import DiskXml, parse, read_disks
from drivers.libvirt.faults import code_of, failed, translated
from drivers.libvirt.pool import Pool
from drivers.libvirt.volumes import delete_handle, read, require
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.mark import read_volume_name
from planvirt.states import State

_LOOK = 0.2  # seconds between looks at a job's progress
_ABORT_PATIENCE = 30.0  # seconds that a job may take to end after it was told to
_AGENT_PATIENCE = 20  # seconds that a guest agent may take to freeze or thaw
_THAW_ATTEMPTS = 3
_LOST = "backup job data missing"  # says a daemon whose predecessor died while it began the job


class BackupLost(DriverError):
    """libvirt holds on to a backup job of which it knows nothing any more, and begins no other one."""


def export(pool: Pool, name: str, disk: str, target: str, *, quiesce: bool, deadline: Deadline) -> VolumeFacts:
    """Copy the volume `disk` of an instance into the new volume `target`; a failure leaves no target."""
    deadline.check()
    if read_volume_name(target) is None:
        raise Conflict(f"cannot export into the volume {target}: its name bears no mark of planvirt's")
    domain = instances.require_ours(pool.connection, name)
    found = _disk(domain, disk)
    abort_leftover(domain)
    _discard(pool, target)
    try:
        if instances.state_of(domain) in {State.RUNNING, State.PAUSED, State.ERROR} and domain.isActive():
            _export_active(pool, domain, found, target, quiesce=quiesce, deadline=deadline)
        else:
            _export_stopped(pool, found, disk, target, deadline)
        pool.refresh()
        made = read(require(pool, target))
        deadline.progress(made.capacity, made.capacity)
    except BaseException:
        _discard_quietly(pool, target)
        raise
    return made


def _disk(domain: Any, disk: str) -> DiskXml:
    with translated("read an instance"):
        root = parse(domain.XMLDesc(0 if domain.isActive() else libvirt.VIR_DOMAIN_XML_INACTIVE))
        name = domain.name()
    for each in read_disks(root):
        if Path(each.path).name == disk:
            return each
    raise NotFound(f"cannot export the disk {disk}: the instance {name} has no such disk")


def _discard(pool: Pool, target: str) -> None:
    """Delete what an earlier attempt left of the target."""
    volume = pool.lookup(target)
    if volume is not None:
        delete_handle(volume)


def _discard_quietly(pool: Pool, target: str) -> None:
    with suppress(
        DriverError, Conflict
    ):  # the first error is the one to tell; the target bears our mark and the undo finds it
        _discard(pool, target)


# Not running


def _export_stopped(pool: Pool, found: DiskXml, disk: str, target: str, deadline: Deadline) -> None:
    source = require(pool, disk)
    facts = read(source)
    # libvirt reads a volume in the format that its first bytes look like. A guest can write a qcow2 header with a
    # backing file of its choice to its raw disk; copying that would put a file of the host into the image.
    if facts.format != found.format:
        raise Conflict(
            f"cannot export the disk {disk}: its content looks like {facts.format}, but the disk is {found.format}",
            resolution="take the snapshot while the instance is running",
        )
    copy(pool, source, target, size=facts.capacity, format="qcow2", deadline=deadline)


# Running or paused


def _export_active(pool: Pool, domain: Any, found: DiskXml, target: str, *, quiesce: bool, deadline: Deadline) -> None:
    path = pool.path() / target
    with _job_events(pool, domain) as ended:
        with _frozen(domain, quiesce=quiesce), translated("start a backup job"):
            domain.backupBegin(_backup_xml(domain, found, path), None, 0)
        try:
            _wait(domain, ended, deadline)
            with translated("finish a backup job"):
                _let_go(domain, found)
        except BaseException:
            _abort(domain)
            with suppress(libvirt.libvirtError):  # the first error is the one to tell
                _let_go(domain, found)
            raise


def _backup_xml(domain: Any, found: DiskXml, path: Path) -> str:
    root = ET.Element("domainbackup", mode="push")
    disks = ET.SubElement(root, "disks")
    for each in read_disks(parse(domain.XMLDesc(0))):
        chosen = each.target == found.target
        disk = ET.SubElement(disks, "disk", name=each.target, backup="yes" if chosen else "no")
        if chosen:
            disk.set("type", "file")
            ET.SubElement(disk, "driver", type="qcow2")
            ET.SubElement(disk, "target", file=str(path))
    return ET.tostring(root, encoding="unicode")


def _wait(domain: Any, ended: "_Ended", deadline: Deadline) -> None:
    """Wait for the end of the backup job, telling its progress."""
    while not ended.event.wait(_LOOK):
        with translated("watch a backup job"):
            stats = domain.jobStats()
            if stats.get("type") == libvirt.VIR_DOMAIN_JOB_NONE:
                # It ended, and the event did not come: libvirt remembers how.
                ended.take(domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED))
                break
        total = int(stats.get("disk_total", 0))
        deadline.progress(int(stats.get("disk_processed", 0)), total)
    if not ended.success:
        raise failed("finish the backup job", ended.reason)


def _let_go(domain: Any, found: DiskXml) -> None:
    """Wait until QEMU has closed the target.

    libvirt tells of a job's end while QEMU still has the last of the target's tables in memory; reading it now gives
    zeros. It holds the domain for as long as it closes the target, so a call that needs the domain returns after that.
    """
    domain.blockInfo(found.target, 0)


class _Ended:
    """How a backup job ended."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.success = False
        self.reason = ""

    def take(self, stats: Any) -> None:
        self.success = bool(stats.get("success", stats.get("type") == libvirt.VIR_DOMAIN_JOB_COMPLETED))
        self.reason = str(stats.get("errmsg", "it was aborted"))
        self.event.set()

    def on_event(self, _conn: Any, _domain: Any, params: Any, _opaque: object) -> None:
        if params.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
            self.take(params)


@contextmanager
def _job_events(pool: Pool, domain: Any) -> Iterator[_Ended]:
    conn, ended = pool.connection.get(), _Ended()
    with translated("listen to an instance"):
        number = conn.domainEventRegisterAny(domain, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, ended.on_event, None)
    try:
        yield ended
    finally:
        with suppress(libvirt.libvirtError):  # the connection died, and the registration with it
            conn.domainEventDeregisterAny(number)


def abort_leftover(domain: Any) -> None:
    """End a backup job that a dead process left. A run owns its instance, so the job is nobody else's."""
    if _has_backup_job(domain):
        _abort(domain)


def abort_writing(pool: Pool, target: str) -> None:
    """End the backup job, if there is one, that a dead process left writing into the volume `target`."""
    marked = read_volume_name(target)
    domain = instances.find(pool.connection, marked[0].instance) if marked else None
    try:
        writing_it = domain is not None and _has_backup_job(domain) and target in domain.backupGetXMLDesc(0)
    except (BackupLost, libvirt.libvirtError):  # nobody can end it any more, or it ended just now
        return
    if writing_it:
        _abort(domain)


def _has_backup_job(domain: Any) -> bool:
    with translated("look for a job"):
        if not domain.isActive():
            return False
        try:
            stats = domain.jobStats()
        except libvirt.libvirtError as error:
            if _LOST not in str(error):
                raise
            raise BackupLost(
                f"cannot copy a disk of {domain.name()}: libvirt has lost sight of an earlier copy",
                details=f"its daemon died while it began that one ({error})",
                resolution="shut the instance down, restart libvirtd, and start the instance again",
            ) from error
    active = stats.get("type") not in {None, libvirt.VIR_DOMAIN_JOB_NONE}
    return active and stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP


def _abort(domain: Any) -> None:
    """End the backup job and wait until QEMU has let go of the target."""
    patience = Deadline(_ABORT_PATIENCE)
    with suppress(libvirt.libvirtError):  # it ended by itself, or the connection died
        domain.abortJob()
    with suppress(DriverError, Conflict):  # the first error is the one to tell
        while _has_backup_job(domain) and patience.left():
            patience.sleep(_LOOK / 4)


@contextmanager
def _frozen(domain: Any, *, quiesce: bool) -> Iterator[None]:
    """Freeze the guest's file systems for the moment of the block, if asked to. They are thawed whatever happens."""
    if not quiesce:
        yield
        return
    try:
        _freeze(domain)
        yield
    except BaseException:
        with suppress(
            libvirt.libvirtError
        ):  # the first error is the one to tell; a failed freeze usually froze nothing
            _thaw(domain)
        raise
    with translated("thaw the guest's file systems"):
        _thaw(domain)


def _freeze(domain: Any) -> None:
    try:
        domain.agentSetResponseTimeout(_AGENT_PATIENCE, 0)
        domain.fsFreeze(None, 0)
    except libvirt.libvirtError as error:
        no_agent = code_of(error) in {
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
            libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
            libvirt.VIR_ERR_OPERATION_INVALID,
        }
        raise (Unsupported if no_agent else DriverError)(
            "cannot freeze the guest's file systems",
            details=str(error),
            resolution="install and start qemu-guest-agent in the guest, or let the snapshot go without a freeze",
        ) from error


def _thaw(domain: Any) -> None:
    for attempt in range(_THAW_ATTEMPTS):
        try:
            domain.fsThaw(None, 0)
        except libvirt.libvirtError:
            if attempt == _THAW_ATTEMPTS - 1:
                raise
        else:
            return
