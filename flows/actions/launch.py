"""launch: make an instance with its disks, start it, and wait until it is ready."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivers.compute import AttachedDisk, Domain, InstanceFacts, VolumeFacts
from drivers.errors import DriverError, NameTaken, Unsupported
from flows.actions.action import Action, Finding
from flows.actions.wait import wait_ready
from flows.call import Call
from flows.disks import disks_of
from flows.images import base_of
from flows.kept_disks import check_header, returning
from planvirt.journal.records import StepRecord
from planvirt.mark import nic_mac, read_volume_name
from planvirt.plan import Disk, Instance
from planvirt.secret import revealed
from planvirt.states import State


def do(call: Call) -> Mapping[str, Any]:
    """Bring the instance from nothing to its declared state, going on with the work of an earlier attempt."""
    spec = _spec(call)
    existing = call.compute.instance(spec.name)
    if existing is not None and (existing.mark is None or existing.mark.run != call.run.id):
        raise NameTaken(
            f"cannot launch {spec.name}: host {call.host} has an instance of that name",
            details="planvirt did not make it" if existing.mark is None else f"plan {existing.mark.plan} made it",
            resolution="rename the instance in the plan, or remove the other one",
        )
    disks = _disks(call, spec)
    boot = spec.boot
    domain = Domain(
        name=spec.name,
        uuid=call.uuid,
        vcpus=spec.vcpus,
        memory=spec.memory,
        mark=call.mark(spec.spec()),
        disks=disks,
        nics=[replace(nic, mac=nic.mac or nic_mac(call.uuid, place)) for place, nic in enumerate(spec.nics)],
        kernel=_carry(call, boot.kernel) if boot else None,
        initrd=_carry(call, boot.initrd) if boot and boot.initrd else None,
        cmdline=str(revealed(call.arguments.get("cmdline", ""))),
        labels=dict(spec.labels),
        keep=tuple(disk.name for disk in spec.disks if disk.keep),
        protect=spec.protect,
        max_vcpus=spec.max_vcpus,
        max_memory=spec.max_memory,
    )
    call.phase("define", domain=spec.name)
    call.compute.define(domain)
    if spec.state == State.RUNNING:
        call.phase("start")
        call.compute.start(spec.name)
        if spec.ready is not None:
            call.phase("wait until ready")
            wait_ready(call, spec.ready)
    return {"uuid": call.uuid, "host": call.host, "addresses": _addresses(call, spec)}


def probe(call: Call) -> Finding:
    """Done when the instance is in its declared state, and nothing had to be waited for after that.

    What else there may be of it, from a disk to a guest that is not ready, is a part of a launch.
    """
    found = _own(call)
    if found is None:
        return Finding.PARTIAL if _made(call) else Finding.NOTHING
    wanted = call.spec.state if call.spec is not None else State.RUNNING
    ready = call.spec is not None and call.spec.ready is None
    return Finding.DONE if found.state == wanted and ready else Finding.PARTIAL


def outputs(call: Call) -> Mapping[str, Any]:
    """What a finished launch returns."""
    addresses = list(call.compute.addresses(call.instance)) if call.spec is not None and call.spec.nics else []
    return {"uuid": call.uuid, "host": call.host, "addresses": addresses}


def undo(call: Call) -> None:
    """Remove the instance and the volumes that this run made; whatever was there before stays.

    In the place of a disk that this run made there may be a copy by now, of a later run that was undone.
    """
    found, volumes = _own(call), call.undo.get("volumes", [])
    if found is not None:
        made = {named[1] for volume in volumes if (named := read_volume_name(volume)) is not None}
        copies = [disk.volume for name, disk in disks_of(found).items() if name in made]
        call.phase(f"remove {call.instance}", copies=copies)
        call.compute.undefine(call.instance)
    for volume in dict.fromkeys([*volumes, *call.undo.get("copies", []), *_made(call)]):
        call.phase(f"delete volume {volume}")
        call.compute.delete_volume(volume)


def leftovers(record: StepRecord) -> list[str]:
    """The instance and the volumes, by name."""
    names = [f"instance {record.undo['domain']} on {record.host}"] if "domain" in record.undo else []
    return names + [f"volume {volume} on {record.host}" for volume in record.undo.get("volumes", [])]


def _spec(call: Call) -> Instance:
    if call.spec is None:
        raise DriverError(f"cannot launch {call.instance}: the plan of run {call.run.id} is not at hand")
    return call.spec


def _own(call: Call) -> InstanceFacts | None:
    """The instance, if it is the work of this very run."""
    found = call.facts()
    return found if found is not None and found.mark is not None and found.mark.run == call.run.id else None


def _made(call: Call) -> list[str]:
    """The volumes that this run has made for the instance: their names tell, whatever the journal knows."""
    mine = []
    for volume in call.compute.volumes():
        mark = volume.mark
        if mark is not None and (mark.plan, mark.instance, mark.run) == (call.run.plan, call.instance, call.run.id):
            mine.append(volume.name)
    return mine


def _disks(call: Call, spec: Instance) -> list[AttachedDisk]:
    kept = _kept(call, spec)
    base = _base(call) if spec.disks else None
    mark = call.mark(spec.spec())
    names = {disk.name: kept.get(disk.name) or mark.volume(disk.name) for disk in spec.disks}
    made = [name for disk, name in names.items() if disk not in kept]
    call.phase("create disks", volumes=made)
    for position, disk in enumerate(spec.disks):
        if disk.name not in kept:
            call.deadline.check()
            _create(call, disk, names[disk.name], base if position == 0 else None)
    return [AttachedDisk(volume=names[disk.name], format=disk.format, bus=disk.bus) for disk in spec.disks]


def _create(call: Call, disk: Disk, name: str, base: VolumeFacts | None) -> None:
    size = disk.size if disk.size is not None else base.capacity if base else None
    if size is None:
        raise Unsupported(
            f"cannot create disk {disk.name} of {call.instance}: it has neither a size nor an image",
            resolution="give the disk a size, such as '10 GiB', or the instance an image",
        )
    call.compute.create_volume(
        name, size=size, format=disk.format, base=base.name if base else None, deadline=call.deadline
    )


def _base(call: Call) -> VolumeFacts | None:
    reference = call.arguments.get("image")
    return None if reference is None else base_of(call, str(reference))


def _kept(call: Call, spec: Instance) -> dict[str, str]:
    """Volumes that an earlier instance of this name left behind, for disks that the plan keeps."""
    wanted = [disk for disk in spec.disks if disk.keep]
    volumes = call.compute.volumes() if wanted else ()
    found = {}
    for disk in wanted:
        volume = returning(call.run.plan, spec, disk, volumes, call.run.id)
        if volume is not None:
            found[disk.name] = volume.name
            if disk.format == "qcow2":
                with suppress(Unsupported), call.compute.open_volume(volume.name) as file:
                    check_header(spec, disk, file)
    return found


def _carry(call: Call, path: Path) -> str:
    """A kernel or initrd, brought to the host."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return call.compute.import_file(path, digest, call.deadline)


def _addresses(call: Call, spec: Instance) -> list[str]:
    return list(call.compute.addresses(spec.name)) if spec.nics and spec.state == State.RUNNING else []


ACTION = Action(do=do, probe=probe, undo=undo, leftovers=leftovers, outputs=outputs)
