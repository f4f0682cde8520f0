"""What disks hold at one moment, copied into flat volumes: by a backup job of QEMU's while the guest runs, by the
host's storage when it does not. Neither writes to a disk, to its chain or to its base image.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.compute import VolumeFacts
from drivers.errors import DriverError, NotFound, NotFrozen
from drivers.libvirt import instances
from drivers.libvirt.copying import copy
from drivers.libvirt.domain_xml import DiskXml, parse, read_disks
from drivers.libvirt.faults import failed, translated
from drivers.libvirt.freezing import frozen
from drivers.libvirt.pool import Pool
from drivers.libvirt.volumes import delete_handle, read, require
from planvirt.deadline import Deadline
from planvirt.errors import Conflict
from planvirt.mark import read_volume_name
from planvirt.states import State

_LOOK = 0.2  # seconds between looks at a job's progress
_ABORT_PATIENCE = 30.0  # seconds that a job may take to end after it was told to
_LOST = "backup job data missing"  # says a daemon whose predecessor died while it began the job


class BackupLost(DriverError):
    """libvirt holds on to a backup job of which it knows nothing any more, and begins no other one."""


def export(
    pool: Pool,
    name: str,
    disks: Mapping[str, str],
    *,
    quiesce: bool,
    deadline: Deadline,
) -> Sequence[VolumeFacts]:
    """Copy volumes of an instance into new ones, all as of one moment; a failure leaves no target."""
    deadline.check()
    for target in disks.values():
        if read_volume_name(target) is None:
            raise Conflict(f"cannot export into the volume {target}: its name bears no mark of planvirt's")
    domain = instances.require_ours(pool.connection, name)
    copies = _copies(domain, disks)
    abort_leftover(domain)
    for each in copies:
        _discard(pool, each.target)
    state = instances.state_of(domain)
    try:
        if state in {State.RUNNING, State.PAUSED, State.ERROR} and domain.isActive():
            _export_active(pool, domain, copies, quiesce=quiesce, deadline=deadline)
        else:
            _check_at_rest(name, state, quiesce=quiesce)
            for each in copies:
                _export_stopped(pool, each, deadline)
        pool.refresh()
        made = [read(require(pool, each.target)) for each in copies]
        total = sum(facts.capacity for facts in made)
        deadline.progress(total, total)
    except BaseException:
        for each in copies:
            _discard_quietly(pool, each.target)
        if state is State.RUNNING:
            _wake(domain)
        raise
    return made


@dataclass(frozen=True, slots=True)
class _Copy:
    """A disk of a domain, the volume that it is, and the one that it is copied into."""

    disk: DiskXml
    volume: str
    target: str


def _copies(domain: Any, disks: Mapping[str, str]) -> list[_Copy]:
    with translated("read an instance"):
        root = parse(domain.XMLDesc(0 if domain.isActive() else libvirt.VIR_DOMAIN_XML_INACTIVE))
        name = domain.name()
    by_volume = {Path(each.path).name: each for each in read_disks(root)}
    missing = next((volume for volume in disks if volume not in by_volume), None)
    if missing is not None:
        raise NotFound(f"cannot export the disk {missing}: the instance {name} has no such disk")
    return [_Copy(by_volume[volume], volume, target) for volume, target in disks.items()]


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


def _wake(domain: Any) -> None:
    """Let a guest go on that stopped at a write: the copies had taken the space, which they have given back by now."""
    with suppress(libvirt.libvirtError):  # the first error is the one to tell
        if tuple(domain.state()) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
            domain.resume()


# Not running


def _check_at_rest(name: str, state: State, *, quiesce: bool) -> None:
    """A guest that was shut down has left its file systems whole; one that was saved goes on in their midst."""
    if quiesce and state is not State.STOPPED:
        raise NotFrozen(f"cannot freeze the file systems of {name}: it is {state}")


def _export_stopped(pool: Pool, wanted: _Copy, deadline: Deadline) -> None:
    source = require(pool, wanted.volume)
    facts = read(source)
    # libvirt reads a volume in the format that its first bytes look like. A guest can write a qcow2 header with a
    # backing file of its choice to its raw disk; copying that would put a file of the host into the image.
    if facts.format != wanted.disk.format:
        raise Conflict(
            f"cannot export the disk {wanted.volume}: its content looks like {facts.format}, "
            f"but the disk is {wanted.disk.format}",
            resolution="take the snapshot while the instance is running",
        )
    copy(pool, source, wanted.target, size=facts.capacity, format="qcow2", deadline=deadline)


# Running or paused


def _export_active(pool: Pool, domain: Any, copies: Sequence[_Copy], *, quiesce: bool, deadline: Deadline) -> None:
    xml = _backup_xml(domain, {each.disk.target: pool.path() / each.target for each in copies})
    with _job_events(pool, domain) as ended:
        with (
            frozen(pool.connection, str(domain.name())) if quiesce else nullcontext(),
            translated("start a backup job"),
        ):
            domain.backupBegin(xml, None, 0)
        try:
            _wait(domain, ended, deadline)
            with translated("finish a backup job"):
                _let_go(domain, copies)
        except BaseException:
            _abort(domain)
            with suppress(libvirt.libvirtError):  # the first error is the one to tell
                _let_go(domain, copies)
            raise


def _backup_xml(domain: Any, chosen: Mapping[str, Path]) -> str:
    """One job for all the chosen disks, by the names that the guest has for them: QEMU starts it in one transaction."""
    root = ET.Element("domainbackup", mode="push")
    disks = ET.SubElement(root, "disks")
    for target in (each.target for each in read_disks(parse(domain.XMLDesc(0)))):
        disk = ET.SubElement(disks, "disk", name=target, backup="yes" if target in chosen else "no")
        if target in chosen:
            disk.set("type", "file")
            ET.SubElement(disk, "driver", type="qcow2")
            ET.SubElement(disk, "target", file=str(chosen[target]))
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


def _let_go(domain: Any, copies: Sequence[_Copy]) -> None:
    """Wait until QEMU has closed the targets.

    libvirt tells of a job's end while QEMU still has the last of the target's tables in memory; reading it now gives
    zeros. It holds the domain for as long as it closes the target, so a call that needs the domain returns after that.
    """
    for each in copies:
        domain.blockInfo(each.disk.target, 0)


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
