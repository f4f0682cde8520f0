"""attach: give an instance a disk or a network interface, while it runs too."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from drivers.compute import AttachedDisk, InstanceFacts
from drivers.errors import Unsupported
from flows.actions.action import Action, Finding
from flows.actions.detach import let_go
from flows.call import Call
from flows.disks import disks_of, standing_for
from flows.kept_disks import ROUNDING, check_header, returning
from planvirt.errors import Conflict
from planvirt.journal.records import StepRecord
from planvirt.mark import nic_mac
from planvirt.plan import Disk, Nic
from planvirt.secret import revealed
from planvirt.units import format_size


def do(call: Call) -> Mapping[str, Any]:
    """Attach what `with` names; nothing is done when the instance has it already.

    A disk that was left on the host, by an earlier instance or by a `detach`, comes back with what is on it; otherwise
    an empty one is made. A network interface without an address gets one that is the same in every run of the plan.
    """
    found = call.found("attach anything to")
    return _do_disk(call, found, _disk(call)) if "disk" in call.arguments else _do_nic(call, found)


def outputs(call: Call) -> Mapping[str, Any]:
    """What a finished attach returns: the disk's name and volume, or the interface's address."""
    if "disk" not in call.arguments:
        return {"mac": _nic(call).mac}
    name = _disk(call).name
    return {"disk": name, "volume": disks_of(call.found("attach anything to"))[name].volume}


def probe(call: Call) -> Finding:
    """Done when the instance has what was meant for it, and the host remembers to keep what is to be kept."""
    found = call.facts()
    if not call.undo or found is None:
        return Finding.NOTHING
    if "disk" in call.arguments:
        wanted = _disk(call)
        there = wanted.name in disks_of(found) and (not wanted.keep or wanted.name in found.keep)
    else:
        there = _nic(call).mac in [nic.mac for nic in found.nics]
    return Finding.DONE if there else Finding.PARTIAL


def undo(call: Call) -> None:
    """Detach what this step has attached, and delete the volume that it made. A disk that came back stays on the host.

    A guest that does not let go makes the undo fail.
    """
    found = call.facts()
    if "mac" in call.undo and found is not None:
        mac = call.undo["mac"]
        call.phase(f"detach network interface {mac}")
        let_go(call, f"network interface {mac}", lambda limit: call.compute.detach_nic(call.instance, mac, limit))
    if "volume" in call.undo and found is not None:
        _detach(call, found)
    if call.undo.get("remembers") and found is not None:
        call.phase(f"forget to keep disk {call.undo['disk']}")
        call.compute.set_keep(call.instance, [disk for disk in found.keep if disk != call.undo["disk"]])
    if call.undo.get("makes"):
        for volume in dict.fromkeys([call.undo["volume"], call.undo.get("detached", call.undo["volume"])]):
            call.phase(f"delete volume {volume}")
            call.compute.delete_volume(volume)


def leftovers(record: StepRecord) -> list[str]:
    """The disk or the network interface."""
    if "volume" in record.undo:
        return [f"volume {record.undo['volume']} on {record.host}"]
    if "mac" in record.undo:
        return [f"network interface {record.undo['mac']} of instance {record.instance} on {record.host}"]
    return []


def _disk(call: Call) -> Disk:
    given = {key: revealed(value) for key, value in call.arguments["disk"].items()}
    return Disk(**given)


def _do_disk(call: Call, found: InstanceFacts, wanted: Disk) -> Mapping[str, Any]:
    name, present = wanted.name, disks_of(found).get(wanted.name)
    if present is not None and "volume" not in call.undo:
        _check_same(call, present, wanted)
        _remember(call, found, wanted)
        return {"disk": name, "volume": present.volume}
    if "volume" not in call.undo:
        kept = _kept(call, found, wanted)
        call.phase("look for the disk", disk=name, volume=kept or call.volume(name), makes=kept is None)
    volume = call.undo["volume"]
    if call.undo["makes"]:
        call.phase(f"create disk {name}")
        call.compute.create_volume(
            volume, size=wanted.size or 0, format=wanted.format, base=None, deadline=call.deadline
        )
    _remember(call, found, wanted)
    call.phase(f"attach disk {name}")
    call.compute.attach_disk(call.instance, AttachedDisk(volume, wanted.format, wanted.bus))
    return {"disk": name, "volume": volume}


def _check_same(call: Call, present: AttachedDisk, wanted: Disk) -> None:
    """Raise Conflict when the disk of that name is another one."""
    capacity = next((volume.capacity for volume in call.compute.volumes() if volume.name == present.volume), 0)
    size = wanted.size or capacity
    wrong = ""
    if (present.format, present.bus) != (wanted.format, wanted.bus):
        wrong = f"that is {present.format} on {present.bus}, {wanted.format} on {wanted.bus} is wanted"
    elif not 0 <= capacity - size < ROUNDING:
        wrong = f"that has {format_size(capacity)}, {format_size(size)} is wanted"
    if wrong:
        raise Conflict(
            f"cannot attach disk {wanted.name} to {call.instance}: it has one of that name",
            details=wrong,
            resolution="give the disk another name, detach the other one first, or resize it by an operation 'resize'",
        )


def _kept(call: Call, found: InstanceFacts, wanted: Disk) -> str | None:
    """The volume of a disk of that name that lies on the host for this instance. Raises Conflict when it is another."""
    if call.spec is None:
        return None
    others = {*found.volumes, call.volume(wanted.name)}
    volumes = [volume for volume in call.compute.volumes() if volume.name not in others]
    kept = returning(call.run.plan, call.spec, wanted, volumes)
    if kept is None:
        return None
    if wanted.format == "qcow2":
        with suppress(Unsupported), call.compute.open_volume(kept.name) as file:
            check_header(call.spec, wanted, file)
    return kept.name


def _remember(call: Call, found: InstanceFacts, wanted: Disk) -> None:
    """Have the host remember that the disk is kept; it does not forget that for a plan that does not say so."""
    if wanted.keep and wanted.name not in found.keep:
        call.phase(f"remember to keep disk {wanted.name}", disk=wanted.name, remembers=True)
        call.compute.set_keep(call.instance, [*found.keep, wanted.name])


def _detach(call: Call, found: InstanceFacts) -> None:
    name, now = call.undo["disk"], standing_for(found, call.undo["volume"], call.run.id)
    if now is not None:
        call.phase(f"detach disk {name}", detached=now.volume)
        let_go(call, f"disk {name}", lambda limit: call.compute.detach_disk(call.instance, now.volume, limit))


def _do_nic(call: Call, found: InstanceFacts) -> Mapping[str, Any]:
    nic = _nic(call)
    present = next((other for other in found.nics if (other.mac or "").lower() == nic.mac), None)
    if present is None:
        call.phase(f"attach network interface {nic.mac}", mac=nic.mac)
        call.compute.attach_nic(call.instance, nic)
    elif (present.kind, present.source, present.model) != (nic.kind, nic.source, nic.model):
        raise Conflict(
            f"cannot attach network interface {nic.mac} to {call.instance}: it has one of that address",
            details=f"that is on {_where(present)}, {_where(nic)} is wanted",
            resolution="give another address, or detach the other one first",
        )
    return {"mac": nic.mac}


def _nic(call: Call) -> Nic:
    """The interface as it is wanted, with its address."""
    given = {key: revealed(value) for key, value in call.arguments["network"].items()}
    mac = given["mac"] or nic_mac(call.uuid, call.operation or call.step)
    return Nic(**{**given, "mac": str(mac).lower()})


def _where(nic: Nic) -> str:
    return f"{nic.kind} {nic.source} ({nic.model})" if nic.source else f"the {nic.kind} network ({nic.model})"


ACTION = Action(do=do, probe=probe, undo=undo, leftovers=leftovers, outputs=outputs)
